"""Statistics of few training runs.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264. The unit of replication is the training seed: average over evaluation episodes
before calling any of these. Axes: ``S`` seeds, ``K`` tasks, ``T`` evaluations, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Any]


def interquartile_mean(scores: ArrayLike, axis: int | None = None) -> Any:
    """Mean of the middle half: the ``⌊n/4⌋`` lowest and as many of the highest scores are dropped.

    Below four scores nothing is dropped and this is the mean. A NaN is never dropped: it makes the result NaN, so that
    a diverged seed cannot hide among the best. Agarwal et al. 2021, section 4.3.

    Args:
        scores: any shape; n is its size along ``axis``.
        axis: the axis to reduce, all if None.

    Raises:
        ValueError: there are no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    values, axis = (values.reshape(-1), 0) if axis is None else (values, axis)
    count = values.shape[axis]
    if count == 0:
        raise ValueError("The interquartile mean of no scores is not defined.")
    cut = count // 4
    middle = np.take(np.sort(values, axis=axis), range(cut, count - cut), axis=axis)
    return np.where(np.isnan(values).any(axis=axis), np.nan, middle.mean(axis=axis))[()]


def bootstrap_interval(
    scores: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` by the stratified bootstrap: seeds are redrawn within each task.

    The quantiles ``(1 ∓ confidence)/2`` of ``statistic`` over ``R`` data sets, each of which draws every task's S seeds
    again, with replacement and independently of the other tasks. Agarwal et al. 2021, section 4.1. It covers too
    rarely with few seeds: of 3 it is their range (one draw in 27 is thrice the lowest), and so holds the median of
    what they were drawn from only with probability ``1 − 2·½³ = 3/4``, not 0.95.

    Args:
        scores: ``[S, K]``, or ``[S]`` of one task, or a list of K arrays ``[S_k]`` where the tasks have unequal seeds.
        statistic: reduces the last axis of ``[R, ΣS_k]``, all seeds of all tasks; the interquartile mean if None.
        confidence: between 0 and 1.
        resamples: R.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: a task has no seeds, or ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not between 0 and 1.")
    tasks = _strata(scores)
    if not tasks or min(len(task) for task in tasks) == 0:
        raise ValueError("Every task needs the score of at least one seed.")
    rng = np.random.default_rng(seed)
    drawn = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in tasks]
    pooled = np.concatenate(drawn, axis=1)
    values = interquartile_mean(pooled, axis=-1) if statistic is None else statistic(pooled)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_band(curves: ArrayLike, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Array:
    """Percentile interval of the interquartile mean at every step of a curve, all steps with the same redrawn seeds.

    That of :func:`bootstrap_interval` at each step. Of one seed it has no width.

    Args:
        curves: ``[S, T]``.
        confidence: between 0 and 1.
        resamples: R.
        seed: of the resampling.

    Returns:
        The lower and the upper limit, ``[2, T]``.
    """
    values = np.asarray(curves, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    tail = (1 - confidence) / 2
    # all resamples of all steps at once would take gigabytes of twenty seeds
    parts = [
        np.quantile(interquartile_mean(part[rows], axis=1), [tail, 1 - tail], axis=0)
        for part in np.array_split(values, range(100, values.shape[1], 100), axis=1)
    ]
    return np.concatenate(parts, axis=1)


def _strata(scores: Any) -> list[Array]:
    if isinstance(scores, np.ndarray):
        return list(_seeds_by_tasks(scores).T)
    items = [np.asarray(item, dtype=np.float64) for item in scores]
    return [np.array(items)] if items and items[0].ndim == 0 else items


def probability_of_improvement(scores: ArrayLike, baseline: ArrayLike) -> float:
    """Mean over tasks of ``P(X > Y)``, the chance that a seed beats one of ``baseline``; a tie is one half.

    ``P(X > Y) = 1/(S·S') Σᵢⱼ (1[xᵢ > yⱼ] + ½·1[xᵢ = yⱼ])``, the Mann-Whitney U over its maximum. It says how often,
    not by how much: use :func:`interquartile_mean` of the scores for that. Agarwal et al. 2021, section 4.3. A NaN
    makes the result NaN.

    Args:
        scores: ``[S, K]``, or ``[S]`` of one task.
        baseline: ``[S', K]``, or ``[S']``.

    Raises:
        ValueError: the numbers of tasks differ, or there are no scores.
    """
    x, y = _seeds_by_tasks(scores), _seeds_by_tasks(baseline)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} tasks cannot be compared with {y.shape[1]}.")
    if x.size == 0 or y.size == 0:
        raise ValueError("The probability of improvement of no scores is not defined.")
    return float(_chances(x[:, None], y[None, :]).mean())


def improvement_interval(
    scores: Sequence[ArrayLike], baseline: Sequence[ArrayLike], **settings: Any
) -> tuple[float, float]:
    """Percentile interval of the probability of improvement, see :func:`bootstrap_interval`.

    Args:
        scores: a list of K arrays ``[S_k]``, one for each task.
        baseline: a list of K arrays ``[S'_k]``.
        settings: of the bootstrap.

    Raises:
        ValueError: the numbers of tasks differ, or a task has no scores.
    """
    if len(scores) != len(baseline):
        raise ValueError(f"{len(scores)} tasks cannot be compared with {len(baseline)}.")
    arrays = [np.asarray(each, dtype=np.float64) for each in (*scores, *baseline)]
    ends = np.cumsum([len(each) for each in arrays])[:-1]

    def improvement(pooled: Array) -> Array:
        drawn = np.split(pooled, ends, axis=-1)
        pairs = zip(drawn[: len(scores)], drawn[len(scores) :], strict=True)
        return np.mean([_chances(x[..., :, None], y[..., None, :]).mean(axis=(-1, -2)) for x, y in pairs], axis=0)

    return bootstrap_interval(arrays, improvement, **settings)


def _chances(scores: Array, baseline: Array) -> Array:
    """1 where a score is above, ½ where it is equal, 0 where it is below; NaN where one is."""
    chances = (scores > baseline) + 0.5 * (scores == baseline)
    return np.where(np.isnan(scores + baseline), np.nan, chances)


def _seeds_by_tasks(scores: ArrayLike) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def performance_profile(
    scores: Sequence[ArrayLike], levels: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Array:
    """Share of runs whose score is above each level τ, and the limits of its stratified bootstrap.

    ``F(τ) = 1/K Σ_k 1/S_k Σ_s 1[x_ks > τ]``: tasks count alike, whatever their seeds. A NaN is above no level. Limits
    are those of each level by itself. Agarwal et al. 2021, section 4.2.

    Args:
        scores: a list of K arrays ``[S_k]``, one for each task, in units that make them comparable.
        levels: τ, ``[T]``.
        confidence: between 0 and 1.
        resamples: R.
        seed: of the resampling.

    Returns:
        The profile, its lower and its upper limit, ``[3, T]``.
    """
    rng = np.random.default_rng(seed)
    tau, tail = np.asarray(levels, dtype=np.float64), (1 - confidence) / 2
    above = [np.asarray(task, dtype=np.float64)[:, None] > tau for task in scores]  # K × [S_k, T]
    drawn = [task[rng.integers(len(task), size=(resamples, len(task)))].mean(axis=1) for task in above]
    profile = np.mean([task.mean(axis=0) for task in above], axis=0)
    return np.stack([profile, *np.quantile(np.mean(drawn, axis=0), [tail, 1 - tail], axis=0)])


def rank_correlation(x: ArrayLike, y: ArrayLike, counts: ArrayLike = 1.0) -> Any:
    """Spearman's ρ: the Pearson correlation of the ranks, ties at the mean of theirs; NaN where all of one are equal.

    Args:
        x, y: ``[N]``.
        counts: how often each of the N is there, ``[..., N]``; the last axis is reduced.
    """
    values = [np.asarray(each, dtype=np.float64) for each in (x, y)]
    n = np.broadcast_to(counts, (*np.shape(counts)[:-1], len(values[0]))).astype(np.float64)
    ranks = [n @ _chances(each[:, None], each[None, :]).T for each in values]
    a, b = (rank - (n * rank).sum(axis=-1, keepdims=True) / n.sum(axis=-1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return ((n * a * b).sum(axis=-1) / np.sqrt((n * a * a).sum(axis=-1) * (n * b * b).sum(axis=-1)))[()]


def rank_correlation_interval(
    x: Sequence[ArrayLike],
    y: Sequence[ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of Spearman's ρ over all runs, which are redrawn within each arm; NaN if no ρ is defined.

    Resamples in which all of one quantity are equal have no ρ and do not count.

    Args:
        x: a list of K arrays ``[S_k]``, one for each arm.
        y: the same of another quantity of the same runs.
        confidence: between 0 and 1.
        resamples: R.
        seed: of the resampling.
    """
    rng, tail = np.random.default_rng(seed), (1 - confidence) / 2
    sizes = [len(np.asarray(arm)) for arm in x]
    counts = np.concatenate([rng.multinomial(size, np.full(size, 1 / size), resamples) for size in sizes], axis=1)
    values = rank_correlation(np.concatenate(x), np.concatenate(y), counts)
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def rank_correlation_within(
    x: Sequence[ArrayLike], y: Sequence[ArrayLike], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Correlation of the ranks that runs have in their own arm, and the chance of one as far from 0 without relation.

    With ranks ``r, s`` as deviations from their arm's mean, ``ρ = Σ r s / √(Σ r² Σ s²)`` over all runs; the chance is
    that of ``|ρ|`` or more where ``s`` is shuffled within each arm. Both are NaN where no arm's runs differ.

    Args:
        x: a list of K arrays ``[S_k]``, one for each arm.
        y: the same of another quantity of the same runs.
        resamples: how often it is shuffled.
        seed: of the shuffling.
    """
    rng = np.random.default_rng(seed)
    one, other = ([_centred_ranks(np.asarray(arm, dtype=np.float64)) for arm in arms] for arms in (x, y))
    r, s = np.concatenate(one), np.concatenate(other)
    norm = np.sqrt((r * r).sum() * (s * s).sum())
    if not norm > 0:
        return float("nan"), float("nan")
    value = float(r @ s / norm)
    shuffled = np.concatenate([rng.permuted(np.tile(arm, (resamples, 1)), axis=1) for arm in other], axis=1) @ r / norm
    return value, float((np.abs(shuffled) >= abs(value) - 1e-12).mean())


def _centred_ranks(values: Array) -> Array:
    ranks = _chances(values[:, None], values[None, :]).sum(axis=1)
    return ranks - ranks.mean()


def learning_curve_area(steps: ArrayLike, scores: ArrayLike) -> Any:
    """Area under a learning curve over its length, by trapezoids: the mean height, in units of the score.

    ``1/(s_T − s_1) Σₜ (s_{t+1} − s_t)·(x_t + x_{t+1})/2``. It rewards fast learning, where the final return does not;
    compare only curves over the same steps.

    Args:
        steps: ``[T]`` environment steps, increasing.
        scores: ``[..., T]``; the last axis is reduced.

    Raises:
        ValueError: fewer than two evaluations, or ``steps`` do not increase.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.size < 2 or not (np.diff(x) > 0).all():
        raise ValueError("A learning curve needs at least two evaluations at increasing steps.")
    return np.trapezoid(y, x, axis=-1) / (x[-1] - x[0])


def steps_to_reach(steps: ArrayLike, scores: ArrayLike, target: ArrayLike) -> Array:
    """Environment steps after which a learning curve first is as high as ``target``, inf where it never is.

    Linear between evaluations; the first evaluation, if that is as high already.

    Args:
        steps: ``[T]`` environment steps, increasing.
        scores: ``[..., T]``.
        target: ``[...]``, in units of the score.
    """
    x, y, level = (np.asarray(values, dtype=np.float64) for values in (steps, scores, target))
    reached = y >= level[..., None]
    after = reached.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(y, index[..., None], axis=-1)[..., 0] for index in (before, after))
    share = np.divide(level - low, high - low, out=np.ones_like(low), where=high > low)
    return np.where(reached.any(axis=-1), x[before] + share * (x[after] - x[before]), np.inf)


def normalised(scores: ArrayLike, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Array:
    """``(x − low)/(high − low)`` per task: 0 at ``low``, 1 at ``high``, not clipped.

    Args:
        scores: ``[S, K]``.
        low, high: ``[K]`` or scalar reference scores, such as a random and a published agent; where None, the lowest
            and highest of ``scores`` per task (min-max), which depend on who takes part in the comparison.

    Raises:
        ValueError: ``high`` is not above ``low`` for every task.
    """
    values = np.asarray(scores, dtype=np.float64)
    bottom = np.asarray(values.min(axis=0) if low is None else low, dtype=np.float64)
    top = np.asarray(values.max(axis=0) if high is None else high, dtype=np.float64)
    if not (top > bottom).all():
        raise ValueError("The upper reference score must be above the lower one for every task.")
    return (values - bottom) / (top - bottom)
