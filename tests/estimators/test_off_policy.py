"""Off-policy evaluation: by hand, against the sums as they are written, and its identities."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch.func import grad
from torch.testing import assert_close

from lit_metarl.estimators import (
    doubly_robust,
    likelihood_ratio,
    log_importance_ratio,
    reward_to_go,
    step_wise_is,
    taypo,
    truncated_doubly_robust,
)

ONES = torch.ones(1, 3, dtype=torch.float64)


def tensors(*rows):
    return [torch.tensor([row], dtype=torch.float64) for row in rows]


def batch(num=4, steps=5, seed=0):
    """Log-ratio, reward, value, mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    log_ratio, reward, value = (torch.randn(num, steps, dtype=torch.float64, generator=generator) for _ in range(3))
    length = 1 + torch.arange(num) * steps // num
    return 0.5 * log_ratio, reward, value, (torch.arange(steps) < length[:, None]).double()


def test_three_steps_by_hand():
    ratio, reward, value = tensors([2.0, 0.5, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 2.0])
    log_ratio = ratio.log()
    # γ = 0.5, products of ratios (2, 1, 3): 2·1 + 0.5·1·2 + 0.25·3·4 = 6.
    assert_close(step_wise_is(log_ratio, reward, ONES, 0.5), torch.tensor([6.0]).double())
    # Backwards: v_2 = 2 + 3·(4 − 2) = 8; v_1 = 2 + 0.5·(2 + 4 − 2) = 4; v_0 = 1 + 2·(1 + 2 − 1) = 5.
    assert_close(doubly_robust(log_ratio, reward, value, ONES, 0.5), torch.tensor([5.0]).double())
    # With V(s_3) = 4 at the end: v_2 = 2 + 3·(4 + 2 − 2) = 14; v_1 = 2 + 0.5·7 = 5.5; v_0 = 1 + 2·2.75 = 6.5.
    bootstrapped = doubly_robust(log_ratio, reward, value, ONES, 0.5, torch.tensor([4.0]).double())
    assert_close(bootstrapped, torch.tensor([6.5]).double())
    # Bounds 1: ratios (1, 0.5, 1), errors δ = (1, 1, 2): 1 + 1 + 0.5·0.5·1 + 0.25·0.5·2 = 2.5.
    assert_close(truncated_doubly_robust(log_ratio, reward, value, ONES, 0.5), torch.tensor([2.5]).double())
    # ρ̄ = 2, c̄ = 1: 1 + 2·1 + 0.5·(1·0.5)·1 + 0.25·(1·0.5·2)·2 = 3.75.
    uneven = truncated_doubly_robust(log_ratio, reward, value, ONES, 0.5, rho_max=2.0)
    assert_close(uneven, torch.tensor([3.75]).double())
    # ρ − 1 = (1, −0.5, 2). U_1 = 1 − 0.5·1 + 0.25·8 = 2.5. U_2 = 0.5·(1·−0.5)·2 + 0.25·(1·2 − 0.5·2)·4 = 0.5.
    # U_3 = 0.25·(1·−0.5·2)·4 = −1.
    for order, expected in ((1, 2.5), (2, 3.0), (3, 2.0), (9, 2.0)):
        assert_close(taypo(log_ratio, reward, ONES, 0.5, order), torch.tensor([expected]).double())


