"""Checkpoints of the whole run: last, best, and on a signal."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_metarl.algorithms import Algorithm
from lit_metarl.callbacks.signals import StopSignals, name_of
from lit_metarl.checkpoint import (
    LOCK,
    CheckpointError,
    link_checkpoint,
    read_checkpoint,
    sign_lock,
    signed_by,
    write_checkpoint,
)
from lit_metarl.processes import lost_peer
from lit_metarl.tracking import DIVERGED
from lit_metarl.tracking.logger import mlflow_logger
from lit_metarl.types import ConfigError, DivergenceError, Interrupted, require


class CheckpointFiles(TorchCheckpointIO):
    """The way from Lightning to files: :func:`write_checkpoint` and :func:`read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file with :func:`~lit_metarl.checkpoint.write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file with :func:`~lit_metarl.checkpoint.read_checkpoint`: always on the CPU, and only data."""
        return read_checkpoint(Path(path))


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and ``best.ckpt`` whenever ``monitor`` improves.

    Both hold the whole run and are written atomically, in ``mlruns/runs/<run id>/`` (or ``checkpoints/`` below the
    Trainer's root without an :class:`~lit_metarl.tracking.MLflowLogger`); the points of the curves up to a checkpoint
    are in the store before it is. SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 let the training step in
    progress end, save ``last.ckpt`` and raise :class:`~lit_metarl.types.Interrupted`; a second Ctrl-C stops at once.
    Whatever else ends a run within an epoch (``max_time``, ``should_stop``) leaves a checkpoint from which it goes on
    within that epoch. Parameters or optimizer states that are not finite are never saved.

    One process trains a run: the folder is locked (``flock`` on ``.lock``), and the kernel lets go of the lock when its
    process ends, however it ends. On NFS (Linux from 2.6.12 on) the server keeps it, so other hosts see it too; where
    a file system has no locks a warning says so. In a SLURM job, SIGUSR1 also requeues the job.

    Lightning's own ``ModelCheckpoint`` counts optimizer steps, which under manual optimization misfires.

    Args:
        monitor: metric whose maximum is the best.
        every_n_batches: also save ``last.ckpt`` every so many training steps within an epoch; 0 for never.

    Raises:
        CheckpointError: another process trains the run, or a file cannot be written.
        DivergenceError: a parameter or an optimizer's state is not finite.
    """

    def __init__(self, monitor: str = "eval/return", every_n_batches: int = 0) -> None:
        require(every_n_batches >= 0, "RunCheckpoint.every_n_batches", every_n_batches, "0 or a positive number")
        self.monitor = monitor
        self.every_n_batches = every_n_batches
        self.best_score = -math.inf
        self.directory = Path()
        self.signals = StopSignals()
        self._lock: FileLock | None = None
        self._saved_steps: int | None = None

    # Start and end -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, the same on every process; for training, lock it and take over the signals."""
        trainer.strategy.checkpoint_io = CheckpointFiles()
        logger = mlflow_logger(trainer)
        if logger is None:
            self.directory = Path(trainer.default_root_dir) / "checkpoints"
        else:
            logger.share_run_id(trainer.strategy.broadcast)
            self.directory = logger.run_dir
        if stage == "fit":
            _keep_slurm_requeue_away(trainer)
            problem = trainer.strategy.broadcast(self._take_lock() if trainer.is_global_zero else None)
            if problem is not None:
                raise CheckpointError(problem)
            if logger is not None and self._lock is not None:
                logger.adopt()
            self.signals.received = None
            self.signals.take()

    def _take_lock(self) -> str | None:
        """Lock the folder and sweep what a crash left there; what stands in the way, if anything does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            by = signed_by(self.directory)
            return f"{self.directory} is being trained by {by}: wait for its end or stop it, then resume."
        except NotImplementedError:
            rank_zero_warn(f"The file system of {self.directory} has no locks: train this run in one process only.")
            return None
        self._lock = lock
        sign_lock(self.directory)
        for left_by_crash in self.directory.glob(".*.part"):
            left_by_crash.unlink(missing_ok=True)
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals again: Lightning's SIGTERM handler broadcasts from within the handler."""
        if self._saved_steps is None:  # a new run, perhaps from another's checkpoint: that one's best is not here
            self.best_score = -math.inf
        self.signals.take()
        if self._asked_to_stop(trainer):
            raise self._interrupted("before training began")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give signals and lock back."""
        if stage == "fit":
            logger = mlflow_logger(trainer)
            if logger is not None:
                logger.finalize("success")  # before the lock: who takes it next sets another status
            self._let_go()

    def _let_go(self) -> None:
        self.signals.give_back()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a true record, say what is saved, and give signals and lock back.

        If the run stops because its next step would not be finite, ``diverged.ckpt`` gets its state; finite is not
        always good, so ``last.ckpt`` stays what it was. A run that diverged has the metric ``diverged`` where it did.
        """
        if isinstance(exception, DivergenceError) and exception.state_is_finite:
            self.save(trainer, "diverged.ckpt")
        logger = mlflow_logger(trainer)
        if logger is not None and isinstance(exception, DivergenceError):
            logger.log_metrics({DIVERGED: 1.0})
        if logger is not None and isinstance(exception, Interrupted | KeyboardInterrupt):
            logger.finalize("killed")
        elif logger is not None and lost_peer(exception) and not trainer.is_global_zero:
            logger.mark_failed()  # process 0, which keeps the record, may be the one that died
        if self._saved_steps is not None and not isinstance(exception, Interrupted):
            exception.add_note(self._what_is_saved())
        self._let_go()

    # Saving --------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the run stops here, or if the period is over; after the last batch the evaluation comes first."""
        if trainer.is_last_batch:
            return
        asked = self._asked_to_stop(trainer)
        due = self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0
        if asked or due or _stops_early(trainer):
            self.save(trainer)
        if asked:
            raise self._interrupted(f"at {self._saved_steps:,} environment steps")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last``, which is also ``best`` if this epoch's evaluation is the best so far."""
        if not trainer.is_last_batch:  # stopped within the epoch, and saved there
            return
        score = trainer.callback_metrics.get(self.monitor)
        period = trainer.check_val_every_n_epoch
        evaluated = score is not None and period and (trainer.current_epoch + 1) % period == 0
        if evaluated and float(score) > self.best_score:
            self.best_score = float(score)
            # Best first: killed in between, the run resumes from the older last and writes the same best again.
            self.save(trainer, "best.ckpt")
            if trainer.is_global_zero:
                link_checkpoint(self.directory / "best.ckpt", self.directory / "last.ckpt")
        else:
            self.save(trainer)
        for callback in trainer.callbacks if trainer.is_global_zero else ():
            if isinstance(callback, KeepCheckpoints):
                callback.keep(self.directory, trainer.current_epoch + 1)
        if self._asked_to_stop(trainer):
            raise self._interrupted(f"at {self._saved_steps:,} environment steps")

    def save(self, trainer: Trainer, name: str = "last.ckpt") -> None:
        """Write the file ``name``; every process must call it."""
        module = trainer.lightning_module
        assert isinstance(module, Algorithm)
        bad = _not_finite(trainer)
        if not trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            raise module.diverged(bad or "the state of another process is not finite")
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.flush()  # first: a checkpoint counts the points before it
        trainer.save_checkpoint(self.directory / name, weights_only=False)
        if name != "diverged.ckpt":
            self._saved_steps = module.env_steps

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        return not trainer.strategy.reduce_boolean_decision(self.signals.received is None, all=True)

    def _interrupted(self, when: str) -> Interrupted:
        self.signals.stopping()
        number = self.signals.received or signal.SIGTERM  # which another process received
        requeued = _requeue() if number == getattr(signal, "SIGUSR1", None) else ""
        return Interrupted(f"stopped by {name_of(number)} {when}; {self._what_is_saved()}{requeued}", number)

    def _what_is_saved(self) -> str:
        path = self.directory / "last.ckpt"
        if self._saved_steps is None:
            return "nothing was saved yet"
        return f"{path} is of step {self._saved_steps:,}; go on with --ckpt_path {self.directory.name}"

    # Resume --------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Know what is saved, if it is this run's own."""
        if (self.directory / "last.ckpt").is_file():
            self._saved_steps = checkpoint["algorithm"]["counters"]["env_steps"]

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best_score = state_dict["best_score"]


