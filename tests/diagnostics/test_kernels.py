"""Tangent kernels against explicit Jacobians: values, gradients, and what each estimate costs in accuracy."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path

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

from lit_metarl.diagnostics.kernels import (
    JVP,
    Exact,
    FiniteDifference,
    Layerwise,
    exact_kernel,
    member_blocks,
    normal_directions,
)
from lit_metarl.diagnostics.ntk import ntk_ratio
from lit_metarl.nn.critics import EnsembleCritic
from lit_metarl.types import ConfigError, Sizes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("smooth", [False, True])
def test_exact_kernel_is_the_product_of_explicit_jacobians(smooth):
    critic = SmallCritic(members=2, smooth=smooth)
    params, (obs, action) = params_of(critic), inputs(7)
    kernel = exact_kernel(critic, params, obs, action, chunk=3)
    torch.testing.assert_close(kernel, explicit_kernel(critic, params, obs, action), rtol=1e-12, atol=1e-12)
    assert torch.equal(kernel, kernel.mT)
    assert torch.linalg.eigvalsh(kernel).min() > -1e-12


def test_kernel_of_a_linear_critic_by_hand():
    # φ = (1, 2, 0), (0, 1, 3): φφᵀ = [[1 + 4, 2], [2, 1 + 9]], whatever the weights.
    critic = LinearCritic(features=3, members=2)
    obs, action = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[0.0], [3.0]])
    kernel = exact_kernel(critic, params_of(critic), obs.double(), action.double())
    assert kernel.tolist() == [[[5.0, 2.0], [2.0, 10.0]]] * 2


def test_members_are_independent():
    critic = SmallCritic(members=2)
    params, (obs, action) = params_of(critic), inputs(5)
    jacobian = explicit_jacobian(critic, params, obs, action)
    assert torch.count_nonzero(jacobian[0] @ jacobian[1].T) == 0
    kernel = exact_kernel(critic, params, obs, action)
    for member in range(2):
        alone = {name: value[member : member + 1] for name, value in params.items()}
        torch.testing.assert_close(exact_kernel(SmallCritic(), alone, obs, action)[0], kernel[member])
        torch.testing.assert_close(exact_kernel(critic, params, obs, action, member=member)[0], kernel[member])
    moved = {name: value + torch.tensor([0.0, 1.0]).view(2, 1, 1) for name, value in params.items()}
    after = exact_kernel(critic, moved, obs, action)
    torch.testing.assert_close(after[0], kernel[0])
    assert not torch.allclose(after[1], kernel[1])


def test_members_that_share_parameters_are_measured_one_at_a_time():
    critic = SharedTrunkCritic()
    params, (obs, action) = params_of(critic), inputs(5)
    expected = explicit_kernel(critic, params, obs, action)
    for member in range(2):
        torch.testing.assert_close(exact_kernel(critic, params, obs, action, member=member)[0], expected[member])
    # Negative control: all at once is for independent members.
    assert not torch.allclose(exact_kernel(critic, params, obs, action), expected)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_do_not_matter(chunk):
    critic = SmallCritic(members=2)
    params, (obs, action) = params_of(critic), inputs(7)
    torch.testing.assert_close(
        exact_kernel(critic, params, obs, action, chunk=chunk), exact_kernel(critic, params, obs, action, chunk=3)
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_critic_of_a_million_parameters_fits_in_two_gib():
    script = """
        import torch
        from lit_metarl.diagnostics.kernels import exact_kernel
        from lit_metarl.nn.critics import EnsembleCritic
        from lit_metarl.types import Sizes
        from lit_metarl.reports.benchmarks.timing import resident

        critic = EnsembleCritic(Sizes(17, 6), (1024, 1024), members=1)
        params = dict(critic.named_parameters())
        assert sum(value.numel() for value in params.values()) > 1_050_000
        assert exact_kernel(critic, params, torch.randn(256, 17), torch.randn(256, 6)).shape == (1, 256, 256)
        print(resident("VmHWM"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=300
    )
    assert 0.1 < float(done.stdout) < 2.0


def test_float64_is_closer_to_the_truth_and_nothing_is_kept_or_changed():
    critic = EnsembleCritic(Sizes(3, 2), (64, 64), members=2)
    params, (obs, action) = dict(critic.named_parameters()), inputs(9, dtype=torch.float32)
    wide = SmallCritic(members=2, hidden=(64, 64))
    truth = explicit_kernel(wide, {n: v.detach().double() for n, v in params.items()}, obs.double(), action.double())
    before = params_of(critic)
    kernel = exact_kernel(critic, params, obs, action, dtype=torch.float64)
    torch.testing.assert_close(kernel, truth, rtol=1e-6, atol=1e-6)
    single = exact_kernel(critic, params, obs, action)
    assert single.dtype == torch.float32
    assert (single - truth).abs().max() > (kernel - truth).abs().max()
    assert not kernel.requires_grad
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in critic.named_parameters())


