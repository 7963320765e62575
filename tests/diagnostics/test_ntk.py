"""What is read from tangent kernels, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lit_metarl.diagnostics.ntk import contraction_margins, effective_rank, mean_magnitudes, ntk_ratio, spectrum

KERNEL = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 3.0]], dtype=torch.float64)


def test_ratio_by_hand():
    # diagonal (4 + 2 + 3)/3 = 3; off-diagonal (1 + 0 + 1)·2/6 = 2/3
    assert [value.item() for value in mean_magnitudes(KERNEL)] == pytest.approx([3, 2 / 3])
    assert [value.item() for value in mean_magnitudes(KERNEL[:2, :2])] == [3, 1]  # two make a pair
    assert ntk_ratio(KERNEL).item() == pytest.approx(4.5)
    torch.testing.assert_close(ntk_ratio(torch.stack([KERNEL, 1e-9 * KERNEL])), torch.full((2,), 4.5).double())
    with pytest.raises(ValueError, match="at least two"):
        ntk_ratio(torch.ones(1, 1))


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
