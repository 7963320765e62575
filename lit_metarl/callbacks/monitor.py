"""The base of callbacks that measure a module while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_metarl.types import require


class Monitor(Callback, ABC):
    """Measures the module before training and after epochs; a resumed run has measured the beginning.

    Args:
        every_n_epochs: epochs between two measurements.
    """

    def __init__(self, every_n_epochs: int) -> None:
        require(every_n_epochs >= 1, f"{type(self).__name__}.every_n_epochs", every_n_epochs, "it must be at least 1")
        self.every_n_epochs = every_n_epochs

    @abstractmethod
    def measure(self, trainer: Trainer, module: Any) -> None:
        """Measure the module as it stands, and log the points; every process is asked."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what nothing has trained yet."""
        if trainer.current_epoch == 0 and trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
            self.measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after this epoch, if it is one of those."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.measure(trainer, pl_module)
