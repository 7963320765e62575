"""Policies: networks from observations to action distributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_metarl.nn.distributions import TanhGaussian
from lit_metarl.nn.mlp import mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class ActorFactory(ABC):
    """A policy network as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, obs_dim: int, action_dim: int) -> nn.Module:
        """Module from observations ``[..., O]`` to a distribution with ``sample(noise)`` and ``mode_action``."""


@dataclass(frozen=True)
class TanhGaussianMLP(ActorFactory):
    """MLP policy of SAC (Haarnoja et al. 2018; sizes of pytorch_sac: 2 × 1024).

    Attributes:
        hidden: widths of the hidden layers.
    """

    hidden: Sequence[int] = (256, 256)

    def build(self, obs_dim: int, action_dim: int) -> nn.Module:
        return TanhGaussianActor(obs_dim, action_dim, self.hidden)


class TanhGaussianActor(nn.Module):
    """Observations ``[..., O]`` → :class:`TanhGaussian` over actions ``[..., A]``.

    The raw log-std passes a tanh and an affine map onto [-5, 2], so it never saturates at a clamp with zero gradient.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.trunk = mlp([obs_dim, *hidden, 2 * action_dim])

    def forward(self, obs: Tensor) -> TanhGaussian:
        # float(): under bf16-mixed only the matrix products are bf16, densities need float32.
        mean, raw = self.trunk(obs).float().chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1.0)
        return TanhGaussian(mean, log_std)
