"""Rank correlations with the return of what else a recipe recorded, over runs and within arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_metarl.reports.section import markdown_table
from lit_metarl.reports.tables.arms import Arm, groups_of
from lit_metarl.reports.tables.record import Evaluation, is_return, metrics_of
from lit_metarl.reports.tables.statistics import (
    Array,
    rank_correlation,
    rank_correlation_interval,
    rank_correlation_within,
)
from lit_metarl.sweep.recipe import Label

NOTE = """\
Spearman's rank correlation, over the runs of an environment, of the mean of a metric's points with the return at the \
end, and the 95 % interval of the bootstrap that redraws the seeds of each arm (too narrow for few). Within arms: of \
the ranks among an arm's seeds, so that arms are not compared, and p, the chance of as much without any relation."""
"""The sentences below that table."""


def relations(rows: Sequence[Evaluation], names: Mapping[str, Label], arms: Sequence[Arm]) -> str:
    """The table of every recorded metric's correlation with the return; empty where no environment has what it takes.

    That is two arms or more, each of two seeds or more with the metric.

    Args:
        rows: of the record.
        names: of the arms, see :func:`~lit_metarl.reports.tables.arms.names_of`.
        arms: with their scores.
    """
    lines = []
    for metric in (name for name in metrics_of(rows) if not is_return(name)):
        for environment, here in groups_of(rows, names, metric).items():
            means = {run.run_id: float(run.returns.mean()) for runs in here.values() for run in runs}
            shared = [_shared(arm, means) for arm in arms if arm.environment == environment]
            pairs = [pair for pair in shared if pair.shape[1] > 1]
            if len(pairs) > 1:
                lines.append([f"`{metric}`", environment, *_correlations(pairs)])
    heads = ["metric", "environment", "arms", "runs", "correlation", "within arms"]
    return markdown_table(heads, lines) if lines else ""


def _shared(arm: Arm, means: Mapping[str, float]) -> Array:
    """The metric's means and the scores of the arm's runs that have both, ``[2, S]``."""
    pairs = [(means.get(run.run_id, np.nan), score) for run, score in zip(arm.runs, arm.scores, strict=True)]
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[np.isfinite(found).all(axis=1)].T


def _correlations(pairs: Sequence[Array]) -> list[str]:
    """Numbers of arms and runs, and the correlations over and within arms; ``pairs`` are those of each arm."""
    x, y = zip(*pairs, strict=True)
    value, (low, high) = rank_correlation(np.concatenate(x), np.concatenate(y)), rank_correlation_interval(x, y)
    within, chance = rank_correlation_within(x, y)
    over = "–" if np.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"
    inside = "–" if np.isnan(within) else f"{within:.2f} (p {chance:.2f})"
    return [str(len(pairs)), str(sum(len(arm) for arm in x)), over, inside]
