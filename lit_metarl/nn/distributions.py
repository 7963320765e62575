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
