"""Action distributions as pure functions of tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def tanh_log_det(u: Tensor) -> Tensor:
    """log(1 − tanh²(u)) element-wise, as 2·(log 2 − u − softplus(−2u)).

    Exact for every finite ``u``; ``log(1 - tanh(u)**2)`` is −∞ from |u| ≈ 9 on in float32.
    """
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


class TanhGaussian(NamedTuple):
    """a = tanh(u), u ~ N(mean, exp(log_std)²), independent dimensions (Haarnoja et al. 2018, appendix C).

    The pre-squash ``u`` is kept by whoever samples, so the density never inverts a tanh.
    """

    mean: Tensor  # [..., A] before the squash
    log_std: Tensor  # [..., A]

    @property
    def mode_action(self) -> Tensor:
        """tanh(mean), ``[..., A]``: the deterministic action of evaluation."""
        return torch.tanh(self.mean)

    def sample_action(self, noise: Tensor) -> Tensor:
        """The action of :meth:`sample` alone, ``[..., A]``."""
        return torch.tanh(self.mean + self.log_std.exp() * noise)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action and its log-density.

        Args:
            noise: standard normal, ``[..., A]``.

        Returns:
            action ``[..., A]`` in [-1, 1] and log π(action) ``[...]``, summed over the action axis:
            Σ_A [ −noise²/2 − log_std − log(2π)/2 − log(1 − tanh²(u)) ], u = mean + exp(log_std)·noise.
        """
        u = self.mean + self.log_std.exp() * noise
        log_prob = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2.0 * math.pi) - tanh_log_det(u)
        return torch.tanh(u), log_prob.sum(-1)


class Deterministic(NamedTuple):
    """The whole mass on one action in [-1, 1] (Silver et al. 2014)."""

    mode_action: Tensor  # [..., A]


class DiagonalGaussian(NamedTuple):
    """a ~ N(mean, exp(log_std)²), independent dimensions, unbounded.

    Finite for log_std within ±40 or so in float32, beyond which exp(±log_std) squared leaves the range.
    """

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A]

    @property
    def mode_action(self) -> Tensor:
        """The mean, ``[..., A]``."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action [..., A]``, summed over A: Σ_A [ −z²/2 − log_std − log(2π)/2 ], ``[...]``.

        z = (action − mean)/exp(log_std).
        """
        return self.dimension_log_prob(action).sum(-1)

    def dimension_log_prob(self, action: Tensor) -> Tensor:
        """Log-density of every coordinate of ``action [..., A]``, −z²/2 − log_std − log(2π)/2, ``[..., A]``."""
        z = (action - self.mean) * (-self.log_std).exp()
        return -0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)

    def sample(self, generator: torch.Generator) -> Tensor:
        """mean + exp(log_std)·noise, ``[..., A]``; it carries the gradient of both.

        Args:
            generator: on the CPU, where the noise is drawn: the same numbers whatever device the policy is on.
        """
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise.to(self.mean.device)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, Σ_A [ log_std + log(2πe)/2 ], ``[...]``."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self ‖ other) in nats, Σ_A [ (e^{2d} − 1 + z²)/2 − d ], ``[...]``.

        d = log_std − other.log_std, z = (mean − other.mean)/exp(other.log_std). ``expm1`` keeps it exact where the two
        are close, which is where trust regions read it.
        """
        d = self.log_std - other.log_std
        z = (self.mean - other.mean) * (-other.log_std).exp()
        return (0.5 * (torch.expm1(2.0 * d) + z.square()) - d).sum(-1)


class Categorical(NamedTuple):
    """P(a = c) = softmax(logits)_c over C actions; logits are finite and need not be normalised."""

    logits: Tensor  # [..., C]

    @property
    def mode_action(self) -> Tensor:
        """The most likely action, int64 ``[...]``; the first of several."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log softmax(logits)[action] for int64 ``action [...]``, ``[...]``."""
        return self.logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw, int64 ``[...]``: argmax_c (logits_c + g_c) with standard Gumbel noise g = −log(exponential).

        Args:
            generator: on the CPU, where the noise is drawn: the same numbers whatever device the policy is on.
        """
        exponential = torch.empty(self.logits.shape, dtype=self.logits.dtype).exponential_(generator=generator)
        return (self.logits - exponential.log().to(self.logits.device)).argmax(-1)

    def entropy(self) -> Tensor:
        """−Σ_C p·log p in nats, ``[...]``."""
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self ‖ other) = Σ_C p·(log p − log q) in nats, ``[...]``."""
        log_p = self.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - other.logits.log_softmax(-1))).sum(-1)
