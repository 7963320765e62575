"""The progress bar of a run."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Return, losses and environment steps per second, as last logged.

    Args:
        refresh_rate: training steps between two redraws; 0 hides the bar.
    """

    def __init__(self, refresh_rate: int = 50) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._since = (0.0, 0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock: evaluation is not part of the rate."""
        self._since = (time.monotonic(), getattr(pl_module, "env_steps", 0))
        super().on_train_epoch_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
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


SHOWN = ("train/return", "eval/return", "train/critic_loss", "train/actor_loss")
