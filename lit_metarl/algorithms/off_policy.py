"""The base of algorithms that learn from replay: the loop over a block's updates, and slow copies of networks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_metarl.algorithms.base import Algorithm
from lit_metarl.types import State, require


class OffPolicy(Algorithm, ABC):
    """Learns from minibatches of replayed transitions, with targets that follow networks slowly.

    Args:
        gamma: discount γ per agent step.
        polyak: τ of the targets, target ← (1 − τ)·target + τ·network.
        target_update_every: updates between two target steps.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, gamma: float = 0.99, polyak: float = 0.005, target_update_every: int = 1) -> None:
        super().__init__()
        require(0.0 <= gamma <= 1.0, "model.gamma", gamma, "a discount lies in [0, 1]")
        require(0.0 < polyak <= 1.0, "model.polyak", polyak, "it must lie in (0, 1]")
        require(target_update_every >= 1, "model.target_update_every", target_update_every, "it must be at least 1")
        self.gamma = gamma
        self.polyak = polyak
        self.target_update_every = target_update_every
        self.followed: list[str] = []
        self.updates = 0

    @abstractmethod
    def update(self, batch: Any) -> dict[str, Tensor]:
        """One update on a minibatch, number ``updates`` + 1; returns detached scalars."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """``U`` updates, one for each minibatch of the block."""
        # Autocast keeps its bf16 copies of the weights: without this, update 2 would use those of update 1.
        if torch.is_autocast_enabled(self.device.type):
            torch.set_autocast_cache_enabled(False)
        for minibatch in batch.minibatches():
            self.metrics.add(self.update(minibatch))
        self.finish_step(batch.env_steps, batch.episode_returns, batch.episode_lengths)

    def follow(self, name: str) -> None:
        """Let a copy of the network ``name``, ``target_<name>``, follow its parameters slowly."""
        setattr(self, f"target_{name}", copy.deepcopy(self.get_submodule(name)).requires_grad_(False))
        self.followed.append(name)

    @torch.no_grad()
    def update_targets(self, polyak: float | None = None) -> None:
        """target ← (1 − τ)·target + τ·network, for all that is followed; τ is ``polyak``, the setting if None."""
        tau = self.polyak if polyak is None else polyak
        for name in self.followed:
            network, target = self.get_submodule(name), self.get_submodule(f"target_{name}")
            torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), tau)

    def counters(self) -> State:
        """The counters of every algorithm and the number of updates, on which schedules depend."""
        return super().counters() | {"updates": self.updates}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        super().load_counters(state)
        self.updates = state["updates"]