class KeepCheckpoints(Callback):
    """Lets :class:`RunCheckpoint` keep what ``last.ckpt`` is after every so many epochs, as ``epoch_<n>.ckpt``.

    For what is measured at several times of a training.

    Args:
        every_n_epochs: epochs between two that are kept.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        require(every_n_epochs >= 1, "KeepCheckpoints.every_n_epochs", every_n_epochs, "it must be at least 1")
        self.every_n_epochs = every_n_epochs

    def keep(self, directory: Path, done: int) -> None:
        """Keep the file in ``directory`` if it is due after ``done`` epochs: a hard link, where there are such."""
        if done % self.every_n_epochs == 0:
            link_checkpoint(directory / "last.ckpt", directory / f"epoch_{done}.ckpt")


def _stops_early(trainer: Trainer) -> bool:
    enough = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and enough


def _not_finite(trainer: Trainer) -> str | None:
    """Which parameter or state of an optimizer is not finite; None if all are.

    A parameter counts as infinite from about 2e19 on, where its square leaves float32.
    """
    for name, value in trainer.lightning_module.state_dict().items():
        if value.is_floating_point() and not value.square().sum().isfinite():
            return f"parameter {name} is not finite"
    for index, optimizer in enumerate(trainer.optimizers):
        for state in optimizer.state.values():
            for key, value in state.items():
                if getattr(value, "is_floating_point", bool)() and not value.isfinite().all():
                    return f"{key} of optimizer {index} ({type(optimizer).__name__}) is not finite"
    return None


def _keep_slurm_requeue_away(trainer: Trainer) -> None:
    """Lightning's own requeueing writes ``hpc_ckpt_<n>.ckpt`` into the working folder and prefers it to any other."""
    environment = trainer.strategy.cluster_environment if hasattr(trainer.strategy, "cluster_environment") else None
    for candidate in (environment, trainer._accelerator_connector.cluster_environment):
        if isinstance(candidate, SLURMEnvironment):
            candidate.auto_requeue = False
    if SLURMEnvironment.detect():
        found = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        if found:
            raise ConfigError(f"{found[0]} would be resumed instead of this run's checkpoint: move it away.")


def _requeue() -> str:
    """Put this SLURM job back into the queue; what to add to the message."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0" or shutil.which("scontrol") is None:
        return ""
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return f"; job {job} requeued" if done.returncode == 0 else f"; job {job} not requeued: {done.stderr.strip()}"
