"""The fitted gradient against the regression of all pairs, written out, and its agreement on numbers by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lit_metarl.diagnostics.critic_gradients import agreement, chance_above, fitted_gradient


def test_the_fit_is_the_regression_of_all_pairs() -> None:
    torch.manual_seed(0)
    action, value = torch.randn(4, 7, 3, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    fit = fitted_gradient(action, value)
    for state in range(4):
        pairs = list(itertools.combinations(range(7), 2))
        x = np.array([(action[state, i] - action[state, j]).numpy() for i, j in pairs])
        y = np.array([float(value[state, i] - value[state, j]) for i, j in pairs])
        expected, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
        np.testing.assert_allclose(fit.gradient[state], expected, rtol=1e-10)
        plain = 1.0 - float(residual[0]) / float(y @ y)
        assert float(fit.r_squared[state]) == pytest.approx(1.0 - (1.0 - plain) * 6 / 3)


def test_a_plane_is_found_exactly_and_symmetric_curvature_is_not_seen() -> None:
    torch.manual_seed(0)
    action, gradient = torch.randn(2, 5, 2, dtype=torch.float64), torch.tensor([[3.0, -1.0], [0.0, 2.0]]).double()
    fit = fitted_gradient(action, torch.einsum("ska,sa->sk", action, gradient) + 7.0)
    torch.testing.assert_close(fit.gradient, gradient)
    torch.testing.assert_close(fit.r_squared, torch.ones(2).double())
    around = torch.tensor([[[0.0], [1.0], [-1.0]]]).double()
    fit = fitted_gradient(around, 2.0 * around[..., 0] + 5.0 * around[..., 0] ** 2)
    torch.testing.assert_close(fit.gradient, torch.tensor([[2.0]]).double())
    # deviations of (0, 7, 3) from 10/3: 74/3 in all, 50/3 of them left, with one of two degrees of freedom
    assert float(fit.r_squared) == pytest.approx(1.0 - (50 / 3) / (74 / 3) * 2)
    assert fitted_gradient(around, torch.zeros(1, 3)).r_squared.isnan().all()


def test_noise_explains_nothing() -> None:
    torch.manual_seed(0)
    fit = fitted_gradient(torch.randn(4000, 15, 6), torch.randn(4000, 15))
    assert float(fit.r_squared.mean()) == pytest.approx(0.0, abs=0.02)  # 6/14 if it were not adjusted
    assert fitted_gradient(torch.randn(4, 7, 6), torch.randn(4, 7)).r_squared.isnan().all()  # a plane through all


def test_fewer_actions_than_directions_have_the_smallest_solution() -> None:
    torch.manual_seed(0)
    action, value = 0.3 * torch.randn(4, 15, 17), 50.0 * torch.randn(4, 15).double()  # a humanoid's
    fit = fitted_gradient(action, value)
    a, r = (x.double() - x.double().mean(1, keepdim=True) for x in (action, value))
    smallest = (torch.linalg.pinv(a, rtol=1e-10) @ r.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(fit.gradient, smallest, rtol=1e-8, atol=1e-8)


def test_agreement_by_hand() -> None:
    gradient = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    other = torch.tensor([[5.0, 0.0], [1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])  # cosines 1, 0.71, 0, −1
    found = agreement(gradient, other)
    assert float(found.cosine) == pytest.approx((1 + 0.5**0.5 - 1) / 4)
    assert float(found.above_quarter) == 0.5
    assert float(found.above_three_quarters) == 0.25


@pytest.mark.parametrize("directions", [1, 2, 3, 6, 17])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.75])
def test_the_share_of_random_directions(directions: int, threshold: float) -> None:
    drawn = torch.randn(400_000, directions, dtype=torch.float64, generator=torch.Generator().manual_seed(directions))
    share = (drawn[:, 0] / drawn.norm(dim=1) > threshold).double().mean()
    assert chance_above(threshold, directions) == pytest.approx(float(share), abs=0.004)


@pytest.mark.parametrize(("threshold", "share"), [(0.25, 0.375), (0.75, 0.125)])
def test_the_cosine_of_three_dimensions_is_uniform(threshold: float, share: float) -> None:
    assert chance_above(threshold, 3) == pytest.approx(share, abs=1e-5)
