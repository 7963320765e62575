"""Differentiable kernels: right values, right gradients, and what each estimate costs in accuracy."""

from __future__ import annotations

import pytest
import torch
from critic_cases import (
    LinearCritic,
    SharedTrunkCritic,
    SmallCritic,
    explicit_jacobian,
    explicit_kernel,
    inputs,
    params_of,
)
from torch.func import grad

from lit_metarl.losses.tangent_kernel import JVP, Exact, FiniteDifference, Layerwise, member_blocks, normal_directions
from lit_metarl.types import ConfigError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def case():
    critic = SmallCritic(members=2, smooth=True)
    return critic, params_of(critic), *inputs(6)


@pytest.mark.parametrize("estimate", [Exact(), Layerwise()])
def test_exact_kernels_and_their_gradients_equal_explicit_double_backward(case, estimate):
    critic, params, obs, action = case
    torch.testing.assert_close(estimate.kernel(*case, seeded()), explicit_kernel(*case))
    weights = torch.randn(2, 6, 6, generator=seeded(3), dtype=torch.float64)
    gradient = grad(lambda p: (weights * estimate.kernel(critic, p, obs, action, seeded())).sum())(params)
    leaves = {name: value.requires_grad_() for name, value in params_of(critic).items()}
    (weights * explicit_kernel(critic, leaves, obs, action, create_graph=True)).sum().backward()
    for name, leaf in leaves.items():
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad  # the last bias is in no Jacobian
        torch.testing.assert_close(gradient[name], expected)


def test_jvp_is_the_jacobian_times_the_direction(case):
    critic, params, obs, action = case
    directions = normal_directions(params, 4, seeded())
    flat = torch.cat([block.flatten(1) for block in directions.values()], dim=1)
    expected = torch.einsum("emp,sp->sem", explicit_jacobian(*case), flat)
    derivative = JVP().along(critic, params, obs, action, directions)
    torch.testing.assert_close(derivative, expected)
    kernel = JVP(directions=4).kernel(*case, seeded())
    torch.testing.assert_close(kernel, torch.einsum("sem,sen->emn", expected, expected) / 4)


def test_finite_difference_tends_to_the_jvp(case):
    critic, params, obs, action = case
    directions = normal_directions(params, 4, seeded())
    limit = JVP().along(critic, params, obs, action, directions)

    def error(mu):
        return (FiniteDifference(mu=mu).along(critic, params, obs, action, directions) - limit).abs().max().item()

    # A forward difference errs by O(μ), until rounding at 1e-16/μ takes over.
    assert error(1e-4) / error(1e-5) == pytest.approx(10.0, rel=0.01)
    assert error(1e-8) < 1e-6


def test_gradient_of_the_finite_difference_tends_to_that_of_the_jvp(case):
    critic, params, obs, action = case

    def gradient(estimate):
        return grad(lambda p: estimate.kernel(critic, p, obs, action, seeded()).sum())(params)

    limit = gradient(JVP(directions=3))
    for name, value in gradient(FiniteDifference(directions=3, mu=1e-6)).items():
        torch.testing.assert_close(value, limit[name], rtol=1e-4, atol=1e-4)


def test_finite_difference_of_float32_parameters_is_taken_in_float64():
    critic = SmallCritic(members=2, dtype=torch.float32)
    case = critic, params_of(critic), *inputs(6, dtype=torch.float32)
    sketch = FiniteDifference(mu=1e-8).kernel(*case, seeded())
    assert sketch.dtype == torch.float64
    limit = JVP(directions=10).kernel(*case, seeded())
    torch.testing.assert_close(sketch.float(), limit, rtol=1e-4, atol=1e-4)


def test_finite_difference_of_a_linear_critic_is_its_derivative_to_float64():
    critic = LinearCritic(5, members=2, dtype=torch.float32)
    params, inputs32 = {"w": torch.randn(2, 5, generator=seeded())}, inputs(6, dtype=torch.float32)
    directions = normal_directions(params, 4, seeded())
    derivative = FiniteDifference(mu=1e-3).along(critic, params, *inputs32, directions)
    expected = directions["w"].double() @ torch.cat(inputs32, -1).double().T
    torch.testing.assert_close(derivative, expected, rtol=1e-11, atol=1e-11)  # μ U in float32 would be 1e-7 off


