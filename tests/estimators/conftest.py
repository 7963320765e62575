"""Worlds small enough to list every trajectory, and the moments of an estimator's derivatives in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap

from lit_metarl.envs.tabular import TabularMDP, random_mdp
from lit_metarl.envs.tabular_exact import all_trajectories, exact_derivatives, state_values
from lit_metarl.estimators import gae
from lit_metarl.types import Signals


class Moments(NamedTuple):
    """Of value, gradient and Hessian."""

    bias: tuple[float, float, float]  # greatest entry of |E[estimate] − truth|
    variance: tuple[float, float, float]  # summed over entries


class World:
    """All trajectories of a behaviour policy in a finite MDP; fields of ``round`` are [M, 1, T], one a batch."""

    def __init__(self, mdp: TabularMDP, theta, behaviour, horizon: int, gamma: float) -> None:
        self.mdp, self.theta, self.gamma, self.horizon = mdp, theta, gamma, horizon
        self.all = all_trajectories(mdp, torch.softmax(behaviour, -1).numpy(), horizon)
        self.exact = exact_derivatives(mdp, theta, gamma, horizon)
        self.values = state_values(mdp, behaviour, gamma, horizon)  # [T + 1, S], of the policy that acted
        self.behaviour_value = float(torch.as_tensor(mdp.start) @ self.values[0])
        mask = self.all.mask
        value = self.values[torch.arange(horizon), self.all.state] * mask
        log_prob = torch.log_softmax(behaviour, -1)[self.all.state, self.all.action] * mask
        advantage = gae(self.all.reward, value, mask, gamma, 1.0)
        self.signals = Signals(*(part[:, None] for part in (log_prob, self.all.reward, value, advantage, mask)))

    def derivatives(self, estimate, signals=None):
        """Value [M], gradient [M, S, A], Hessian [M, S, A, S, A] of ``estimate(theta, state, action, round)`` → [1]."""

        def scalar(theta, state, action, *data):
            return estimate(theta, state[None], action[None], Signals(*data)).sum()

        data = self.all.state, self.all.action, *(signals or self.signals)
        axes = (None, *[0] * 8)
        return [vmap(each, axes)(self.theta, *data) for each in (scalar, jacrev(scalar), jacrev(jacrev(scalar)))]

    def derivatives_of(self, surrogate):
        """The same of ``surrogate(log_prob, round)``."""
        return self.derivatives(lambda theta, s, a, data: surrogate(torch.log_softmax(theta, -1)[s, a], data))

    def strategy(self, inner, discounted=True):
        """An inner surrogate as a function of log-probabilities and data."""
        return lambda log_prob, data: inner.per_trajectory(log_prob, data, self.gamma, discounted)

    def mean(self, parts):
        return [torch.einsum("m,m...->...", self.all.probability, part) for part in parts]

    def moments(self, parts) -> Moments:
        """Of per-trajectory value, gradient and Hessian."""
        means = self.mean(parts)
        bias = [float((mean - exact).abs().max()) for mean, exact in zip(means, self.exact, strict=True)]
        spread = self.mean([(part - mean).square() for part, mean in zip(parts, means, strict=True)])
        return Moments(tuple(bias), tuple(float(part.sum()) for part in spread))


def small_world(policy: str, episodes: str) -> World:
    """Two states that go on (and one that ends), two actions, three steps; γ = 0.9."""
    ends_early = episodes == "ends_early"
    rng = np.random.default_rng(2)
    mdp = random_mdp(2 + ends_early, 2, seed=9, num_terminal=int(ends_early))
    theta, other = (torch.as_tensor(rng.normal(size=(mdp.num_states, 2))) for _ in range(2))
    return World(mdp, theta, theta if policy == "on" else other, horizon=3, gamma=0.9)


@pytest.fixture(params=["full", "ends_early"], scope="session")
def on_policy(request) -> World:
    return small_world("on", request.param)


@pytest.fixture(params=["full", "ends_early"], scope="session")
def off_policy(request) -> World:
    return small_world("off", request.param)


@pytest.fixture(params=["on-full", "on-ends_early", "off-full", "off-ends_early"], scope="session")
def world(request) -> World:
    return small_world(*request.param.split("-"))


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    """For worlds with settings of their own."""
    return World
