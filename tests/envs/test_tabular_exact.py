"""Exact values and derivatives of finite MDPs: by hand, by finite differences, and by listing all trajectories."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_metarl.envs.tabular import TabularMDP, random_mdp
from lit_metarl.envs.tabular_exact import all_trajectories, exact_derivatives, exact_value, state_values


def random_case(num_terminal=0, seed=0):
    mdp = random_mdp(3, 2, seed, num_terminal=num_terminal)
    return mdp, torch.as_tensor(np.random.default_rng(seed).normal(size=(3, 2)))


def test_a_bandit_by_hand():
    """One state, r = (1, 0), π = (p, 1 − p) with p = ¾: J = p·(1 + γ + …), ∂J/∂θ_0 = p(1 − p)·(…), and
    ∂²J/∂θ_0² = p(1 − p)(1 − 2p)·(…), as p is the logistic function of θ_0 − θ_1.
    """
    bandit = TabularMDP(np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), np.ones(1))
    theta = torch.tensor([[np.log(3.0), 0.0]])
    for horizon, total in ((1, 1.0), (3, 1.75), (None, 2.0)):  # γ = ½
        value, gradient, hessian = exact_derivatives(bandit, theta, 0.5, horizon)
        assert_close(float(value), 0.75 * total)
        assert_close(gradient, torch.tensor([[3 / 16, -3 / 16]]).double() * total)
        assert_close(float(hessian[0, 0, 0, 0]), -3 / 32 * total)


def test_a_chain_that_ends_by_hand():
    """From state 0 to the terminal one with probability ½ (r = 1): V_t = Σ (γ/2)^k over the steps left."""
    chain = TabularMDP(
        np.array([[[0.5, 0.5]], [[0.0, 1.0]]]),
        np.array([[1.0], [100.0]]),
        np.array([1.0, 0.0]),
        np.array([False, True]),
    )
    theta = torch.zeros(2, 1).double()
    expected = torch.tensor([[1.25, 0.0], [1.0, 0.0], [0.0, 0.0]]).double()
    assert_close(state_values(chain, theta, 0.5, 2), expected)
    assert_close(state_values(chain, theta, 0.5), torch.tensor([4 / 3, 0.0]).double())
    assert_close(state_values(chain, theta, 1.0), torch.tensor([2.0, 0.0]).double())  # ends by itself


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_a_long_horizon_is_an_infinite_one(num_terminal):
    mdp, theta = random_case(num_terminal)
    for long, infinite in zip(exact_derivatives(mdp, theta, 0.8, 200), exact_derivatives(mdp, theta, 0.8), strict=True):
        assert_close(long, infinite, rtol=0, atol=1e-12)


@pytest.mark.parametrize("horizon", [4, None])
def test_derivatives_equal_finite_differences(horizon):
    mdp, theta = random_case(1)
    _, gradient, hessian = exact_derivatives(mdp, theta, 0.9, horizon)
    assert_close(hessian.reshape(6, 6), hessian.reshape(6, 6).T)
    for index in range(6):
        step = 1e-5 * torch.eye(6).double()[index].reshape(3, 2)
        ends = [exact_derivatives(mdp, theta + sign * step, 0.9, horizon) for sign in (1, -1)]
        assert_close((ends[0].value - ends[1].value) / 2e-5, gradient.flatten()[index], rtol=0, atol=1e-9)
        slope = (ends[0].gradient - ends[1].gradient) / 2e-5
        assert_close(slope, hessian.reshape(6, 3, 2)[index], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_all_trajectories(num_terminal):
    mdp, theta = random_case(num_terminal)
    policy = torch.softmax(theta, -1)
    state, action, reward, mask, probability = all_trajectories(mdp, policy.numpy(), 4)
    assert_close(float(probability.sum()), 1.0)
    assert_close(
        float(probability @ (reward @ (0.9 ** torch.arange(4).double()))), float(exact_value(mdp, theta, 0.9, 4))
    )
    rows = torch.cat([state, action, mask.long()], 1)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    # Without an end: A actions at each step, S successors but for the last. With it: sums over the length.
    alive, successors = 3 - num_terminal, 3
    ended = [2 * (2 * alive) ** (length - 1) for length in (1, 2, 3)] if num_terminal else []
    assert len(rows) == sum(ended) + 2 * (2 * (alive if num_terminal else successors)) ** 3
    padded = mask == 0
    assert padded.any() == bool(num_terminal)
    assert (state[padded] == 0).all()
    assert (action[padded] == 0).all()
    assert (reward[padded] == 0).all()
    assert ((mask[:, 1:] - mask[:, :-1]) <= 0).all()
    # One of them, step by step.
    likelihood = mdp.start[state[5, 0]]
    for t in range(int(mask[5].sum())):
        likelihood *= float(policy[state[5, t], action[5, t]])
        if t + 1 < 4 and mask[5, t + 1]:
            likelihood *= mdp.transition[state[5, t], action[5, t], state[5, t + 1]]
        elif t + 1 < 4:
            likelihood *= mdp.transition[state[5, t], action[5, t], 2]
    assert likelihood == pytest.approx(float(probability[5]))


def test_several_first_states():
    mdp, theta = random_case()
    several = TabularMDP(mdp.transition, mdp.reward, np.array([0.2, 0.5, 0.3]))
    every = all_trajectories(several, torch.softmax(theta, -1).numpy(), 2)
    for first, share in enumerate((0.2, 0.5, 0.3)):
        assert float(every.probability[every.state[:, 0] == first].sum()) == pytest.approx(share)
    total = every.probability @ every.reward.sum(-1)
    assert float(total) == pytest.approx(float(exact_value(several, theta, 1.0, 2)))