def test_truncation_equals_its_recursion():
    log_ratio, reward, value, mask = batch()
    result = truncated_doubly_robust(log_ratio, reward, value, mask, 0.9, 1.2, 0.8)
    for n in range(len(reward)):
        estimate = after = 0.0
        for t in reversed(range(int(mask[n].sum()))):
            ratio, v = math.exp(log_ratio[n, t]), float(value[n, t])
            error = float(reward[n, t]) + 0.9 * after - v
            estimate = v + min(ratio, 1.2) * error + 0.9 * min(ratio, 0.8) * (estimate - after)
            after = v
        assert result[n].item() == pytest.approx(estimate, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_taypo_equals_the_sum_over_subsets(order):
    log_ratio, advantage, _, mask = batch()
    result = taypo(log_ratio, advantage, mask, 0.9, order)
    for n in range(len(advantage)):
        steps = range(int(mask[n].sum()))
        excess = log_ratio[n].exp() - 1
        subsets = [subset for k in range(1, order + 1) for subset in combinations(steps, k)]
        total = sum(0.9 ** s[-1] * math.prod(excess[list(s)].tolist()) * float(advantage[n, s[-1]]) for s in subsets)
        assert result[n].item() == pytest.approx(total, abs=1e-12)


def test_identities():
    log_ratio, reward, value, mask = batch()
    zero, gain = torch.zeros_like(value), reward_to_go(reward, mask, 0.9)
    is_estimate = step_wise_is(log_ratio, reward, mask, 0.9)
    assert_close(doubly_robust(log_ratio, reward, zero, mask, 0.9), is_estimate)
    assert_close(doubly_robust(log_ratio, reward, zero, mask, 0.9, q_value=zero), is_estimate)
    # All orders together are step-wise IS without the value at ratio 1 (without baseline), or DR without it (with V).
    everything = taypo(log_ratio, gain, mask, 0.9, reward.shape[-1])
    assert_close(everything, is_estimate - gain[:, 0])
    robust = doubly_robust(log_ratio, reward, value, mask, 0.9)
    assert_close(taypo(log_ratio, gain - value, mask, 0.9, reward.shape[-1]), robust - gain[:, 0])
    # Order 1 is LVC up to its value at ratio 1.
    lvc = [likelihood_ratio(x, gain, mask, 0.9) for x in (log_ratio, zero)]
    assert_close(taypo(log_ratio, gain, mask, 0.9, 1), lvc[0] - lvc[1])
    # A Q that depends on the action is not a baseline of the state.
    assert not torch.allclose(doubly_robust(log_ratio, reward, value, mask, 0.9, q_value=value + 1), robust)


def test_a_ratio_at_its_bound_keeps_its_whole_gradient():
    """Half a gradient is what a minimum gives at a tie, and on-policy every ratio ties at 1."""
    _, reward, value, mask = batch()
    at_one = torch.zeros_like(reward)
    truncated = grad(lambda x: truncated_doubly_robust(x, reward, value, mask, 0.9).sum())(at_one)
    assert_close(truncated, grad(lambda x: doubly_robust(x, reward, value, mask, 0.9).sum())(at_one), rtol=0, atol=0)
    assert truncated.abs().max() > 0.1
    # Above the bound nothing is left; of the last step, whose ratio enters once, neither is anything in the product.
    above = grad(lambda x: truncated_doubly_robust(x, reward, value, mask, 0.9).sum())(at_one + 0.1)
    assert (above == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roundings_of_the_log_probabilities_do_not_truncate(dtype):
    """Recomputed by another kernel they differ by an ulp of either sign; the gradient does so too, and not by half."""
    behaviour, reward, value, mask = (x.to(dtype) for x in batch(num=50))
    noise = torch.randint(-1, 2, behaviour.shape, generator=torch.Generator().manual_seed(0))
    ulp = torch.finfo(dtype).eps * behaviour.abs()
    assert {int(sign) for sign in noise.unique()} == {-1, 0, 1}

    def gradient(log_prob):
        def total(x):
            return truncated_doubly_robust(x - behaviour, reward, value, mask, 0.9).sum()

        return grad(total)(log_prob)

    exact = gradient(behaviour)
    assert exact.abs().max() > 0.1
    assert_close(gradient(behaviour + noise * ulp), exact, rtol=0.0, atol=1e3 * torch.finfo(dtype).eps)


def test_ratio_is_one_where_padded():
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    log_prob, behaviour = torch.tensor([[-1.0, -2.0, 5e30]]), torch.tensor([[-1.0, -1.0, -5e30]])
    assert_close(log_importance_ratio(log_prob, behaviour, mask), torch.tensor([[0.0, -1.0, 0.0]]))
    gradient = grad(lambda x: log_importance_ratio(x, behaviour, mask).sum())(log_prob)
    assert_close(gradient, mask)


def test_products_of_very_small_ratios_keep_finite_derivatives():
    """float32: Π ρ underflows to 0 after 100 steps of e^{−2}; its derivatives are 0 as well, not NaN."""
    reward = value = torch.ones(1, 100)
    for estimate in (
        lambda x: step_wise_is(x, reward, value, 1.0),
        lambda x: doubly_robust(x, reward, value, value, 1.0),
        lambda x: taypo(x, reward, value, 1.0, 2),
    ):
        first = grad(lambda x, f=estimate: f(x).sum())
        assert first(torch.full((1, 100), -2.0)).isfinite().all()
        assert grad(lambda x, g=first: g(x).square().sum())(torch.full((1, 100), -2.0)).isfinite().all()
