"""Surrogates: by hand, their limits, and the control variates of TMAML, right and as printed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from lit_metarl.estimators import (
    clipped_ratio,
    dice,
    doubly_robust,
    likelihood_ratio,
    loaded_dice,
    log_importance_ratio,
    log_likelihood,
    reward_to_go,
    step_wise_is,
    taypo,
    tmaml,
    truncated_doubly_robust,
)

ALL = {  # of log-probabilities and data; the data of the behaviour policy has log-probability 0
    "log_likelihood": lambda x, r, v, m: log_likelihood(x, r, m, 0.9),
    "likelihood_ratio": lambda x, r, v, m: likelihood_ratio(x, r, m, 0.9),
    "dice": lambda x, r, v, m: dice(x, r, m, 0.9),
    "loaded_dice": lambda x, r, v, m: loaded_dice(x, r, m, 0.9, 0.7),
    "tmaml": lambda x, r, v, m: tmaml(x, r, v, m, 0.9),
    "tmaml_printed": lambda x, r, v, m: tmaml(x, r, v, m, 0.9, eq7_printed=True),
    "clipped_ratio": lambda x, r, v, m: clipped_ratio(x, r, m, 0.9, 0.2),
    "step_wise_is": lambda x, r, v, m: step_wise_is(x, r, m, 0.9),
    "doubly_robust": lambda x, r, v, m: doubly_robust(x, r, v, m, 0.9, bootstrap=v[..., -1]),
    "truncated": lambda x, r, v, m: truncated_doubly_robust(x, r, v, m, 0.9, 1.1, 0.9, v[..., -1]),
    "taypo": lambda x, r, v, m: taypo(x, r, m, 0.9, 3),
}


def tensors(*rows):
    return [torch.tensor([row], dtype=torch.float64) for row in rows]


def batch(*shape, seed=0):
    """Log-ratio, reward, value, mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    log_ratio, reward, value = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(3))
    length = 1 + torch.randint(shape[-1], shape[:-1], generator=generator)
    return 0.3 * log_ratio, reward, value, (torch.arange(shape[-1]) < length[..., None]).double()


def test_three_steps_by_hand():
    ratio, data, value = tensors([2.0, 0.5, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 2.0])
    x, ones = ratio.log(), torch.ones_like(data)
    cases = {
        # γ = 0.5 throughout; ln 2·1 − 0.5·ln 2·2 + 0.25·ln 3·4 = ln 3.
        math.log(3): log_likelihood(x, data, ones, 0.5),
        # 2·1 + 0.5·0.5·2 + 0.25·3·4 = 5.5; products (2, 1, 3) give 2 + 1 + 3 = 6.
        5.5: likelihood_ratio(x, data, ones, 0.5),
        6.0: dice(x, data, ones, 0.5),
        # λ = 1: P before t is (1, 2, 1), so 1·1·1 + 0.5·2·(−0.5)·2 + 0.25·1·2·4 = 2; λ = 0 is Σ γ^t (ρ − 1) A = 2.5.
        2.0: loaded_dice(x, data, ones, 0.5),
        2.5: loaded_dice(x, data, ones, 0.5, decay=0.0),
        # 6 + Σ γ^t P (1 − ρ) b = 6 + 1·(−1)·1 + 0.5·2·0.5·2 + 0.25·1·(−2)·2 = 5.
        5.0: tmaml(x, data, value, ones, 0.5),
        # As printed: 6 + (1 − 2)(1 − 2)·1 + 0.5·(1 − 1)·… + 0.25·(1 − 3)(1 − 3)·2 = 9.
        9.0: tmaml(x, data, value, ones, 0.5, eq7_printed=True),
        # ε = 0.2: 1.2·1 + 0.5·0.5·2 + 0.25·1.2·4 = 2.9: a gain is capped, a ratio below 1 with A > 0 is not raised.
        2.9: clipped_ratio(x, data, ones, 0.5, 0.2),
    }
    for expected, result in cases.items():
        assert result.item() == pytest.approx(expected, abs=1e-12)


def test_clipping_is_pessimistic():
    """With A < 0 a ratio above 1 is not capped and one below is: ρ = 2, 0.5 give −2 and −0.8."""
    x, minus = torch.tensor([[2.0, 0.5]]).log(), torch.tensor([[-1.0, -1.0]])
    assert clipped_ratio(x, minus, torch.ones(1, 2), 1.0, 0.2).item() == pytest.approx(-2.8)
    slopes = grad(lambda y: clipped_ratio(y, minus, torch.ones(1, 2), 1.0, 0.2).sum())(x)
    assert_close(slopes, torch.tensor([[-2.0, 0.0]]))


