"""Gradients and Hessians of estimates in finite MDPs: exact bias and variance, and agreement with the truth.

Estimates are those of Tang et al. 2021, "Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy
Evaluation", Eq. 3–8. Where all outcomes are listed with their probabilities there is no sampling error.

π_θ is the softmax of a table θ. Axes: ``M`` outcomes, ``N`` trajectories, ``T`` steps, ``S`` states, ``A`` actions;
float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lit_metarl.envs.tabular import TabularMDP
from lit_metarl.envs.tabular_exact import Derivatives, all_trajectories, exact_derivatives, state_values
from lit_metarl.estimators import InnerSurrogate, gae
from lit_metarl.types import Signals

CHUNK = 500  # trajectories differentiated together; more only need more memory

Estimate = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""Estimate from log-ratio ``[1, T]``, reward ``[1, T]``, value ``[1, T]``, bootstrap ``[1]`` and γ; returns ``[1]``."""


class Quality(NamedTuple):
    """Exact errors of an estimate of some derivative.

    Attributes:
        bias: ‖E[estimate] − truth‖ / ‖truth‖.
        direction: the bias that is left at the best scale of E[estimate], the sine of its angle to the truth.
        variance: summed over entries.
    """

    bias: float
    direction: float
    variance: float


def quality_of(estimates: Tensor, probability: Tensor, truth: Tensor) -> Quality:
    """Errors of the estimates ``[M, ...]``, which come with ``probability`` ``[M]``, of ``truth`` ``[...]``."""
    mean = torch.tensordot(probability, estimates, 1)
    scale = ((truth * mean).sum() / mean.square().sum()).nan_to_num()  # a mean of 0 has no best scale
    bias, direction = (mean - truth).norm() / truth.norm(), (truth - scale * mean).norm() / truth.norm()
    variance = torch.tensordot(probability, (estimates - mean).square(), 1).sum()
    return Quality(float(bias), float(direction), float(variance))


class EnumeratedRound(NamedTuple):
    """All trajectories ``[M]`` of a behaviour policy as the data of one round, and what they are to estimate."""

    state: Tensor  # [M, T] int
    action: Tensor  # [M, T] int
    signals: Signals  # fields [M, T]
    probability: Tensor  # [M]
    theta: Tensor  # [S, A] of the target policy
    exact: Derivatives

    def qualities(self, inner: InnerSurrogate, gamma: float) -> tuple[Quality, Quality]:
        """Errors of gradient ``[S, A]`` and Hessian ``[S, A, S, A]`` of ``inner`` from one trajectory per estimate."""

        def surrogate(theta: Tensor, state: Tensor, action: Tensor, *data: Any) -> Tensor:
            log_prob = theta.log_softmax(-1)[state, action]
            signals = Signals(*data).map(lambda part: part[None])
            return inner.per_trajectory(log_prob[None], signals, gamma, discounted=True)[0]

        def errors(derivative: Callable[..., Tensor], truth: Tensor) -> Quality:
            each = vmap(derivative, (None, *[0] * (2 + len(self.signals))))(
                self.theta, self.state, self.action, *self.signals
            )
            return quality_of(each, self.probability, truth)

        gradient = jacrev(surrogate)
        # Reverse over reverse: forward mode would be as fast, but its first use compiles TorchScript.
        return errors(gradient, self.exact.gradient), errors(jacrev(gradient), self.exact.hessian)


def enumerate_round(mdp: TabularMDP, theta: Tensor, behaviour: Tensor, horizon: int, gamma: float) -> EnumeratedRound:
    """All trajectories of the softmax policy ``behaviour`` ``[S, A]`` as data for ``theta``, exact values as critic.

    Advantages are reward-to-go − value, so that no estimator owes its bias to them.
    """
    state, action, reward, mask, probability = all_trajectories(mdp, behaviour.softmax(-1).numpy(), horizon)
    value = mask * state_values(mdp, behaviour, gamma, horizon)[torch.arange(horizon), state]
    log_prob = mask * behaviour.log_softmax(-1)[state, action]
    data = Signals(log_prob, reward, value, gae(reward, value, mask, gamma, gae_lambda=1.0), mask)
    return EnumeratedRound(state, action, data, probability, theta, exact_derivatives(mdp, theta, gamma, horizon))


class SampledTrajectories(NamedTuple):
    """Trajectories ``[N]`` of the uniform policy, with a critic ``[S]``."""

    state: Tensor  # [N, T + 1] int
    action: Tensor  # [N, T] int
    reward: Tensor  # [N, T]
    critic: Tensor  # [S]

    def first(self, num: int) -> SampledTrajectories:
        """The first ``num`` trajectories ``[num]``."""
        return SampledTrajectories(self.state[:num], self.action[:num], self.reward[:num], self.critic)


def log_ratio_derivatives(
    estimate: Estimate, theta: Tensor, data: SampledTrajectories, gamma: float
) -> tuple[Tensor, Tensor]:
    """Derivatives of each trajectory's estimate by its own log-ratios: gradient ``[N, T]``, Hessian ``[N, T, T]``.

    T of them, not S·A as of θ, and the sums over trajectories of any number N follow from them.
    """

    def scalar(log_ratio: Tensor, reward: Tensor, value: Tensor, bootstrap: Tensor) -> Tensor:
        return estimate(log_ratio[None], reward[None], value[None], bootstrap[None], gamma)[0]

    here = data.state[:, :-1]
    log_ratio = theta.log_softmax(-1)[here, data.action] + math.log(theta.shape[1])  # log π − log(1/A)
    values = data.critic[data.state]
    parts = log_ratio, data.reward, values[:, :-1], values[:, -1]
    gradient = jacrev(scalar)
    return vmap(gradient, chunk_size=CHUNK)(*parts), vmap(jacrev(gradient), chunk_size=CHUNK)(*parts)


def policy_derivatives(
    theta: Tensor, data: SampledTrajectories, gradient: Tensor, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over N of the derivatives by θ, from those by log-ratios: gradient ``[S, A]``, Hessian ``[S, A, S, A]``.

    Summed by visited pair they are the first two derivatives of a function of the table log π ``[S, A]``; its
    quadratic model there has the same derivatives by θ.
    """
    size, num = theta.numel(), len(gradient)
    pair = data.state[:, :-1] * theta.shape[1] + data.action  # [N, T] index into the flat table
    pairs = pair[:, :, None] * size + pair[:, None, :]
    slope = torch.zeros(size, dtype=theta.dtype).index_add(0, pair.flatten(), gradient.flatten()) / num
    curvature = torch.zeros(size**2, dtype=theta.dtype).index_add(0, pairs.flatten(), hessian.flatten()) / num
    centre = theta.log_softmax(-1).flatten()

    def model(table: Tensor) -> Tensor:
        step = table.log_softmax(-1).flatten() - centre
        return slope @ step + step @ curvature.reshape(size, size) @ step / 2

    return jacrev(model)(theta), jacrev(jacrev(model))(theta)


def correlation(estimate: Tensor, truth: Tensor) -> float:
    """Pearson's correlation of all entries of two tensors ``[...]``; 0 where one of them is constant."""
    x, y = (part.flatten() - part.mean() for part in (estimate, truth))
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else 0.0
