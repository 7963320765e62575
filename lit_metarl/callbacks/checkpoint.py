"""Checkpoints of the whole run: last, best, and on a signal."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_metarl.tracking import MLflowLogger
from lit_metarl.types import require


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and ``best.ckpt`` whenever ``monitor`` improves.

    Both hold the whole run and are written atomically, in ``mlruns/runs/<run id>/`` (or ``checkpoints/`` below the
    Trainer's root without an :class:`~lit_metarl.tracking.MLflowLogger`). SIGTERM and Ctrl-C let the training step in
    progress end, save ``last.ckpt`` and stop; a second Ctrl-C stops at once.

    Lightning's own ``ModelCheckpoint`` counts optimizer steps, which under manual optimization misfires.

    Args:
        monitor: metric whose maximum is the best.
        every_n_batches: also save ``last.ckpt`` every so many training steps within an epoch; 0 for never.
    """

    def __init__(self, monitor: str = "eval/return", every_n_batches: int = 0) -> None:
        require(every_n_batches >= 0, "RunCheckpoint.every_n_batches", every_n_batches, "0 or a positive number")
        self.monitor = monitor
        self.every_n_batches = every_n_batches
        self.best_score = -math.inf
        self.directory = Path()
        self._received: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, the same on every process."""
        logger = next((item for item in trainer.loggers if isinstance(item, MLflowLogger)), None)
        if logger is None:
            self.directory = Path(trainer.default_root_dir) / "checkpoints"
        else:
            logger.share_run_id(trainer.strategy.broadcast)
            self.directory = logger.run_dir

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a signal came, or if the period is over."""
        if not trainer.strategy.reduce_boolean_decision(self._received is None, all=True):
            self.save(trainer, "last")
            # Lightning ends the run as interrupted: status FAILED, loggers flushed, no further evaluation.
            raise KeyboardInterrupt
        if self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0:
            self.save(trainer, "last")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``best`` if this epoch's evaluation is the best so far, and ``last``."""
        score = trainer.callback_metrics.get(self.monitor)
        evaluated = (
            trainer.check_val_every_n_epoch and (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        )
        if score is not None and evaluated and float(score) > self.best_score:
            self.best_score = float(score)
            self.save(trainer, "best")
        self.save(trainer, "last")

    def save(self, trainer: Trainer, name: str) -> None:
        """Write ``<name>.ckpt``; every process must call it."""
        path = self.directory / f"{name}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.flush()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best_score = state_dict["best_score"]