def test_finite_difference_refuses_a_critic_that_rounds(case):
    class Rounding(SmallCritic):
        def forward(self, obs, action):
            return super().forward(obs, action).float()

    critic = Rounding()
    with pytest.raises(ConfigError, match="float32 to float64"):
        FiniteDifference().kernel(critic, params_of(critic), *case[2:], seeded())


def test_estimates_agree_as_directions_grow(case):
    truth = Exact().kernel(*case, seeded())
    errors = [(JVP(directions=count).kernel(*case, seeded()) - truth).norm() / truth.norm() for count in (100, 10000)]
    assert errors[1] < 0.03
    assert errors[0] / errors[1] > 3.0


def test_squaring_before_averaging_is_another_kernel(case):
    # E (d_i d_j)² = K_ii K_jj + 2 K_ij², not K_ij²: what Eq. 14 as printed minimises has the diagonal in it.
    critic, params, obs, action = case
    derivative = JVP().along(critic, params, obs, action, normal_directions(params, 100_000, seeded()))[:, 0, :2]
    kernel = explicit_kernel(*case)[0]
    expected = kernel[0, 0] * kernel[1, 1] + 2 * kernel[0, 1] ** 2
    assert derivative.prod(1).square().mean().item() == pytest.approx(expected.item(), rel=0.05)
    assert derivative.prod(1).mean().item() == pytest.approx(kernel[0, 1].item(), rel=0.05)


def test_members_that_share_parameters_need_a_sketch():
    critic = SharedTrunkCritic()
    case = critic, params_of(critic), *inputs(4)
    with pytest.raises(ValueError, match="not stacked over 2 members"):
        Exact().kernel(*case, seeded())
    truth = explicit_kernel(*case)
    assert (JVP(directions=20_000).kernel(*case, seeded()) - truth).norm() < 0.05 * truth.norm()


def test_layers_of_another_kind_need_a_sketch():
    critic = SharedTrunkCritic()
    with pytest.raises(ConfigError, match=r"Layerwise.*trunk.weight.* is in no batched linear layer; use JVP"):
        Layerwise().kernel(critic, params_of(critic), *inputs(4), seeded())


def test_a_layer_that_is_used_twice_needs_a_sketch():
    critic = SmallCritic(hidden=(5, 5))
    critic.trunk[2] = critic.trunk[2]
    critic.trunk = torch.nn.Sequential(*critic.trunk[:3], critic.trunk[2], *critic.trunk[3:])
    with pytest.raises(ConfigError, match=r"trunk.2 is used more than once; use JVP"):
        Layerwise().kernel(critic, params_of(critic), *inputs(4), seeded())


def test_layerwise_leaves_no_hook_behind(case):
    Layerwise().kernel(*case, seeded())
    assert not any(module._forward_pre_hooks for module in case[0].modules())


def test_a_single_member_needs_no_member_axis():
    blocks = member_blocks({"weight": torch.zeros(7, 3, 2), "bias": torch.zeros(7, 3), "scale": torch.zeros(7)}, 1)
    assert [tuple(block.shape) for block in blocks] == [(7, 1, 6), (7, 1, 3), (7, 1, 1)]


def test_directions_are_fixed_by_the_seed_and_differ_between_calls():
    params, generator = params_of(SmallCritic()), seeded(5)
    first, second = normal_directions(params, 3, generator), normal_directions(params, 3, generator)
    again = normal_directions(params, 3, seeded(5))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], second[name]) for name in params)
    assert {name: value.shape[1:] for name, value in first.items()} == {n: v.shape for n, v in params.items()}


@pytest.mark.parametrize(
    "build", [lambda: JVP(directions=0), lambda: FiniteDifference(0), lambda: FiniteDifference(1, 0.0)]
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ConfigError, match="cannot be used"):
        build()
    assert JVP(directions=1).directions == FiniteDifference(1, 1e-12).directions == 1
