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
from lit_metarl.types import Params, Sizes, Trajectories, require, require_positive


@dataclass(frozen=True)
class MetaLearned(BaselineFactory):
    """V_φ(s, t) by a network whose initial parameters φ are meta-learned over tasks (Liu et al. 2019, Algorithm 1).

    Step sizes are not in the paper's text. Its code takes an epoch of plain steps of 2e-2 by minibatches of 100, then
    one of 1e-3 on φ, five times over on every batch of every task.

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
        require_positive("baseline", inner_lr=self.inner_lr, lr=self.lr)
        for key in ("inner_steps", "updates"):
            require(getattr(self, key) >= 1, f"baseline.{key}", getattr(self, key), "it must be at least 1")

    def build(self, sizes: Sizes) -> Baseline:
        return MetaBaseline(self, sizes)


class Halves(NamedTuple):
    """Trajectories 0, 2, 4 … of every task, then 1, 3, 5 … of every task: H = 2 B halves of n trajectories each.

    Where a task has an odd number of trajectories, the last of its second half has a mask of 0.
    """

    x: Tensor  # [H, n, T, O + 1]; observations clipped to ±10, and the time from 0 to 1
    returns: Tensor  # [H, n, T]
    mask: Tensor  # [H, n, T]

    @classmethod
    def of(cls, trajectories: Trajectories, returns: Tensor) -> Halves:
        """The halves of ``trajectories [B, N, T, ...]``, and their ``returns [B, N, T]``."""
        time = torch.linspace(0.0, 1.0, returns.shape[-1], dtype=returns.dtype, device=returns.device)
        obs = trajectories.obs.to(returns.dtype).clamp(-OBS_LIMIT, OBS_LIMIT)
        x = torch.cat([obs, time.expand(returns.shape).unsqueeze(-1)], dim=-1)
        return cls(*(_in_halves(value) for value in (x, returns, trajectories.mask)))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the returns of every half, and their standard deviation or 1 where they are equal, ``[H, 1, 1]``."""
        count = self.mask.sum((-2, -1), keepdim=True).clamp(min=1.0)
        mean = (self.mask * self.returns).sum((-2, -1), keepdim=True) / count
        std = ((self.mask * (self.returns - mean).square()).sum((-2, -1), keepdim=True) / count).sqrt()
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
        halves = Halves.of(trajectories, returns)
        value, mean, scale = self._by_other_half(halves)
        even, odd = (halves.mask * (mean + scale * value)).chunk(2)
        return torch.stack([even, odd], dim=2).flatten(1, 2)[:, : returns.shape[1]]

    def loss(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """Mean over tasks of L(φ_A; B) + L(φ_B; A), through the adaptation steps; scalar."""
        halves = Halves.of(trajectories, returns)
        value, mean, scale = self._by_other_half(halves)
        return 2.0 * _error(value, (halves.returns - mean) / scale, halves.mask).mean()

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with step size β'."""
        return torch.optim.Adam(self.parameters(), lr=self.settings.lr)

    def _params(self) -> Params:
        return dict(self.net.named_parameters())

    def _value(self, params: Params, x: Tensor) -> Tensor:
        value: Tensor = functional_call(self.net, params, (x,)).squeeze(-1)
        return value.to(x.dtype)

    def _by_other_half(self, halves: Halves) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions for every half by the φ that the task's other half adapted, and that other half's moments.

        Predictions ``[H, n, T]`` are in deviations from the mean; mean and deviation are ``[H, 1, 1]``.
        """
        mean, scale = halves.moments()
        adapted = vmap(self._adapted, (None, 0, 0, 0))(
            self._params(), halves.x, (halves.returns - mean) / scale, halves.mask
        )
        value = vmap(self._value)({name: _swapped(p) for name, p in adapted.items()}, halves.x)
        return value, _swapped(mean), _swapped(scale)

    def _adapted(self, params: Params, x: Tensor, target: Tensor, mask: Tensor) -> Params:
        """φ after the steps on one half, ``[n, T, ...]``."""
        for _ in range(self.settings.inner_steps):
            gradient = grad(lambda params: _error(self._value(params, x), target, mask))(params)
            if self.settings.first_order:
                gradient = {name: g.detach() for name, g in gradient.items()}
            params = {name: value - self.settings.inner_lr * gradient[name] for name, value in params.items()}
        return params


def _in_halves(value: Tensor) -> Tensor:
    """``[B, N, ...]`` → ``[2 B, ⌈N/2⌉, ...]``: every other trajectory of all tasks, then those between them."""
    even, odd = value[:, ::2], value[:, 1::2]
    if odd.shape[1] < even.shape[1]:
        odd = torch.cat([odd, torch.zeros_like(even[:, :1])], dim=1)
    return torch.cat([even, odd])


def _swapped(value: Tensor) -> Tensor:
    """``[2 B, ...]`` with the value of a task's other half in place of each."""
    return value.roll(len(value) // 2, 0)


def _error(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of ``value [..., n, T]`` (Eq. 12), of every half ``[...]``."""
    return (mask * (value - target).square()).sum((-2, -1)) / mask.sum((-2, -1)).clamp(min=1.0)
