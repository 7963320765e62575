"""What travels between the parts of the package.

Axes, always in this order and with these letters: ``B`` tasks, ``N`` trajectories per task, ``T`` steps,
``O`` observation, ``A`` action, ``K`` inner steps, ``E`` ensemble members, ``M`` minibatch of transitions,
``U`` updates, ``Z`` latent, ``D`` directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and the remedy."""


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise :class:`ConfigError` naming ``key``, ``value`` and ``remedy`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} = {value!r} cannot be used: {remedy}.")


class Transition(NamedTuple):
    """One environment step; every field shares the leading axes."""

    obs: Tensor  # [..., O]
    action: Tensor  # [..., A] in [-1, 1]
    reward: Tensor  # [...] raw
    next_obs: Tensor  # [..., O] the true successor, never the first observation of a new episode
    terminated: Tensor  # [...] bool: the MDP ended
    truncated: Tensor  # [...] bool: the time limit cut the episode

    @property
    def discount(self) -> Tensor:
        """0 where the MDP ended, 1 elsewhere: values are bootstrapped through time limits. ``[...]`` float."""
        return 1.0 - self.terminated.to(self.reward.dtype)


class ReplayBlock(NamedTuple):
    """What one training step consumes: ``U`` minibatches, and what collecting brought meanwhile."""

    transitions: Transition  # [U, M, ...]
    env_steps: int  # environment steps so far: warm-up and action repeat included, all processes together
    episode_returns: Tensor  # [n] undiscounted returns of the episodes that ended since the last block
    episode_lengths: Tensor  # [n] agent steps


class Episodes(NamedTuple):
    """Complete evaluation episodes."""

    returns: Tensor  # [N] undiscounted
    lengths: Tensor  # [N] agent steps
    frames: Tensor | None = None  # [T, height, width, 3] uint8 of the first episode, where asked for
    frames_per_second: float = 0.0


class Policy(Protocol):
    """The back edge from a module to the collector: how to act."""

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Action for training ``[E, A]``; all randomness comes from ``generator`` (on the CPU)."""
        ...

    def act(self, obs: Tensor) -> Tensor:
        """Deterministic action for evaluation, ``[E, A]``."""
        ...


State = dict[str, Any]
"""Tensors and Python scalars only, so that checkpoints load with ``weights_only=True``."""
