"""Made-up transitions, and a Trainer that feeds them to an off-policy module."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_metarl.types import ReplayBlock, Transition

O, A, M = 5, 2, 16  # noqa: E741


def quiet_trainer(**kwargs: Any) -> Trainer:
    return Trainer(
        accelerator=kwargs.pop("accelerator", "cpu"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"limit_val_batches": 0, "max_epochs": 1} | kwargs),
    )


def random_batch(*leading: int) -> Transition:
    return Transition(
        torch.randn(*leading, O),
        torch.rand(*leading, A) * 2 - 1,
        torch.randn(*leading),
        torch.randn(*leading, O),
        torch.rand(*leading) < 0.3,
        torch.rand(*leading) < 0.3,
    )


class Batches:
    """A loader of given blocks."""

    def __init__(self, blocks: list[Transition]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Any:
        for block in self.blocks:
            yield ReplayBlock(block, 0, torch.zeros(0), torch.zeros(0))
