"""The results of meta-evaluation: an adaptation curve, a table, films before and after adaptation."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lit_metarl.algorithms import PEARL
from lit_metarl.callbacks.posterior import draw_posterior, infer
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.envs.rendering import write_video
from lit_metarl.tracking.logger import mlflow_logger
from lit_metarl.types import MetaEpisodes, State, require


class AdaptationResults(Callback):
    """Curve, table and films of a meta-learner, for process 0's share of the tasks.

    ``fit`` ends with the artifacts ``adaptation/eval.png`` and ``eval.csv`` (every task, every number of steps) of its
    last evaluation and, of a learner that infers z, ``posterior.png``; ``test`` stores ``test.png`` and ``test.csv``
    there and prints a table; ``predict`` writes one mp4 per number of steps.
    """

    def __init__(self) -> None:
        self._last: MetaEpisodes | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data of a single task, which would fail when all is trained."""
        remedy = "it shows how a meta-learner adapts; take TestTable and EpisodeVideo"
        datamodule: Any = trainer.datamodule
        require(isinstance(datamodule, TaskDataModule), "AdaptationResults", type(datamodule).__name__, remedy)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MetaEpisodes, *_: int
    ) -> None:
        """Keep the latest evaluation."""
        self._last = batch

    def state_dict(self) -> State:
        """The latest evaluation, so that a run resumed after its last epoch can still draw it."""
        return {} if self._last is None else self._last._asdict()

    def load_state_dict(self, state_dict: State) -> None:
        """Inverse of :meth:`state_dict`."""
        self._last = MetaEpisodes(**state_dict) if state_dict else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last evaluation, store every task's returns, and draw what is inferred of a few tasks."""
        if self._last is None or not trainer.is_global_zero:
            return
        self._store(trainer, self._last, "eval")
        if isinstance(pl_module, PEARL) and pl_module.encoder is not None:
            path = _folder(trainer) / "posterior.png"
            draw_posterior(infer(pl_module, trainer.datamodule), path)
            logger = mlflow_logger(trainer)
            if logger is not None:
                logger.log_artifact(path, "adaptation")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MetaEpisodes, *_: int
    ) -> None:
        """Draw the test, store every task's returns and print their means."""
        if not trainer.is_global_zero:
            return
        self._store(trainer, batch, "test")
        Console().print(table(batch))

    def _store(self, trainer: Trainer, batch: MetaEpisodes, name: str) -> None:
        path = _folder(trainer) / f"{name}.png"
        draw_adaptation_curve(batch, path)
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.log_artifact(path, "adaptation")
            logger.log_text(per_task_csv(batch), f"adaptation/{name}.csv")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: MetaEpisodes, batch: MetaEpisodes, *_: int
    ) -> None:
        """Write the films of process 0."""
        if not trainer.is_global_zero:
            return
        logger = mlflow_logger(trainer)
        for (name, frames), returns in zip(outputs.frames.items(), outputs.returns["test"], strict=True):
            path = _folder(trainer) / f"{name}.mp4"
            write_video(path, frames.cpu().numpy(), outputs.frames_per_second)
            if logger is not None:
                logger.log_artifact(path, "predict")
            Console().print(f"{name}: return {float(returns.mean()):.1f}, written to {path}")


def _folder(trainer: Trainer) -> Path:
    logger = mlflow_logger(trainer)
    return Path(trainer.default_root_dir) if logger is None else logger.run_dir


def per_task_csv(batch: MetaEpisodes) -> str:
    """A line per split, task and number of steps: the task's parameters and its mean return."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["split", "task", "parameters", "adaptation_steps", "mean_return"])
    for split, returns in batch.returns.items():
        for task in range(returns.shape[1]):
            parameters = {name: rows[task].tolist() for name, rows in batch.tasks[split].items()}
            for steps, value in enumerate(returns[:, task].mean(-1).tolist()):
                writer.writerow([split, task, parameters, steps, value])
    return text.getvalue()


def table(batch: MetaEpisodes) -> Table:
    """Mean return over tasks, ± its standard error, by split and number of steps."""
    steps = next(iter(batch.returns.values())).shape[0]
    result = Table("tasks", "random actions", *(f"after {k} steps" for k in range(steps)))
    for split, returns in batch.returns.items():
        per_task = returns.mean(-1)
        errors = per_task.std(-1, correction=1) / per_task.shape[1] ** 0.5 if per_task.shape[1] > 1 else None
        cells = [
            f"{float(mean):.2f}" + ("" if errors is None else f" ± {float(errors[k]):.2f}")
            for k, mean in enumerate(per_task.mean(-1))
        ]
        random = f"{float(batch.random[split].mean()):.2f}" if split in batch.random else ""
        result.add_row(split.replace("_", " "), random, *cells)
    return result


def draw_adaptation_curve(batch: MetaEpisodes, path: Path) -> None:
    """Return against adaptation steps: every task thin, their mean thick with its 95 % interval, reference lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(batch.returns), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batch.returns), squeeze=False)[0]
    for axis, (split, returns) in zip(panels, batch.returns.items(), strict=True):
        per_task = returns.mean(-1).cpu()  # [K + 1, B]
        steps = list(range(len(per_task)))
        mean = per_task.mean(-1)
        axis.plot(steps, per_task, color="tab:blue", linewidth=0.5, alpha=0.3)
        axis.plot(steps, mean, color="tab:blue", linewidth=2.5, marker="o", label="mean over tasks")
        if per_task.shape[1] > 1:
            half = 1.96 * per_task.std(-1, correction=1) / per_task.shape[1] ** 0.5
            axis.fill_between(steps, mean - half, mean + half, color="tab:blue", alpha=0.25)
        axis.axhline(float(mean[0]), color="tab:gray", linestyle="--", linewidth=1, label="no adaptation")
        if split in batch.random:
            random = float(batch.random[split].mean())
            axis.axhline(random, color="tab:orange", linestyle=":", linewidth=1, label="random actions")
        axis.set(title=f"{split.replace('_', ' ')} tasks", xlabel="adaptation steps", ylabel="return", xticks=steps)
        axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
