"""Statistics: hand-computed values, scipy, a loop implementation, and the coverage that an interval promises."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr, trim_mean

from lit_metarl.reports.tables.statistics import (
    bootstrap_band,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    learning_curve_area,
    normalised,
    performance_profile,
    probability_of_improvement,
    rank_correlation,
    rank_correlation_interval,
    rank_correlation_within,
    steps_to_reach,
)


def matrix() -> np.ndarray:
    """Ten seeds of eight tasks, some harder than others. ``[10, 8]``."""
    rng = np.random.default_rng(7)
    return rng.beta(2, 2, size=(10, 8)) * np.linspace(0.6, 1.4, 8)


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([100, 1, 2, 3, -50, 4, 5, 0]) == 2.5  # 8 scores: -50, 0 and 5, 100 dropped; 1 2 3 4
    assert interquartile_mean([9, 1, 2]) == 4  # below four nothing is dropped
    assert interquartile_mean([9, 1, 2, 100]) == 5.5  # of four one at each end


@pytest.mark.parametrize("count", range(1, 14))
def test_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=(3, count, 2))
    np.testing.assert_allclose(interquartile_mean(scores, axis=1), trim_mean(scores, 0.25, axis=1), rtol=1e-13)
    np.testing.assert_allclose(interquartile_mean(scores), trim_mean(scores, 0.25, axis=None), rtol=1e-13)


def test_a_diverged_seed_is_not_trimmed_away() -> None:
    assert np.isnan(interquartile_mean([1, 2, 3, np.nan]))
    result = interquartile_mean([[1, 2, 3, np.nan], [1, 2, 3, 4]], axis=1)
    np.testing.assert_array_equal(result, [np.nan, 2.5])


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean([])
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap_interval([[1.0], []])
    with pytest.raises(ValueError, match="confidence = 95"):
        bootstrap_interval([1.0, 2.0], confidence=95)


def test_bootstrap_agrees_with_an_independent_loop() -> None:
    scores = matrix()
    rng = np.random.default_rng(123)
    values = []
    for _ in range(4000):
        drawn = [scores[rng.integers(10), task] for task in range(8) for _ in range(10)]
        values.append(trim_mean(drawn, 0.25))
    # a quantile of 4000 resamples has a standard error of about 0.001 here
    np.testing.assert_allclose(
        bootstrap_interval(scores, resamples=20_000), np.quantile(values, [0.025, 0.975]), atol=4e-3
    )


def test_bootstrap_stays_within_tasks() -> None:
    # each task's seeds agree: whatever is drawn, the pooled mean is (1 + 2 + 9)/3; unstratified it would vary
    constant = np.tile([1.0, 2.0, 9.0], (5, 1))
    assert bootstrap_interval(constant, lambda pooled: pooled.mean(-1)) == pytest.approx((4, 4))


def test_bootstrap_draws_tasks_independently() -> None:
    # opposite tasks: drawn together (whole rows) every mean is 0; drawn apart, seeds of one task do not cancel
    low, high = bootstrap_interval(np.array([[1.0, -1.0], [-1.0, 1.0], [3.0, -3.0]]), lambda pooled: pooled.mean(-1))
    assert low < -0.5
    assert high > 0.5


def test_bootstrap_of_unequal_numbers_of_seeds() -> None:
    columns = list(matrix().T)
    assert bootstrap_interval(columns) == bootstrap_interval(matrix())
    low, high = bootstrap_interval([[1.0, 1.0], [4.0]], lambda pooled: pooled.mean(-1))
    assert (low, high) == (2, 2)  # (1 + 1 + 4)/3


def test_three_seeds_give_their_range() -> None:
    assert bootstrap_interval([5.0, 1.0, 2.0]) == (1, 5)  # each end has probability 1/27 > 0.025


def test_bootstrap_is_reproducible_and_narrows_with_confidence() -> None:
    scores = matrix()
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)
    wide, narrow = bootstrap_interval(scores, confidence=0.99), bootstrap_interval(scores, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        scores = rng.normal(loc=[0.0, 5.0, -5.0, 0.0], size=(20, 4))
        low, high = bootstrap_interval(scores, lambda pooled: pooled.mean(-1), resamples=500)
        hits += low <= 0 <= high
    # 0.95 less the percentile bootstrap's shortfall of about 0.02 at 20 seeds; standard error 0.015
    assert 0.88 < hits / 300 < 0.98


def test_probability_of_improvement_by_hand() -> None:
    # task 1: pairs (1,0)> (1,3)< (2,0)> (2,3)< = 2/4; task 2: (5,5)= (5,4)> (6,5)> (6,4)> = 3.5/4
    assert probability_of_improvement([[1, 5], [2, 6]], [[0, 5], [3, 4]]) == pytest.approx((0.5 + 0.875) / 2)
    assert np.isnan(probability_of_improvement([1.0, 2.0], [0.0, np.nan]))


def test_band_is_the_interval_of_every_step() -> None:
    curves = matrix().repeat(30, axis=1)[:5]  # [5, 240]: several parts
    band = bootstrap_band(curves, resamples=4000)
    for step in (0, 110, 239):
        # two draws of 4000 resamples and one of 20,000: the quantiles' standard errors are below 0.01
        np.testing.assert_allclose(band[:, step], bootstrap_interval(curves[:, step], resamples=20_000), atol=0.03)
    assert np.ptp(band[:, :30], axis=1).tolist() == [0, 0]  # of equal steps the same seeds are drawn
    np.testing.assert_array_equal(bootstrap_band([[1.0, 2.0]]), [[1, 2], [1, 2]])


def test_probability_of_improvement_is_mann_whitney_and_antisymmetric() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, 12).astype(float), rng.integers(2, 11, 7).astype(float)
    assert probability_of_improvement(x, y) == pytest.approx(mannwhitneyu(x, y).statistic / (12 * 7))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    with pytest.raises(ValueError, match="2 tasks cannot be compared with 1"):
        probability_of_improvement(np.ones((3, 2)), np.ones(3))


def test_interval_of_the_probability_of_improvement_by_hand() -> None:
    # Resamples of (0, 2) against 1: both 0 with probability 1/4, one each 1/2, both 2 1/4.
    task = [0.0, 2.0], [1.0, 1.0]
    assert improvement_interval(task[:1], task[1:]) == (0, 1)
    assert improvement_interval(task[:1], task[1:], confidence=0.4) == (0.5, 0.5)
    # Two tasks: the mean of both; one that is always won adds a half.
    both = improvement_interval([task[0], [3.0, 4.0, 5.0]], [task[1], [2.0]])
    assert both == (0.5, 1)
    low, high = improvement_interval([[1.0, 5.0, 3.0]], [[2.0, 4.0]], seed=3)
    assert low < probability_of_improvement([1.0, 5.0, 3.0], [2.0, 4.0]) < high
    with pytest.raises(ValueError, match="2 tasks cannot be compared with 1"):
        improvement_interval([[1.0], [2.0]], [[1.0]])


def test_learning_curve_area_by_hand() -> None:
    # trapezoids: 10·(0+2)/2 + 30·(2+4)/2 = 10 + 90, over a length of 40
    assert learning_curve_area([0, 10, 40], [0, 2, 4]) == pytest.approx(2.5)
    np.testing.assert_allclose(learning_curve_area([5, 6], [[1, 1], [0, 4]]), [1, 2])
    with pytest.raises(ValueError, match="increasing"):
        learning_curve_area([0, 0], [1, 2])


def test_normalised_by_hand() -> None:
    scores = [[0.0, 10.0], [5.0, 30.0]]
    np.testing.assert_allclose(normalised(scores), [[0, 0], [1, 1]])
    np.testing.assert_allclose(normalised(scores, low=[-5, 10], high=[5, 20]), [[0.5, 0], [1, 2]])
    with pytest.raises(ValueError, match="above the lower"):
        normalised([[1.0], [1.0]])


def test_steps_to_reach_by_hand() -> None:
    curves = [[1, 3, 2, 5], [0, 0, 0, 0], [4, 9, 9, 9], [1, 1, 4, 3]]
    # between the first two evaluations; never; at the first one; and where it dwells below, then jumps
    np.testing.assert_array_equal(steps_to_reach([10, 20, 30, 40], curves, [2, 1, 4, 4]), [15, np.inf, 10, 30])
    assert steps_to_reach([10, 20], [1, 3], 2.5) == 17.5


def test_performance_profile_by_hand() -> None:
    profile, low, high = performance_profile([[1.0, 2.0], [3.0, 4.0, 5.0]], [0.0, 1.0, 3.5, 5.0])
    np.testing.assert_allclose(profile, [1, 3 / 4, 1 / 3, 0])  # tasks count alike, whatever their seeds
    np.testing.assert_allclose(low, [1, 1 / 2, 0, 0])  # a quarter of the draws has the lower seed of the first alone
    np.testing.assert_allclose(high, [1, 1, 1 / 2, 0])


def test_profile_is_that_of_the_bootstrap_interval_at_one_level() -> None:
    scores = list(matrix().T)
    _, low, high = performance_profile(scores, [0.5])
    expected = bootstrap_interval(matrix(), lambda drawn: (drawn > 0.5).mean(axis=-1))
    np.testing.assert_allclose([low[0], high[0]], expected, atol=1e-12)


def test_a_diverged_run_is_above_no_level() -> None:
    assert performance_profile([[np.nan, 2.0]], [-1e9, 1.0, 3.0])[0].tolist() == [0.5, 0.5, 0]


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(3)
    for x, y in rng.integers(5, size=(6, 2, 12)).astype(float):  # of few values, so with ties
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        counts = rng.integers(3, size=12)
        again = spearmanr(np.repeat(x, counts), np.repeat(y, counts)).statistic
        assert rank_correlation(x, y, counts) == pytest.approx(again, abs=1e-12)
    assert np.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_interval_of_a_rank_correlation_keeps_arms_apart() -> None:
    # However seeds are redrawn within two arms of two that do not overlap, the second arm has more of both.
    low, high = rank_correlation_interval([[1.0, 2.0], [8.0, 9.0]], [[2.0, 1.0], [9.0, 8.0]])
    assert 0.5 < low < high == 1
    assert rank_correlation_interval([[1.0], [2.0]], [[5.0], [4.0]]) == pytest.approx((-1, -1))


def test_resamples_without_a_rank_correlation_do_not_count() -> None:
    low, high = rank_correlation_interval([[1.0, 2.0, 3.0], [1.0, 4.0, 5.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert -1 < low < high <= 1
    assert np.isnan(rank_correlation_interval([[1.0, 1.0]], [[1.0, 2.0]])).all()


def test_rank_correlation_within_arms_by_hand() -> None:
    # Ranks -1 0 1 in both arms against 1 0 -1 and 0 -1 1: (-2 + 1)/4. Of the 36 orders of the seeds only the 10 whose
    # sum is 0 are nearer to 0: that of one arm is 2, 1, 1, -1, -1 or -2.
    value, chance = rank_correlation_within([[0.1, 0.2, 0.3], [7.0, 8.0, 9.0]], [[3.0, 2.0, 1.0], [50.0, 40.0, 60.0]])
    assert value == pytest.approx(-0.25)
    assert chance == pytest.approx(26 / 36, abs=0.02)
    assert np.isnan(rank_correlation_within([[1.0, 1.0]], [[1.0, 2.0]])).all()
