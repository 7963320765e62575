"""Densities: exact against other ways to compute them in float64, finite at extremes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from lit_metarl.nn.distributions import Categorical, DiagonalGaussian, TanhGaussian, tanh_log_det


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


def gaussian(*shape: int, seed: int = 0) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    mean, log_std = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    return DiagonalGaussian(mean, 0.5 * log_std)


def categorical(*shape: int, seed: int = 0) -> Categorical:
    generator = torch.Generator().manual_seed(seed)
    return Categorical(torch.randn(*shape, dtype=torch.float64, generator=generator))


def test_gaussian_equals_torch_distributions() -> None:
    p, q = gaussian(5, 3), gaussian(5, 3, seed=1)
    reference = Independent(Normal(p.mean, p.log_std.exp()), 1)
    other = Independent(Normal(q.mean, q.log_std.exp()), 1)
    action = torch.randn(5, 3, dtype=torch.float64)
    assert p.log_prob(action).shape == (5,)
    torch.testing.assert_close(p.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(p.entropy(), reference.entropy())
    torch.testing.assert_close(p.kl(q), kl_divergence(reference, other))
    assert torch.equal(p.mode_action, p.mean)


def test_gaussian_integrals() -> None:
    # Σ over a grid wide enough that the tails beyond it are below 1e-20: mass, entropy and KL by their definitions
    a = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    p, q = (DiagonalGaussian(*(torch.tensor([v], dtype=torch.float64) for v in pair)) for pair in ((0.3, 0.4), (-1, 0)))
    log_p, log_q = p.log_prob(a[:, None]), q.log_prob(a[:, None])
    one = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(torch.trapezoid(log_p.exp(), a), one)
    torch.testing.assert_close(torch.trapezoid(-log_p.exp() * log_p, a), p.entropy())
    torch.testing.assert_close(torch.trapezoid(log_p.exp() * (log_p - log_q), a), p.kl(q))


def test_gaussian_kl_is_exact_between_close_neighbours() -> None:
    # (e^{2d} − 1)/2 − d = d² + 2d³/3 + …, near 1e-6 here; in float32 the textbook form is off by several per cent
    d = torch.linspace(1e-3, 3e-3, 50)[:, None]
    p, q = DiagonalGaussian(torch.zeros_like(d), d), DiagonalGaussian(torch.zeros_like(d), torch.zeros_like(d))
    torch.testing.assert_close(p.kl(q), (d**2 + 2 * d**3 / 3).squeeze(-1), rtol=1e-3, atol=0)
    assert not p.kl(p).any()


def test_categorical_equals_torch_distributions() -> None:
    p, q = categorical(6, 4), categorical(6, 4, seed=1)
    reference, other = TorchCategorical(logits=p.logits), TorchCategorical(logits=q.logits)
    action = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(p.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(p.entropy(), reference.entropy())
    torch.testing.assert_close(p.kl(q), kl_divergence(reference, other))
    assert torch.equal(p.mode_action, reference.probs.argmax(-1))


def test_samples_follow_the_distribution_and_the_generator() -> None:
    n = 200_000
    p, c = gaussian(1, 2), categorical(1, 3)
    gaussian_actions = DiagonalGaussian(*(x.expand(n, 2) for x in p)).sample(torch.Generator().manual_seed(3))
    wide = Categorical(c.logits.expand(n, 3))
    indices = wide.sample(torch.Generator().manual_seed(3))
    assert indices.shape == (n,)
    assert indices.dtype == torch.int64
    # Five standard errors: std/√n of the mean, std/√(2n) of the standard deviation, below 1/(2√n) of a frequency.
    std = p.log_std.exp()[0]
    assert ((gaussian_actions.mean(0) - p.mean[0]).abs() < 5 * std / n**0.5).all()
    assert ((gaussian_actions.std(0) - std).abs() < 5 * std / (2 * n) ** 0.5).all()
    frequency = torch.bincount(indices, minlength=3) / n
    assert ((frequency - c.logits.softmax(-1)[0]).abs() < 5 * 0.5 / n**0.5).all()
    assert torch.equal(indices, wide.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(indices, wide.sample(torch.Generator().manual_seed(4)))


def test_sampling_draws_on_the_cpu_for_any_device() -> None:
    generator, meta = torch.Generator(), torch.zeros(4, 3, device="meta")
    state = generator.get_state()
    for distribution, shape in ((DiagonalGaussian(meta, meta), (4, 3)), (Categorical(meta), (4,))):
        action = distribution.sample(generator)
        assert action.device.type == "meta"
        assert action.shape == shape
        assert not torch.equal(generator.get_state(), state)
        state = generator.get_state()


def test_derivatives_of_both_orders() -> None:
    p, q, c, d = gaussian(2, 3), gaussian(2, 3, seed=1), categorical(2, 3), categorical(2, 3, seed=1)
    action, index = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])

    def of_gaussian(mean: Tensor, log_std: Tensor) -> tuple[Tensor, ...]:
        it = DiagonalGaussian(mean, log_std)
        return it.log_prob(action), it.entropy(), it.kl(q), q.kl(it)

    def of_categorical(logits: Tensor) -> tuple[Tensor, ...]:
        it = Categorical(logits)
        return it.log_prob(index), it.entropy(), it.kl(d), d.kl(it)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(of_gaussian, [x.requires_grad_() for x in p])
        assert check(of_categorical, [c.logits.requires_grad_()])


def test_extremes_stay_finite() -> None:
    floor = math.log(1e-6)
    mean, log_std = torch.tensor([[0.0, 1e3]], requires_grad=True), torch.tensor([[floor, 20.0]], requires_grad=True)
    logits = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    p, c = DiagonalGaussian(mean, log_std), Categorical(logits)
    far = DiagonalGaussian(torch.tensor([[1e3, -1e3]]), torch.zeros(1, 2))
    values = [p.log_prob(torch.full((1, 2), 1e3)), p.entropy(), p.kl(far), far.kl(p)]
    values += [c.log_prob(torch.tensor([0])), c.entropy(), c.kl(Categorical(torch.zeros(1, 3)))]
    values += [Categorical(torch.zeros(1, 3)).kl(c)]
    gradients = torch.autograd.grad(torch.cat(values).sum(), [mean, log_std, logits])
    assert torch.isfinite(torch.cat(values)).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
