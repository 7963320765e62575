"""Checkpoints of the whole run: last, best, and on a signal."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_metarl.tracking.logger import mlflow_logger
from lit_metarl.types import DivergenceError, require


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
        logger = mlflow_logger(trainer)
        if logger is None:
            self.directory = Path(trainer.default_root_dir) / "checkpoints"
        else:
            logger.share_run_id(trainer.strategy.broadcast)
            self.directory = logger.run_dir

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning did: its SIGTERM handler broadcasts from within the handler."""
        self._received = None
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
        """Save if a signal came, or if the period is over; after the last batch the evaluation comes first."""
        if trainer.is_last_batch:
            return
        if self._asked_to_stop(trainer):
            self.save(trainer)
            raise KeyboardInterrupt  # Lightning ends the run as interrupted: status FAILED, loggers flushed
        if self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last``, and make it ``best`` too if this epoch's evaluation is the best so far."""
        score = trainer.callback_metrics.get(self.monitor)
        period = trainer.check_val_every_n_epoch
        evaluated = score is not None and period and (trainer.current_epoch + 1) % period == 0
        improved = evaluated and float(score) > self.best_score
        if improved:
            self.best_score = float(score)
        self.save(trainer)
        if improved and trainer.is_global_zero:
            self._copy_to_best()
        if self._asked_to_stop(trainer):
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write ``diverged.ckpt`` if the run stops because its next step would not be finite.

        Finite is not always good, so ``last.ckpt`` stays what it was.
        """
        if isinstance(exception, DivergenceError) and exception.state_is_finite:
            self.save(trainer, "diverged.ckpt")

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        return not trainer.strategy.reduce_boolean_decision(self._received is None, all=True)

    def save(self, trainer: Trainer, name: str = "last.ckpt") -> None:
        """Write the file ``name``; every process must call it."""
        temporary = self.directory / f".{name}.part"
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            # Lightning moves the file from the temporary folder, which copies if that is another file system.
            os.replace(temporary, self.directory / name)
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.flush()

    def _copy_to_best(self) -> None:
        temporary = self.directory / ".best.ckpt.part"
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.directory / "last.ckpt", temporary)  # no second copy of the replay
        except OSError:
            shutil.copyfile(self.directory / "last.ckpt", temporary)
        os.replace(temporary, self.directory / "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best_score = state_dict["best_score"]
