"""The record by which a run is found and compared: tags, its whole config, its id in the checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_metarl.tracking.logger import environment_tags, mlflow_logger

log = logging.getLogger(__name__)

SLURM_JOB = "slurm_job"
"""Tag with the id of the SLURM job that trains a run; a requeued job finds its run by it."""


class RunRecord(Callback):
    """Tags the MLflow run, stores the full config as an artifact, and puts both into every checkpoint.

    A training that ends logs ``final/return``, the mean of the evaluations in the last tenth of its steps, and the best
    policy as an MLflow model (see :meth:`~lit_metarl.tracking.MLflowLogger.log_policy`).

    On resume it reports, by key, what differs from the run that wrote the checkpoint: settings and versions.

    Args:
        config: the complete configuration as nested primitives.
        stage: the sub-command; names the artifact ``config/<stage>.yaml``.
    """

    def __init__(self, config: Mapping[str, Any], stage: str = "fit") -> None:
        self.config = config
        self.stage = stage
        self._changed: dict[str, str] = {}
        self._resumed_at: int | None = None  # what the checkpoint's run had logged, if it is this run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the config of what only looks at a checkpoint; a training run is recorded once it may start."""
        self.environment = environment_tags()
        if stage != "fit":
            self._log_config(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the run; after the checkpoint was accepted, so that a refused one leaves its run as it was."""
        datamodule: Any = trainer.datamodule
        if not datamodule.resumes_exactly:
            log.warning("%s", datamodule.resume_note)
        logger = mlflow_logger(trainer)
        if logger is None:
            return
        logger.count_steps(lambda: pl_module.env_steps)
        logger.start(self._resumed_at)
        logger.name_run(f"{type(pl_module).__name__}-{datamodule.spec.name.rpartition('/')[2]}-seed{datamodule.seed}")
        logger.log_params(dict(_flatten(self.config)))
        tags = self._tags(trainer) | {
            "precision": trainer.precision,
            "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}",
        }
        if job := os.environ.get("SLURM_JOB_ID"):
            tags[SLURM_JOB] = job
        logger.set_tags(tags | self.environment | self._changed)
        self._log_config(trainer)

    @staticmethod
    def _tags(trainer: Trainer) -> dict[str, object]:
        """Tags that say what is trained, of the run and of its model."""
        datamodule: Any = trainer.datamodule
        algorithm = type(trainer.lightning_module).__name__
        return {"algorithm": algorithm, "environment": datamodule.spec.name, "seed": datamodule.seed}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the whole run comes to: a number to sort runs by, and its policy."""
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.log_final_returns()
            logger.log_policy(self._tags(trainer))

    def _log_config(self, trainer: Trainer) -> None:
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.log_text(yaml.safe_dump(dict(self.config), sort_keys=False), f"config/{self.stage}.yaml")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record which run, config and versions wrote the checkpoint."""
        logger = mlflow_logger(trainer)
        checkpoint["run"] = {
            "run_id": None if logger is None else logger.run_id,
            "config": yaml.safe_dump(dict(self.config), sort_keys=False),
            "environment": self.environment,
            "logged_until": 0 if logger is None else logger.logged_until,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Report by key what differs from the run that wrote the checkpoint."""
        if trainer.state.fn != "fit" or "run" not in checkpoint:
            return
        saved = checkpoint["run"]
        changed = differences(yaml.safe_load(saved["config"]), self.config)
        changed |= differences(saved["environment"], self.environment)
        for key, (old, new) in changed.items():
            log.warning("resumed with another %s: %r in the checkpoint, %r now", key, old, new)
        self._changed = {f"resumed/{key}": f"{old!r} -> {new!r}" for key, (old, new) in changed.items()}
        logger = mlflow_logger(trainer)
        if logger is not None and trainer.strategy.broadcast(logger.run_id) == saved["run_id"]:
            self._resumed_at = saved["logged_until"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with the old and the new value (None where absent)."""
    a, b = dict(_flatten(old)), dict(_flatten(new))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key in ("ckpt_path", "weights_only", "run_id"):  # of this start, not of the run
            continue
        if isinstance(value, Mapping):  # as options are named: without the level that holds a class's arguments
            yield from _flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