def test_ppo_and_lvc_have_the_policy_gradient_at_ratio_one():
    _, advantage, _, mask = batch(4, 6)
    one = torch.zeros_like(advantage)
    plain = grad(lambda x: log_likelihood(x, advantage, mask, 0.9).sum())(one)
    assert_close(grad(lambda x: clipped_ratio(x, advantage, mask, 0.9, 0.2).sum())(one), plain)
    assert_close(grad(lambda x: likelihood_ratio(x, advantage, mask, 0.9).sum())(one), plain)
    # and not away from it
    assert not torch.allclose(grad(lambda x: clipped_ratio(x, advantage, mask, 0.9, 0.2).sum())(one + 0.3), plain)


def test_identities():
    x, reward, value, mask = batch(4, 6)
    gain = reward_to_go(reward, mask, 0.9)
    robust = doubly_robust(x, reward, value, mask, 0.9)
    assert_close(loaded_dice(x, gain - value, mask, 0.9), robust - gain[:, 0])
    assert_close(tmaml(x, reward, value, mask, 0.9), robust)
    assert_close(loaded_dice(x, gain, mask, 0.9, decay=0.0), taypo(x, gain, mask, 0.9, 1))
    assert_close(tmaml(x, reward, torch.zeros_like(value), mask, 0.9), dice(x, reward, mask, 0.9))
    halfway = loaded_dice(x, gain, mask, 0.9, decay=0.5)
    assert not torch.allclose(halfway, loaded_dice(x, gain, mask, 0.9))
    assert not torch.allclose(halfway, taypo(x, gain, mask, 0.9, 1))


def test_decay_follows_the_recursion():
    x, advantage, _, _ = batch(1, 5)
    total = until = 0.0
    for t in range(5):
        until = 0.7 * until + float(x[0, t])
        total += 0.9**t * (math.exp(until) - math.exp(until - float(x[0, t]))) * float(advantage[0, t])
    assert loaded_dice(x, advantage, torch.ones_like(x), 0.9, 0.7).item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_matter(name):
    *parts, mask = batch(4, 6)
    garbage = torch.where(mask > 0, 0.0, 1e30)
    clean, dirty = ([part + extra for part in parts] for extra in (0.0, garbage))
    assert_close(ALL[name](*dirty, mask), ALL[name](*clean, mask), rtol=0, atol=0)
    gradients = [grad(lambda x, rest=rest: ALL[name](x, *rest, mask).sum())(x) for x, *rest in (clean, dirty)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert (gradients[1][mask == 0] == 0).all()
    assert (ALL[name](*dirty, 0 * mask) == 0).all()  # nothing is left of a trajectory without any step


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_derivatives_under_vmap(name, dtype):
    """Values, gradients and Hessian-vector products of three tasks at once equal those of one after the other."""
    parts = [part.to(dtype) for part in batch(3, 4, 6)]
    theta, direction = torch.tensor([0.3, -0.2, 0.1], dtype=dtype), torch.tensor([1.0, 2.0, -1.0], dtype=dtype)

    def objective(scale, log_ratio, *data):
        return ALL[name](log_importance_ratio(scale * log_ratio, 0 * log_ratio, data[-1]), *data).mean()

    def product(scale, vector, *data):
        return grad(lambda s: grad(objective)(s, *data) * vector)(scale)

    for function, arguments in ((objective, (theta,)), (grad(objective), (theta,)), (product, (theta, direction))):
        together = vmap(function)(*arguments, *parts)
        one_by_one = [function(*(x[i] for x in (*arguments, *parts))) for i in range(3)]
        assert together.dtype == dtype
        assert_close(together, torch.stack(one_by_one))
    assert ALL[name](*parts).shape == (3, 4)
    assert_close(ALL[name](*parts)[1], ALL[name](*(part[1] for part in parts)))


@pytest.mark.parametrize("name", ALL)
def test_double_backward_equals_functional_derivatives(name):
    parts = batch(4, 6)
    x = parts[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(ALL[name](x, *parts[1:]).sum(), x, create_graph=True)
    assert_close(first, grad(lambda y: ALL[name](y, *parts[1:]).sum())(parts[0]))
    if first.requires_grad:  # of the log-likelihood it is constant
        (second,) = torch.autograd.grad((first * parts[1]).sum(), x)
        inner = grad(lambda y: ALL[name](y, *parts[1:]).sum())
        assert_close(second, grad(lambda y: (inner(y) * parts[1]).sum())(parts[0]))
