"""The progress bar of a run."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SHOWN = ("train/return", "eval/return", "train/critic_loss", "train/actor_loss")


class ProgressBar(TQDMProgressBar):
    """One bar for the whole run: epoch, time left until its end, steps per second, and what was last logged.

    Args:
        refresh_rate: training steps between two redraws; 0 hides the bar.
    """

    def __init__(self, refresh_rate: int = 50) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._since = (0.0, 0)
        self._apart = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar; until its end messages and warnings are written above it."""
        super().on_train_start(trainer, pl_module)
        epochs, length = trainer.max_epochs or -1, self.total_train_batches
        self.train_progress_bar.total = epochs * length if epochs > 0 and math.isfinite(length) else None
        if self.is_enabled:
            logging.captureWarnings(True)
            self._apart.callback(logging.captureWarnings, False)
            written = [name for name in ("lightning", "lightning.pytorch", "lightning.fabric") if _has_console(name)]
            self._apart.enter_context(logging_redirect_tqdm([logging.getLogger(), *map(logging.getLogger, written)]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which epoch it is, and restart the clock: evaluation is no part of the rate."""
        self._since = (time.monotonic(), getattr(pl_module, "env_steps", 0))
        of = f"/{trainer.max_epochs}" if self.train_progress_bar.total else ""
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}{of}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on; a resumed run begins where it was, and that part takes no time."""
        bar = self.train_progress_bar
        done = trainer.current_epoch * self.total_train_batches + batch_idx
        if bar.n == 0:
            bar.initial = bar.n = done
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that nothing is written behind it."""
        self._close()

    def _close(self) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()
        self._apart.close()

    def init_validation_tqdm(self) -> Tqdm:
        """A bar for ``validate``, which is disabled within a run: an evaluation there is one batch."""
        return Tqdm(disable=True) if self.trainer.state.fn == "fit" else super().init_validation_tqdm()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers behind the bar: environment steps, their rate, and the latest of :data:`SHOWN`."""
        env_steps = getattr(pl_module, "env_steps", 0)
        start, steps_then = self._since
        seconds = time.monotonic() - start
        latest = getattr(pl_module, "latest_metrics", {})
        shown = {name.removeprefix("train/"): f"{value:.3g}" for name, value in latest.items() if name in SHOWN}
        rate = {"env_steps": env_steps}
        if steps_then == 0:
            self._since = (time.monotonic(), env_steps)  # warm-up is no part of the rate
        elif seconds > 0:
            rate["steps/s"] = round((env_steps - steps_then) / seconds)
        return rate | shown


def _has_console(name: str) -> bool:
    return any(type(handler) is logging.StreamHandler for handler in logging.getLogger(name).handlers)
