"""Exact quality of estimates against direct computation, and derivatives by way of log-ratios."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import grad, jacrev
from torch.testing import assert_close

from lit_metarl.diagnostics.enumeration import (
    correlation,
    enumerate_round,
    log_ratio_derivatives,
    policy_derivatives,
    quality_of,
)
from lit_metarl.envs.tabular import random_mdp
from lit_metarl.estimators import TMAML, DiCE, LikelihoodRatio
from lit_metarl.reports.studies.tabular import ESTIMATES, simulate


def test_quality_by_hand():
    # The mean of (4, 0) and (0, 4), each with probability 1/2, is (2, 2), twice the best multiple of (1, 1).
    # Off (2, 0) by (0, 2); nearest to it at (1, 1), off by (1, −1). Every entry deviates by 2.
    estimates, probability = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0.5, 0.5])
    assert quality_of(estimates, probability, torch.tensor([2.0, 0.0])) == pytest.approx((1.0, 0.5**0.5, 8.0))
    assert quality_of(estimates, probability, torch.tensor([1.0, 1.0])) == pytest.approx((1.0, 0.0, 8.0))
    assert quality_of(0 * estimates, probability, torch.tensor([1.0, 1.0])) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("inner", [DiCE(), LikelihoodRatio(), TMAML(eq7_printed=True)], ids=repr)
def test_bias_and_variance_equal_a_loop_over_trajectories(inner):
    theta, behaviour = torch.tensor([[[0.3, -0.2], [0.1, 0.9]], [[0.0, 0.5], [-1.0, 0.2]]]).double()
    world = enumerate_round(random_mdp(2, 2, 0), theta, behaviour, horizon=2, gamma=0.9)
    every = []
    for m in range(len(world.probability)):
        data = type(world.signals)(*(part[m : m + 1] for part in world.signals))
        here = world.state[m], world.action[m]
        one = lambda x, here=here, data=data: inner.per_trajectory(  # noqa: E731
            torch.log_softmax(x, -1)[here][None], data, 0.9, True
        ).sum()
        every.append((grad(one)(theta), jacrev(grad(one))(theta)))
    p = world.probability.numpy()
    for part, quality in enumerate(world.qualities(inner, 0.9)):
        truth = world.exact[part + 1]
        rows = np.stack([pair[part].numpy().ravel() for pair in every])
        mean = np.average(rows, axis=0, weights=p)
        error = np.linalg.norm(mean - truth.numpy().ravel()) / float(truth.norm())
        assert quality.bias == pytest.approx(error, abs=1e-12)
        assert quality.variance == pytest.approx(np.average((rows - mean) ** 2, axis=0, weights=p).sum())


def test_derivatives_by_way_of_log_ratios_are_those_of_the_policy():
    """Against the mean estimate of all trajectories, differentiated in θ directly."""
    mdp, rng = random_mdp(4, 3, 0), np.random.default_rng(0)
    data, theta = simulate(mdp, 7, 5, 0.8, rng), torch.as_tensor(rng.normal(size=(4, 3)))

    for estimate in ESTIMATES.values():

        def mean(table, estimate=estimate):
            here = data.state[:, :-1]
            log_ratio = torch.log_softmax(table, -1)[here, data.action] - np.log(1 / 3)
            value = data.critic[data.state]
            return estimate(log_ratio, data.reward, value[:, :-1], value[:, -1], 0.8).mean()

        gradient, hessian = policy_derivatives(theta, data, *log_ratio_derivatives(estimate, theta, data, 0.8))
        assert_close(gradient, grad(mean)(theta))
        assert_close(hessian, jacrev(grad(mean))(theta))
        assert hessian.abs().max() > 1e-3


def test_correlation():
    x = torch.tensor([[1.0, 2.0], [4.0, -3.0]]).double()
    assert correlation(2 * x + 5, x) == pytest.approx(1)
    assert correlation(-x, x) == pytest.approx(-1)
    y = torch.tensor([[0.0, 1.0], [1.0, 3.0]]).double()
    assert correlation(x, y) == pytest.approx(np.corrcoef(x.flatten(), y.flatten())[0, 1])
    assert correlation(torch.zeros_like(x), x) == 0