def test_a_kernel_has_the_precision_of_its_parameters():
    class Rounding(SmallCritic):
        def forward(self, obs, action):
            return super().forward(obs, action).float()

    critic = Rounding()
    assert exact_kernel(critic, params_of(critic), *inputs(3)).dtype == torch.float64
    assert exact_kernel(critic, params_of(critic), *inputs(3), dtype=torch.float32).dtype == torch.float32


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


def test_sketch_is_unbiased_with_the_stated_variance():
    critic = SmallCritic(members=2)
    params, (obs, action) = params_of(critic), inputs(5)
    truth, repeats, directions = explicit_kernel(critic, params, obs, action), 500, 20
    sketches = torch.stack([JVP(directions).kernel(critic, params, obs, action, seeded(s)) for s in range(repeats)])
    error = (sketches.mean(0) - truth) / (sketches.std(0) / math.sqrt(repeats))
    assert error.abs().max() < 4.0
    diagonal = truth.diagonal(dim1=-2, dim2=-1)
    variance = (truth.square() + diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2)) / directions
    assert (sketches.var(0) / variance).mean().item() == pytest.approx(1.0, abs=0.1)


def test_error_of_the_sketch_falls_as_one_over_the_root_of_directions():
    critic = SmallCritic(members=1)
    params, (obs, action) = params_of(critic), inputs(5)
    truth = exact_kernel(critic, params, obs, action)
    counts = torch.tensor([16.0, 64.0, 256.0, 1024.0], dtype=torch.float64)

    def error(count):
        kernels = [JVP(count).kernel(critic, params, obs, action, seeded(s)) for s in range(30)]
        return (torch.stack(kernels) - truth).square().mean().sqrt()

    x, y = counts.log(), torch.stack([error(int(count)) for count in counts]).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(-0.5, abs=0.06)


def test_ratio_of_a_sketch_is_bounded_by_its_noise():
    # Orthonormal features: no off-diagonal element, an infinite ratio; a sketch reads √(πS/2) = 1.25·√S.
    size, directions = 100, 64
    critic, features = LinearCritic(size), torch.eye(size, dtype=torch.float64)
    params, obs, action = params_of(critic), features[:, :50], features[:, 50:]
    assert ntk_ratio(exact_kernel(critic, params, obs, action)).item() == math.inf
    sketch = JVP(directions).kernel(critic, params, obs, action, seeded())
    assert ntk_ratio(sketch).item() == pytest.approx(math.sqrt(math.pi * directions / 2), rel=0.05)


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


def test_a_layer_whose_members_share_a_bias_needs_a_sketch():
    critic = SmallCritic(members=2, hidden=(5, 5))
    critic.trunk[0].bias = torch.nn.Parameter(torch.zeros(1, 1, 5, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"Layerwise.*trunk.0.* is in no batched linear layer; use JVP"):
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
