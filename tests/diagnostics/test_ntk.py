"""Tangent kernels against explicit Jacobians, and what is read from them against numbers worked out by hand."""

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

from lit_metarl.diagnostics import (
    contraction_margins,
    effective_rank,
    exact_kernel,
    ntk_ratio,
    sketched_kernel,
    spectrum,
)
from lit_metarl.nn.critics import EnsembleCritic

KERNEL = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 3.0]], dtype=torch.float64)


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
    torch.testing.assert_close(
        sketched_kernel(critic, params, obs, action, 7, seeded(), chunk=chunk),
        sketched_kernel(critic, params, obs, action, 7, seeded(), chunk=3),
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_critic_of_a_million_parameters_fits_in_two_gib():
    script = """
        import torch
        from lit_metarl.diagnostics import exact_kernel
        from lit_metarl.nn.critics import EnsembleCritic
        from lit_metarl.reports.meta_timing import resident

        critic = EnsembleCritic(17, 6, (1024, 1024), members=1)
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
    critic = EnsembleCritic(3, 2, (64, 64), members=2)
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


def test_sketch_is_unbiased_with_the_stated_variance():
    critic = SmallCritic(members=2)
    params, (obs, action) = params_of(critic), inputs(5)
    truth, repeats, directions = explicit_kernel(critic, params, obs, action), 500, 20
    sketches = torch.stack(
        [sketched_kernel(critic, params, obs, action, directions, seeded(s), chunk=20) for s in range(repeats)]
    )
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
        kernels = [sketched_kernel(critic, params, obs, action, count, seeded(s), chunk=count) for s in range(30)]
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
    sketch = sketched_kernel(critic, params, obs, action, directions, seeded())
    assert ntk_ratio(sketch).item() == pytest.approx(math.sqrt(math.pi * directions / 2), rel=0.05)


def test_ratio_by_hand():
    # diagonal (4 + 2 + 3)/3 = 3; off-diagonal (1 + 0 + 1)·2/6 = 2/3
    assert ntk_ratio(KERNEL).item() == pytest.approx(4.5)
    torch.testing.assert_close(ntk_ratio(torch.stack([KERNEL, 1e-9 * KERNEL])), torch.full((2,), 4.5).double())
    with pytest.raises(ValueError, match="at least two"):
        ntk_ratio(torch.ones(1, 1))


def test_a_kernel_has_the_precision_of_its_parameters():
    class Rounding(SmallCritic):
        def forward(self, obs, action):
            return super().forward(obs, action).float()

    critic = Rounding()
    assert exact_kernel(critic, params_of(critic), *inputs(3)).dtype == torch.float64
    assert exact_kernel(critic, params_of(critic), *inputs(3), dtype=torch.float32).dtype == torch.float32


def test_spectrum_descends_and_effective_rank_by_hand():
    kernels = torch.stack([torch.eye(2), torch.ones(2, 2), torch.tensor([[2.0, 1.0], [1.0, 2.0]])])
    assert spectrum(kernels).flatten().tolist() == pytest.approx([1, 1, 2, 0, 3, 1], abs=1e-6)
    # p = (3/4, 1/4): exp(−¾·log ¾ − ¼·log ¼) = 4/3^(3/4)
    assert effective_rank(kernels).tolist() == pytest.approx([2.0, 1.0, 4 / 3**0.75], rel=1e-4)
    bad = torch.full((2, 2), float("nan"))
    ranks = effective_rank(torch.stack([kernels[:2], torch.stack([bad, kernels[2]])]))
    torch.testing.assert_close(ranks, torch.tensor([[2.0, 1.0], [float("nan"), 4 / 3**0.75]]), equal_nan=True)


def test_contraction_margins_by_hand():
    # ρ = 1/3, η = 0.3, γ = 0.5. Eq. 7: 1 − 0.2·(4, 2, 3) = (0.2, 0.6, 0.4).
    # Eq. 8: 0.5·(4, 2, 3)/3 − 1.5·(1, 2, 1)/3 = (1/6, −2/3, 0): the last holds with equality.
    margins = contraction_margins(KERNEL, gamma=0.5, eta=0.3)
    assert [x.item() for x in margins.step_size] == pytest.approx([0.4, 0.2, 1.0])
    assert [x.item() for x in margins.dominance] == pytest.approx([-1 / 6, -2 / 3, 2 / 3])


def test_contraction_margins_weigh_with_frequencies():
    # ρ = (0.5, 0.25, 0.25), γ = 0, η = 0.5. Eq. 7: 1 − (4·0.5, 2·0.25, 3·0.25) = (−1, 0.5, 0.25).
    # Eq. 8: (2, 0.5, 0.75) − (1·0.25, 1·0.5 + 1·0.25, 1·0.25) = (1.75, −0.25, 0.5).
    rho = torch.tensor([0.5, 0.25, 0.25])
    margins = contraction_margins(KERNEL.expand(2, 3, 3), gamma=0.0, eta=0.5, frequencies=rho)
    assert margins.step_size.worst.tolist() == [-1.0, -1.0]
    assert margins.dominance.mean.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert margins.dominance.worst.tolist() == [-0.25, -0.25]
    assert margins.dominance.satisfied.tolist() == pytest.approx([2 / 3, 2 / 3])
