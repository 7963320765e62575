"""Policies: networks from observations to action distributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_metarl.nn.conditioning import with_context
from lit_metarl.nn.distributions import Deterministic, TanhGaussian
from lit_metarl.nn.mlp import Initialisation, mlp
from lit_metarl.types import Sizes

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class ActorFactory(ABC):
    """A policy network as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """Module from observations ``[..., O]`` to a distribution with ``mode_action``, for SAC ``sample(noise)`` too.

        Where ``sizes.context`` is not 0 it is called with the context besides, ``[C]`` or with axes in front that the
        observations begin with.
        """


@dataclass(frozen=True)
class TanhGaussianMLP(ActorFactory):
    """MLP policy of SAC (Haarnoja et al. 2018; sizes of pytorch_sac: 2 × 1024).

    Attributes:
        hidden: widths of the hidden layers.
    """

    hidden: Sequence[int] = (256, 256)

    def build(self, sizes: Sizes) -> nn.Module:
        return TanhGaussianActor(sizes, self.hidden)


@dataclass(frozen=True)
class DeterministicMLP(ActorFactory):
    """MLP policy of TD3, tanh of the last layer (Fujimoto et al. 2018, appendix C).

    Attributes:
        hidden: widths of the hidden layers.
        initialisation: of every layer.
    """

    hidden: Sequence[int] = (256, 256)
    initialisation: Initialisation = "torch"

    def build(self, sizes: Sizes) -> nn.Module:
        return DeterministicActor(sizes, self.hidden, self.initialisation)


class TanhGaussianActor(nn.Module):
    """Observations ``[..., O]`` → :class:`TanhGaussian` over actions ``[..., A]``.

    The raw log-std passes a tanh and an affine map onto [-5, 2], so it never saturates at a clamp with zero gradient.
    """

    def __init__(self, sizes: Sizes, hidden: Sequence[int]) -> None:
        super().__init__()
        self.trunk = mlp([sizes.obs + sizes.context, *hidden, 2 * sizes.action])

    def forward(self, obs: Tensor, context: Tensor | None = None) -> TanhGaussian:
        # float(): under bf16-mixed only the matrix products are bf16, densities need float32.
        mean, raw = self.trunk(with_context(obs, context)).float().chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1.0)
        return TanhGaussian(mean, log_std)


class DeterministicActor(nn.Module):
    """Observations ``[..., O]`` → :class:`Deterministic` action ``[..., A]``, tanh of an MLP."""

    def __init__(self, sizes: Sizes, hidden: Sequence[int], initialisation: Initialisation) -> None:
        super().__init__()
        self.trunk = mlp([sizes.obs + sizes.context, *hidden, sizes.action], initialisation)

    def forward(self, obs: Tensor, context: Tensor | None = None) -> Deterministic:
        return Deterministic(torch.tanh(self.trunk(with_context(obs, context)).float()))
