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
    lr: float = 1e-3
    updates: int = 5
    first_order: bool = False

    def __post_init__(self) -> None:
        for key in ("inner_lr", "lr"):
            require(getattr(self, key) > 0, f"baseline.{key}", getattr(self, key), "it must be positive")
        for key in ("inner_steps", "updates"):
            require(getattr(self, key) >= 1, f"baseline.{key}", getattr(self, key), "it must be at least 1")

    def build(self, sizes: Sizes) -> Baseline:
        return MetaBaseline(self, sizes)


class Half(NamedTuple):
    """A task's trajectories, weighted so that one half of them counts."""

    weight: Tensor  # [N, T] 1 at the half's valid steps
    mean: Tensor  # of the half's returns
    scale: Tensor  # their standard deviation; 1 where they are equal


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

        def one_task(params: Params, x: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
            halves = self._halves(returns, mask)
            each = [self._value(self._adapted(params, x, returns, half), x) for half in halves]
            values = [half.mean + half.scale * value for half, value in zip(halves, each, strict=True)]
            return halves[1].weight * values[0] + halves[0].weight * values[1]

        inputs = _inputs(trajectories, returns)
        return vmap(one_task, (None, 0, 0, 0))(self._params(), inputs, returns, trajectories.mask)

    def loss(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """Mean over tasks of L(φ_A; B) + L(φ_B; A), through the adaptation steps; scalar."""

        def one_task(params: Params, x: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
            first, second = self._halves(returns, mask)
            losses = [
                self._error(self._adapted(params, x, returns, one), x, returns, one, other.weight)
                for one, other in ((first, second), (second, first))
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

    def _halves(self, returns: Tensor, mask: Tensor) -> tuple[Half, Half]:
        """Trajectories 0, 2, 4 … and 1, 3, 5 … of one task."""
        even = (torch.arange(len(mask), device=mask.device) % 2 == 0).to(mask.dtype).unsqueeze(-1)
        return _half(returns, mask * even), _half(returns, mask * (1 - even))

    def _error(self, params: Params, x: Tensor, returns: Tensor, units: Half, weight: Tensor) -> Tensor:
        """Mean squared error on the steps of ``weight``, in the units of the half that adapted (Eq. 12)."""
        target = (returns - units.mean) / units.scale
        return (weight * (self._value(params, x) - target).square()).sum() / weight.sum().clamp(min=1.0)

    def _adapted(self, params: Params, x: Tensor, returns: Tensor, half: Half) -> Params:
        """φ after the steps on one half."""
        for _ in range(self.settings.inner_steps):
            gradient = grad(self._error)(params, x, returns, half, half.weight)
            if self.settings.first_order:
                gradient = {name: g.detach() for name, g in gradient.items()}
            params = {name: value - self.settings.inner_lr * gradient[name] for name, value in params.items()}
        return params


def _half(returns: Tensor, weight: Tensor) -> Half:
    count = weight.sum().clamp(min=1.0)
    mean = (weight * returns).sum() / count
    std = ((weight * (returns - mean).square()).sum() / count).sqrt()
    rounding = 8 * torch.finfo(returns.dtype).eps * mean.abs()
    return Half(weight, mean, torch.where(std > rounding, std, 1.0))


def _inputs(trajectories: Trajectories, returns: Tensor) -> Tensor:
    """Observations clipped to ±10, and the time from 0 to 1, ``[B, N, T, O + 1]``."""
    time = torch.linspace(0.0, 1.0, returns.shape[-1], dtype=returns.dtype, device=returns.device)
    obs = trajectories.obs.to(returns.dtype).clamp(-OBS_LIMIT, OBS_LIMIT)
    return torch.cat([obs, time.expand(returns.shape).unsqueeze(-1)], dim=-1)
