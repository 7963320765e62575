"""The tanh-Gaussian's density: exact against change of variables in float64, finite at extremes."""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal

from lit_metarl.nn.distributions import TanhGaussian, tanh_log_det


def test_log_det_equals_autodiff() -> None:
    u = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.tanh(u).sum(), u)
    torch.testing.assert_close(tanh_log_det(u), slope.log(), rtol=1e-10, atol=1e-12)


def test_log_det_at_extremes_where_the_naive_form_fails() -> None:
    u = torch.tensor([-40.0, -10.0, 10.0, 40.0])
    assert torch.isinf(torch.log(1 - torch.tanh(u) ** 2)).any()  # the negative control
    # log(1 − tanh²u) → log 4 − 2|u|
    torch.testing.assert_close(tanh_log_det(u), math.log(4.0) - 2.0 * u.abs(), rtol=1e-6, atol=1e-6)


def test_sample_density_is_the_change_of_variables() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(5, 3, dtype=torch.float64), 0.3 * torch.randn(5, 3, dtype=torch.float64)
    noise = torch.randn(5, 3, dtype=torch.float64)
    action, log_prob = TanhGaussian(mean, log_std).sample(noise)
    u = torch.atanh(action)
    expected = (Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - action**2)).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one() -> None:
    # ∫ π(a) da over (−1, 1), substituted a = tanh(u): Σ π(tanh u)·(1 − tanh²u)·du
    u = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    mean, log_std = torch.tensor([0.4], dtype=torch.float64), torch.tensor([-0.2], dtype=torch.float64)
    noise = ((u - mean) / log_std.exp())[:, None]
    _, log_prob = TanhGaussian(mean.expand(len(u), 1), log_std.expand(len(u), 1)).sample(noise)
    mass = torch.trapezoid(log_prob.exp() * (1 - torch.tanh(u) ** 2), u)
    torch.testing.assert_close(mass, torch.tensor(1.0, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_gradients_are_finite_far_out() -> None:
    mean = torch.tensor([[30.0, -30.0]], requires_grad=True)
    _, log_prob = TanhGaussian(mean, torch.full((1, 2), 2.0)).sample(torch.tensor([[5.0, -5.0]]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert mean.grad is not None
    assert torch.isfinite(mean.grad).all()
