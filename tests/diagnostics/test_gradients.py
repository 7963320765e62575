"""The quality of sampled gradients: numbers by hand, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import math

import pytest
import torch

from lit_metarl.diagnostics.gradients import gradient_quality, paired_bias, variance_by_name


def test_by_hand() -> None:
    # Mean (2, 1), entries' variances 2 and 2; truth (1, 1): ‖mean − truth‖² = 1, less 4/2.
    quality = gradient_quality(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
    assert quality.bias2.value == pytest.approx(1 - 4 / 2)
    assert quality.variance.value == pytest.approx(4.0)
    assert quality.mean_std.value == pytest.approx(2**0.5)
    assert quality.relative_bias2.value == pytest.approx(-1 / 2)
    assert quality.relative_variance.value == pytest.approx(4 / 2)
    assert quality.cosine.value == pytest.approx((1 / 2**0.5 + 5 / 26**0.5) / 2)
    assert quality.variance.low == quality.variance.high  # two estimates tell nothing about their spread's spread


def test_noise_of_the_reference_is_taken_off() -> None:
    # Reference (0, 0) and (2, 2): mean (1, 1), Var r = 2 + 2, halved 2; truth² = 2 − 2 = 0.
    quality = gradient_quality(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert quality.bias2.value == pytest.approx(1 - 4 / 2 - 4 / 2)
    for part in (quality.relative_variance, quality.cosine):
        assert math.isnan(part.value)  # there is no truth to compare with


def test_noise_of_the_reference_lowers_no_cosine() -> None:
    """Against a mean whose noise is twice as long as the truth; that of plain cosines comes out at half the cosine."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(100, dtype=torch.float64, generator=generator)
    samples = truth + 0.5 * torch.randn(4, 100, dtype=torch.float64, generator=generator)
    exact = gradient_quality(samples, truth[None])
    found, plain = [], []
    for _ in range(300):
        reference = truth + 20**0.5 * 2 * torch.randn(20, 100, dtype=torch.float64, generator=generator)
        quality = gradient_quality(samples, reference)
        found.append([quality.cosine.value, quality.correlation.value])
        plain.append(float(torch.cosine_similarity(samples, reference.mean(0)[None]).mean()))
    mean = torch.tensor(found).nanmedian(0).values
    assert mean[0] == pytest.approx(exact.cosine.value, abs=0.05)
    assert mean[1] == pytest.approx(exact.correlation.value, abs=0.05)
    assert torch.tensor(plain).mean() < 0.6 * exact.cosine.value


def test_correlation_is_the_cosine_of_centred_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(3, 6, generator=generator), torch.randn(6, generator=generator)
    expected = torch.stack([torch.corrcoef(torch.stack([each, truth]))[0, 1] for each in samples]).mean()
    assert gradient_quality(samples, truth[None]).correlation.value == pytest.approx(float(expected), abs=1e-6)


def test_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    """Gaussian estimates with a known bias, spread and reference; 100 experiments."""
    generator = torch.Generator().manual_seed(0)
    truth, error = (scale * torch.randn(30, generator=generator).double() for scale in (1.0, 0.2))
    spread = 2.0 * torch.rand(30, generator=generator).double()
    bias2, variance, size = (float(x.square().sum()) for x in (error, spread, truth))
    exact = {"bias2": bias2, "variance": variance, "mean_std": float(spread.mean())}
    exact |= {"relative_bias2": bias2 / size, "relative_variance": variance / size}
    held = dict.fromkeys(exact, 0)
    for _ in range(100):
        samples = truth + error + spread * torch.randn(40, 30, generator=generator, dtype=torch.float64)
        reference = truth + torch.randn(60, 30, generator=generator, dtype=torch.float64)
        quality = gradient_quality(samples, reference)._asdict()
        for key, value in exact.items():
            held[key] += quality[key].low <= value <= quality[key].high
    assert all(89 <= count <= 99 for count in held.values()), held
    # and they are no wider than they need to be
    assert quality["variance"].high - quality["variance"].low < 0.3 * variance


def test_paired_by_hand() -> None:
    # Means over i ≠ j of the draws: ⟨g, g⟩ = (1 + 2 + 3)/3; 2 and 4 times that with 2g; 0 with g turned by 90°.
    draws = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
    half = paired_bias(draws, 2 * draws)
    assert half.scale.value == pytest.approx(1 / 2)
    assert half.relative_bias2.value == pytest.approx(1 / 4)
    assert half.direction2.value == pytest.approx(0.0, abs=1e-6)
    assert half.scale.low == pytest.approx(half.scale.high)  # in all draws
    turned = paired_bias(draws, draws @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert turned.scale.value == pytest.approx(0.0)
    assert turned.relative_bias2.value == pytest.approx(2.0)
    assert turned.direction2.value == pytest.approx(1.0)
    nothing = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])  # ⟨u, u⟩ of different draws: −1/3
    assert all(math.isnan(each.value) for each in paired_bias(draws, nothing))
    backwards = paired_bias(nothing, draws)
    assert math.isnan(backwards.direction2.value)
    assert math.isfinite(backwards.relative_bias2.value)


def test_intervals_of_pairs_hold_the_truth() -> None:
    """Gaussian estimates of a known scale and direction, whose noise is mostly shared; 100 experiments."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, generator=generator).double()
    across = 0.3 * torch.randn(30, generator=generator).double()
    mean = 0.6 * truth + across
    scale = mean @ truth / truth.square().sum()
    exact = {
        "scale": float(scale),
        "relative_bias2": float((mean - truth).square().sum() / truth.square().sum()),
        "direction2": float((mean - scale * truth).square().sum() / mean.square().sum()),
    }
    held = dict.fromkeys(exact, 0)
    for _ in range(100):
        shared, own = torch.randn(2, 40, 30, generator=generator, dtype=torch.float64)
        found = paired_bias(mean + 0.6 * shared + 0.1 * own, truth + shared)._asdict()
        for key, value in exact.items():
            held[key] += found[key].low <= value <= found[key].high
    assert all(89 <= count <= 99 for count in held.values()), held


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((4, 3), (4, 2)), ((4, 3), (5, 3))])
def test_pairs_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"two \[R, P\]"):
        paired_bias(*(torch.zeros(shape) for shape in shapes))


def test_variance_by_parameter() -> None:
    samples = {"weight": torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]]]), "bias": torch.tensor([[1.0], [5.0]])}
    assert variance_by_name(samples) == {"weight": 2.0, "bias": 8.0}


@pytest.mark.parametrize("shapes", [((1, 3), (2, 3)), ((4, 3), (2, 2)), ((3,), (2, 3)), ((4, 3), (3,))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"samples \[R, P\]"):
        gradient_quality(*(torch.zeros(shape) for shape in shapes))
