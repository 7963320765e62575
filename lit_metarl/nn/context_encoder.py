"""Inference of a task from transitions: a product of Gaussians, one factor for every transition (PEARL).

Rakelly et al. 2019, "Efficient off-policy meta-reinforcement learning via probabilistic context variables", Eq. (3).
Every factor is N(μᵢ, σᵢ²), from one transition alone. Their product is N(μ, σ²) with

    1/σ² = Σᵢ 1/σᵢ²        μ = σ² Σᵢ μᵢ/σᵢ²,

so what is known are two sums. They do not depend on the order of the transitions, and those of a longer context are
those of its parts, added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_metarl.nn.mlp import Initialisation, mlp
from lit_metarl.types import Sizes, Transition, require

SMALLEST_VARIANCE = 1e-7  # of a factor, as released


class Evidence(NamedTuple):
    """The sums over transitions that a posterior is made of; all 0 for no transition. They add up."""

    precision: Tensor  # [..., Z], Σ 1/σᵢ²
    weighted_mean: Tensor  # [..., Z], Σ μᵢ/σᵢ²
    number: Tensor  # [..., 1], transitions

    def plus(self, other: Evidence) -> Evidence:
        """Evidence of both contexts together."""
        return Evidence(*(a + b for a, b in zip(self, other, strict=True)))


class Posterior(NamedTuple):
    """Independent Gaussians over z; a variance of 0 for a z that is certain."""

    mean: Tensor  # [..., Z]
    variance: Tensor  # [..., Z]

    def sample(self, noise: Tensor) -> Tensor:
        """mean + √variance·noise, ``[..., Z]``, with the gradient of both.

        Args:
            noise: standard normal, ``[..., Z]``.
        """
        return self.mean + self.variance.sqrt() * noise


class ContextEncoderFactory(ABC):
    """An encoder of contexts as it is written in a config: a frozen dataclass with these two."""

    latent: int
    """Z, the length of z."""

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """Module from transitions ``[..., C, ...]`` and a mask to :class:`Evidence`.

        It also has the methods ``nothing`` and ``posterior`` of :class:`ContextEncoder`, and its ``deterministic``.
        """


@dataclass(frozen=True)
class ProductOfGaussians(ContextEncoderFactory):
    """The encoder of PEARL: an MLP makes a factor of every transition. Defaults as released.

    Attributes:
        latent: Z.
        hidden: widths of the hidden layers.
        next_obs: see the successor too; for tasks that differ in their dynamics.
        deterministic: z is the mean of what the MLP makes of the transitions, without a variance and without a prior.
        initialisation: of every layer.
    """

    latent: int = 5
    hidden: Sequence[int] = (200, 200, 200)
    next_obs: bool = False
    deterministic: bool = False
    initialisation: Initialisation = "torch"

    def build(self, sizes: Sizes) -> nn.Module:
        require(self.latent >= 1, "encoder.latent", self.latent, "z needs at least one entry")
        return ContextEncoder(sizes, self)


class ContextEncoder(nn.Module):
    """Transitions ``[..., C, ...]`` → :class:`Evidence` ``[..., Z]`` about their task.

    A factor is N(μᵢ, max(softplus(vᵢ), 1e-7)) with (μᵢ, vᵢ) of observation, action and reward, and of the successor if
    asked for. A deterministic encoder has unit variances: the product's mean is then the mean over transitions.
    """

    def __init__(self, sizes: Sizes, settings: ProductOfGaussians) -> None:
        super().__init__()
        self.latent, self.next_obs, self.deterministic = settings.latent, settings.next_obs, settings.deterministic
        inputs = sizes.obs * (2 if settings.next_obs else 1) + sizes.action + 1
        outputs = settings.latent * (1 if settings.deterministic else 2)
        self.trunk = mlp([inputs, *settings.hidden, outputs], settings.initialisation)

    def factors(self, context: Transition) -> tuple[Tensor, Tensor]:
        """Mean and variance of every transition's factor, ``[..., C, Z]`` each."""
        rows = [context.obs, context.action, context.reward.unsqueeze(-1)]
        made = self.trunk(torch.cat(rows + [context.next_obs] * self.next_obs, dim=-1))
        # bf16 products under autocast, float32 sums; float64 parameters keep their precision
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        if self.deterministic:
            return made, torch.ones_like(made)
        mean, raw = made.chunk(2, dim=-1)
        return mean, F.softplus(raw).clamp(min=SMALLEST_VARIANCE)

    def forward(self, context: Transition, mask: Tensor | None = None) -> Evidence:
        """Sums over the transitions, of which those with ``mask [..., C]`` 0 do not count."""
        mean, variance = self.factors(context)
        counted = torch.ones_like(context.reward) if mask is None else mask
        precision = counted.unsqueeze(-1) / variance
        return Evidence(precision.sum(-2), (precision * mean).sum(-2), counted.sum(-1, keepdim=True))

    def nothing(self, *lead: int) -> Evidence:
        """Evidence of no transition, ``[*lead, Z]``."""
        zeros = next(self.parameters()).new_zeros(*lead, self.latent)
        return Evidence(zeros, zeros.clone(), zeros[..., :1].clone())

    def posterior(self, evidence: Evidence, limit: int | None = None) -> Posterior:
        """Posterior ``[..., Z]`` over z; the prior N(0, 1), for a deterministic encoder 0, where nothing is known.

        The prior is no factor of the product, as released.

        Args:
            evidence: ``[..., Z]``.
            limit: largest number of transitions that count. Of n > ``limit`` each counts ``limit``/n: the mean stays,
                and the variance is that of ``limit`` transitions. None: all count.
        """
        known = evidence.number > 0
        precision = torch.where(known, evidence.precision, 1.0)
        mean = evidence.weighted_mean / precision
        if self.deterministic:
            return Posterior(mean, torch.zeros_like(mean))
        if limit is not None:
            precision = precision * (limit / evidence.number.clamp(min=limit))
        return Posterior(mean, 1.0 / precision)
