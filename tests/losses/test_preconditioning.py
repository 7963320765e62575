"""Meta-objectives and the meta-gradient: numbers by hand, explicit double backward, and what each does to a critic."""

from __future__ import annotations

import math

import pytest
import torch
from critic_cases import ACTION, OBS, LinearCritic, SmallCritic, explicit_jacobian, explicit_kernel, params_of
from torch.func import functional_call

from lit_metarl.diagnostics.kernels import JVP, Exact, FiniteDifference, normal_directions
from lit_metarl.diagnostics.ntk import mean_magnitudes
from lit_metarl.losses.preconditioning import (
    Contraction,
    Eq10,
    Eq14Printed,
    LogCosine,
    LogRatio,
    SarsaBatch,
    bellman_step,
    meta_gradient,
)
from lit_metarl.nn.critics import EnsembleCritic
from lit_metarl.types import Sizes

KERNEL = torch.tensor([[[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 3.0]]])
GAMMA, LR = 0.9, 0.05


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_batch(size, obs=OBS, action=ACTION, dtype=torch.float64, seed=2):
    generator = seeded(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    discount = (torch.rand(size, generator=generator) > 0.3).to(dtype)
    return SarsaBatch(draw(size, obs), draw(size, action), draw(size), discount, draw(size, obs), draw(size, action))


def test_objectives_by_hand():
    # Diagonal mean 3, off-diagonal mean 4/6 (see the test of the ratio).
    assert LogRatio().of_kernel(KERNEL, GAMMA).item() == pytest.approx(math.log(2 / 9))
    # Cosines 1/√8, 0 and 1/√6, each twice among six pairs.
    cosines = 2 / math.sqrt(8) + 2 / math.sqrt(6)
    assert LogCosine().of_kernel(KERNEL, GAMMA).item() == pytest.approx(math.log(cosines / 6))
    assert Eq10().of_kernel(KERNEL, GAMMA).item() == pytest.approx(2 / 3 - 3)
    # γ = 0.5: 1.5·(1/4, 2/2, 1/3) − 0.5 = (−0.125, 1, 0); only the second misses Eq. 8.
    assert Contraction().of_kernel(KERNEL, 0.5).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("derivative", [Exact(), JVP(directions=4)])
@pytest.mark.parametrize(
    ("kind", "invariant"), [(LogCosine, True), (LogRatio, True), (Contraction, True), (Eq10, False)]
)
def test_objectives_and_the_scale_of_q(kind, invariant, derivative):
    critic, batch = SmallCritic(members=2), random_batch(6)
    params, objective = params_of(critic), kind(derivative=derivative)
    plain = meta_gradient(critic, params, batch, objective, seeded(), inner_lr=0.0)
    critic.output_scale = 100.0
    scaled = meta_gradient(critic, params, batch, objective, seeded(), inner_lr=0.0)
    assert torch.allclose(plain.objective, scaled.objective) == invariant
    assert torch.allclose(plain.norm, scaled.norm) == invariant


@pytest.mark.parametrize("kind", [LogCosine, LogRatio])
def test_sketched_objective_tends_to_the_exact_one(kind):
    critic, batch = SmallCritic(members=2, smooth=True), random_batch(6)
    params = params_of(critic)

    def gradient(derivative):
        return meta_gradient(critic, params, batch, kind(derivative), seeded(1))

    exact, sketch = gradient(Exact()), gradient(JVP(directions=50_000))
    torch.testing.assert_close(sketch.objective, exact.objective, rtol=0.0, atol=0.02)
    for name, value in exact.gradient.items():
        torch.testing.assert_close(sketch.gradient[name], value, rtol=0.0, atol=0.05 * exact.norm.item())


def test_bellman_step_by_hand():
    # Q = w·φ, w = (1, 2). Sample 1: φ = (1, 0), Q = 1, y = 1 + 0.5·Q(0, 1) = 2. Sample 2: φ = (0, 1), Q = 2, ended,
    # y = 3. Σ_M (y − Q)φ/2 = (0.5, 0.5), so w' = w + 0.1·(0.5, 0.5); L = ½·(1 + 1)/2.
    critic = LinearCritic(features=2)
    params = {"w": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    zero_one = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    batch = SarsaBatch(1 - zero_one, zero_one, torch.tensor([1.0, 3.0]), 1 - zero_one[:, 0], 0 * zero_one, one[:, None])
    adapted, loss = bellman_step(critic, params, batch, gamma=0.5, inner_lr=0.1)
    assert adapted["w"].tolist() == [pytest.approx([1.05, 2.05])]
    assert loss.tolist() == pytest.approx([0.5])


def explicit_log_ratio(kernel):
    size, diagonal = kernel.shape[-1], kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.log((kernel.abs().sum((-2, -1)) - diagonal) / (size * (size - 1))) - torch.log(diagonal / size)


def explicit_log_cosine(kernel):
    size, diagonal = kernel.shape[-1], kernel.diagonal(dim1=-2, dim2=-1)
    pairs = [
        kernel[:, i, j].abs() / (diagonal[:, i] * diagonal[:, j]).sqrt()
        for i in range(size)
        for j in range(size)
        if i != j
    ]
    return torch.stack(pairs).mean(0).log()


@pytest.mark.parametrize(("kind", "formula"), [(LogCosine, explicit_log_cosine), (LogRatio, explicit_log_ratio)])
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_meta_gradient_equals_explicit_double_backward(second_order, smooth, kind, formula):
    critic, batch = SmallCritic(members=2, smooth=smooth), random_batch(5)
    params = params_of(critic)
    found = meta_gradient(critic, params, batch, kind(Exact()), seeded(), GAMMA, LR, second_order)

    w = {name: value.requires_grad_() for name, value in params_of(critic).items()}
    value = functional_call(critic, w, (batch.obs, batch.action))
    target = batch.reward + GAMMA * batch.discount * functional_call(critic, w, (batch.next_obs, batch.next_action))
    # −E (y − Q)∇Q: the error is a weight, not differentiated here, but with the whole step if the order is two.
    steps = torch.autograd.grad(value, list(w.values()), (value - target) / 5, create_graph=True)
    moved = {name: v - LR * step for (name, v), step in zip(w.items(), steps, strict=True)}
    if not second_order:
        moved = w = {name: v.detach().requires_grad_() for name, v in moved.items()}
    kernel = explicit_kernel(critic, moved, batch.obs, batch.action, create_graph=True)
    objective = formula(kernel)
    expected = torch.autograd.grad(objective.sum(), list(w.values()), materialize_grads=True)

    torch.testing.assert_close(found.objective, objective.detach())
    for name, gradient in zip(w, expected, strict=True):
        torch.testing.assert_close(found.gradient[name], gradient)
    torch.testing.assert_close(found.norm, torch.cat([g.flatten() for g in expected]).norm())
    torch.testing.assert_close(found.bellman_loss, (0.5 * (value - target).square().mean(1)).detach())


def test_orders_differ_only_through_the_step():
    critic, batch = SmallCritic(smooth=True), random_batch(5)

    def gradient(inner_lr, second_order):
        arguments = critic, params_of(critic), batch, LogRatio(), seeded(), GAMMA, inner_lr, second_order
        return torch.cat([value.flatten() for value in meta_gradient(*arguments).gradient.values()])

    torch.testing.assert_close(gradient(0.0, False), gradient(0.0, True))
    difference = [(gradient(lr, True) - gradient(lr, False)).norm().item() for lr in (1e-3, 1e-4)]
    assert difference[0] / difference[1] == pytest.approx(10.0, rel=0.1)


def test_members_have_the_gradient_they_would_have_alone():
    critic, batch = SmallCritic(members=2), random_batch(5)
    params = params_of(critic)
    both = meta_gradient(critic, params, batch, LogRatio(Exact()), seeded(), GAMMA, LR)
    for member in range(2):
        own = {name: value[member : member + 1] for name, value in params.items()}
        alone = meta_gradient(SmallCritic(), own, batch, LogRatio(Exact()), seeded(), GAMMA, LR)
        torch.testing.assert_close(alone.objective[0], both.objective[member])
        for name, value in alone.gradient.items():
            torch.testing.assert_close(value[0], both.gradient[name][member])


def test_nothing_is_changed_and_the_seed_fixes_the_result():
    critic, batch = SmallCritic(), random_batch(5)
    params, before = dict(critic.named_parameters()), params_of(critic)
    first, again = (meta_gradient(critic, params, batch, LogRatio(JVP()), seeded(4)) for _ in range(2))
    other = meta_gradient(critic, params, batch, LogRatio(JVP()), seeded(5))
    for name, value in params.items():
        assert torch.equal(value, before[name])
        assert value.grad is None
        assert torch.equal(first.gradient[name], again.gradient[name])
        assert not first.gradient[name].requires_grad
    assert not torch.equal(first.norm, other.norm)


def test_divergence_is_returned_not_hidden():
    critic, batch = SmallCritic(members=2), random_batch(5)
    result = meta_gradient(
        critic, params_of(critic), batch._replace(reward=batch.reward * math.inf), LogRatio(), seeded()
    )
    assert not result.objective.isfinite().any()
    assert not result.norm.isfinite()


def test_eq14_is_the_printed_formula():
    critic, batch = SmallCritic(members=2, smooth=True), random_batch(4)
    params = params_of(critic)
    value = Eq14Printed(JVP(directions=3)).value(critic, params, batch, GAMMA, seeded(1))
    drawn = normal_directions(params, 3, seeded(1))
    here = explicit_jacobian(critic, params, batch.obs, batch.action)
    there = explicit_jacobian(critic, params, batch.next_obs, batch.next_action)
    flat = torch.cat([block.flatten(1) for block in drawn.values()], dim=1)
    expected = torch.zeros(2, dtype=torch.float64)
    for member in range(2):
        for u in flat:
            own = torch.cat([block[member].flatten() for block in params_like(params, u)])
            for g, g_next in zip(here[member], there[member], strict=True):
                d, d_next = g @ u, g_next @ u
                expected[member] += ((d_next * own @ (own * d)) ** 2 - (d * own).norm() ** 2) / 12
    torch.testing.assert_close(value, expected)
    close = Eq14Printed(FiniteDifference(directions=3, mu=1e-7)).value(critic, params, batch, GAMMA, seeded(1))
    torch.testing.assert_close(close, expected, rtol=1e-4, atol=1e-4)


def params_like(params, flat):
    parts = flat.split([value.numel() for value in params.values()])
    return [part.view_as(value) for part, value in zip(parts, params.values(), strict=True)]


def train(objective, steps, outer_lr, hidden=(64, 64)):
    """Mean diagonal and ratio of the exact kernel before and after ``steps`` meta-updates of a usual critic."""
    torch.manual_seed(0)
    critic = EnsembleCritic(Sizes(17, 6), hidden, members=2)
    batch, generator, params = random_batch(64, 17, 6, torch.float32), seeded(1), params_of(critic)

    def measured():
        kernel = Exact().kernel(critic, params, batch.obs, batch.action, generator)
        diagonal, off_diagonal = mean_magnitudes(kernel.double())
        return diagonal, diagonal / off_diagonal

    before = measured()
    for _ in range(steps):
        result = meta_gradient(critic, params, batch, objective, generator)
        assert result.norm.isfinite()
        params = {name: value - outer_lr * result.gradient[name] for name, value in params.items()}
    return before, measured()


def test_log_ratio_raises_the_ratio_and_leaves_the_diagonal():
    (diagonal, ratio), (diagonal_after, ratio_after) = train(LogRatio(JVP(directions=32)), steps=50, outer_lr=0.03)
    assert (ratio_after > 1.5 * ratio).all()
    assert (diagonal_after < 2 * diagonal).all()
    assert (diagonal_after > diagonal / 2).all()


def test_one_published_step_of_the_printed_objective_destroys_the_critic():
    # Negative control: β = 1e-8 and 10 directions, as stated, on the critic of 2 × 256.
    before, after = train(Eq14Printed(JVP(directions=10)), steps=1, outer_lr=1e-8, hidden=(256, 256))
    assert (after[0] > 1e10 * before[0]).all()
