"""A state-value baseline that is learned to be learned quickly, the meta control variate of TMAML.

Liu et al. 2019, Algorithm 1 and Eq. 12, put right: Eq. 12 sums r_{t'}, not r_t, and step 4 steps by α', not α. Each
half of a task's trajectories adapts the baseline that predicts for the other half, so no prediction depends on the
actions that it multiplies, provided that φ itself does not either: predictions are made with the φ from *before* the
batch, and φ moves afterwards. Printed, "repeat until converged" moves φ on the batch first: on an MDP whose batches
can all be listed, one such step of size 0.01 biases the policy gradient by 13 % of its norm, and this order by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lit_metarl.nn.baselines import OBS_LIMIT, Baseline, BaselineFactory
from lit_metarl.nn.policies import Activation, glorot_mlp
from lit_metarl.types import Params, Sizes, Trajectories, require


@dataclass(frozen=True)
class MetaLearned(BaselineFactory):
    """V_φ(s, t) by a network whose initial parameters φ are meta-learned over tasks (Liu et al. 2019, Algorithm 1).

    Attributes:
        hidden: widths of the hidden layers.
        activation: ``tanh`` or ``relu``.
        inner_lr: α' of the steps that adapt φ to one half of a task's trajectories; the loss is a mean over steps, of
            returns with mean 0 and deviation 1.
        inner_steps: number of these steps.
        lr: β', Adam's step size for φ.
        updates: meta-updates on every batch, after it was used.
        first_order: ignore how the adapted parameters depend on φ, as the released code does.
    """

    hidden: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    inner_lr: float = 0.1
    inner_steps: int = 1
    lr: float = 1e-2
    updates: int = 2
    first_order: bool = False

    def __post_init__(self) -> None:
        for key in ("inner_lr", "lr"):
            require(getattr(self, key) > 0, f"baseline.{key}", getattr(self, key), "it must be positive")
        for key in ("inner_steps", "updates"):
            require(getattr(self, key) >= 1, f"baseline.{key}", getattr(self, key), "it must be at least 1")

    def build(self, sizes: Sizes) -> Baseline:
        return MetaBaseline(self, sizes)


class Half(NamedTuple):
    """Every other trajectory of one task, n of them."""

    x: Tensor  # [n, T, O + 1]
    returns: Tensor  # [n, T]
    mask: Tensor  # [n, T]

    def error(self, value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Mean squared error of ``value [n, T]`` as a prediction of (returns − mean)/scale (Eq. 12)."""
        target = (self.returns - mean) / scale
        return (self.mask * (value - target).square()).sum() / self.mask.sum().clamp(min=1.0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the returns, and their standard deviation or 1 where they are equal."""
        count = self.mask.sum().clamp(min=1.0)
        mean = (self.mask * self.returns).sum() / count
        std = ((self.mask * (self.returns - mean).square()).sum() / count).sqrt()
        rounding = 8 * torch.finfo(mean.dtype).eps * mean.abs()
        return mean, torch.where(std > rounding, std, 1.0)


class MetaBaseline(Baseline):
    """The module of a :class:`MetaLearned` baseline; its parameters are φ.

    Args:
        settings: of the factory.
        sizes: of the observation; time is one input more.
    """

    def __init__(self, settings: MetaLearned, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings
        self.steps = settings.updates
        self.net: nn.Module = glorot_mlp([sizes.obs + 1, *settings.hidden, 1], settings.activation)

    @torch.no_grad()
    def predict(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """b(s_t) ``[B, N, T]`` by the φ that the other half adapted, in the units of ``returns``."""

        def one_task(params: Params, x: Tensor, returns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            values = []
            for seen, other in _both_ways(x, returns, mask):
                mean, scale = seen.moments()
                values.append(other.mask * (mean + scale * self._value(self._adapted(params, seen), other.x)))
            return values[1], values[0]

        inputs = _inputs(trajectories, returns)
        value = torch.zeros_like(returns)
        each = vmap(one_task, (None, 0, 0, 0))(self._params(), inputs, returns, trajectories.mask)
        value[:, ::2], value[:, 1::2] = each
        return value

    def loss(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """Mean over tasks of L(φ_A; B) + L(φ_B; A), through the adaptation steps; scalar."""

        def one_task(params: Params, x: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
            losses = [
                other.error(self._value(self._adapted(params, seen), other.x), *seen.moments())
                for seen, other in _both_ways(x, returns, mask)
            ]
            return torch.stack(losses).sum()

        inputs = _inputs(trajectories, returns)
        return vmap(one_task, (None, 0, 0, 0))(self._params(), inputs, returns, trajectories.mask).mean()

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with step size β'."""
        return torch.optim.Adam(self.parameters(), lr=self.settings.lr)

    def _params(self) -> Params:
        return dict(self.net.named_parameters())

    def _value(self, params: Params, x: Tensor) -> Tensor:
        value: Tensor = functional_call(self.net, params, (x,)).squeeze(-1)
        return value.to(x.dtype)

    def _adapted(self, params: Params, half: Half) -> Params:
        """φ after the steps on one half."""
        mean, scale = half.moments()
        for _ in range(self.settings.inner_steps):
            gradient = grad(lambda params: half.error(self._value(params, half.x), mean, scale))(params)
            if self.settings.first_order:
                gradient = {name: g.detach() for name, g in gradient.items()}
            params = {name: value - self.settings.inner_lr * gradient[name] for name, value in params.items()}
        return params


def _both_ways(x: Tensor, returns: Tensor, mask: Tensor) -> tuple[tuple[Half, Half], tuple[Half, Half]]:
    """Trajectories 0, 2, 4 … of one task and 1, 3, 5 …, then the other way round: the half to adapt on comes first."""
    even, odd = (Half(x[first::2], returns[first::2], mask[first::2]) for first in range(2))
    return (even, odd), (odd, even)


def _inputs(trajectories: Trajectories, returns: Tensor) -> Tensor:
    """Observations clipped to ±10, and the time from 0 to 1, ``[B, N, T, O + 1]``."""
    time = torch.linspace(0.0, 1.0, returns.shape[-1], dtype=returns.dtype, device=returns.device)
    obs = trajectories.obs.to(returns.dtype).clamp(-OBS_LIMIT, OBS_LIMIT)
    return torch.cat([obs, time.expand(returns.shape).unsqueeze(-1)], dim=-1)
