"""The results of ``test`` and ``predict``: a table and a film."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.envs.rendering import write_video
from lit_metarl.tracking.logger import mlflow_logger
from lit_metarl.types import Episodes, require


class TestTable(Callback):
    """Prints the results of ``test``; stores every episode of process 0 as the artifact ``test/episodes.csv``."""

    __test__ = False  # not a test case, whatever its name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data of many tasks for ``test``."""
        if stage == "test":
            refuse_tasks(self, trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the table."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["episode", "return", "length"])
        for index, row in enumerate(zip(batch.returns.tolist(), batch.lengths.tolist(), strict=True)):
            writer.writerow([index, *row])
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.log_text(text.getvalue(), "test/episodes.csv")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        table = Table("metric", "value")
        for name, value in sorted(trainer.callback_metrics.items()):
            table.add_row(name, f"{float(value):.2f}")
        Console().print(table)


def refuse_tasks(callback: Callback, trainer: Trainer) -> None:
    """Raise :class:`~lit_metarl.types.ConfigError` if ``callback`` would meet the evaluations of a meta-learner."""
    datamodule: Any = trainer.datamodule
    remedy = "it shows episodes of a single task; take AdaptationResults"
    single = not isinstance(datamodule, TaskDataModule)
    require(single, type(callback).__name__, type(datamodule).__name__, remedy)


class EpisodeVideo(Callback):
    """Writes the episode of ``predict`` as ``<run>/episode.mp4`` and stores it as an artifact."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data of many tasks for ``predict``."""
        if stage == "predict":
            refuse_tasks(self, trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Episodes,
        batch: Episodes,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the film of process 0."""
        if outputs.frames is None or not trainer.is_global_zero:
            return
        logger = mlflow_logger(trainer)
        path = (Path(trainer.default_root_dir) if logger is None else logger.run_dir) / "episode.mp4"
        write_video(path, outputs.frames.cpu().numpy(), outputs.frames_per_second)
        if logger is not None:
            logger.log_artifact(path, "predict")
        Console().print(f"episode of return {float(outputs.returns[0]):.1f} written to {path}")
