"""What makes a run findable and comparable: tags, its whole config, its id in the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_metarl.tracking.logger import environment_tags, mlflow_logger

log = logging.getLogger(__name__)


class RunRecord(Callback):
    """Tags the MLflow run, stores the full config as an artifact, and puts both into every checkpoint.

    On resume it reports, by key, what differs from the run that wrote the checkpoint: settings and versions.

    Args:
        config: the complete configuration as nested primitives.
        stage: the sub-command; names the artifact ``config/<stage>.yaml``.
    """

    def __init__(self, config: Mapping[str, Any], stage: str = "fit") -> None:
        self.config = config
        self.stage = stage

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
        logger.start()
        tags = {
            "algorithm": type(pl_module).__name__,
            "environment": datamodule.spec.name,
            "seed": datamodule.seed,
            "precision": trainer.precision,
            "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}",
        }
        logger.set_tags(tags | self.environment)
        self._log_config(trainer)

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
        logger = mlflow_logger(trainer)
        if changed and logger is not None:
            logger.set_tags({f"resumed/{key}": f"{old!r} -> {new!r}" for key, (old, new) in changed.items()})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with the old and the new value (None where absent)."""
    a, b = dict(_flatten(old)), dict(_flatten(new))
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and key not in ("ckpt_path", "weights_only")
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
