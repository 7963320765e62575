"""Rank correlations with the return of what else a recipe recorded, over runs and within arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_metarl.reports.section import markdown_table
from lit_metarl.reports.tables.arms import Arm, groups_of
from lit_metarl.reports.tables.curves import common_curve
from lit_metarl.reports.tables.record import Evaluation, is_return, metrics_of
from lit_metarl.reports.tables.statistics import (
    Array,
    learning_curve_area,
    rank_correlation,
    rank_correlation_interval,
)
from lit_metarl.sweep.recipe import Label

NOTE = """\
Spearman's rank correlation, over the runs of an environment, of a metric's mean over training with the return at the \
end, and the 95 % interval of the bootstrap that redraws the seeds of each arm. Within arms: of both as deviations \
from the arm's mean, so that seeds are compared, not arms."""
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
            steps, curves = common_curve([run for runs in here.values() for run in runs])
            if len(steps) < 2:
                continue
            ids = [run.run_id for runs in here.values() for run in runs]
            means = dict(zip(ids, learning_curve_area(steps, curves), strict=True))
            shared = [_shared(arm, means) for arm in arms if arm.environment == environment]
            pairs = [pair for pair in shared if pair.shape[1] > 1]
            if len(pairs) > 1:
                lines.append([f"`{metric}`", environment, *_correlations(pairs)])
    heads = ["metric", "environment", "arms", "runs", "correlation", "within arms"]
    return markdown_table(heads, lines) if lines else ""


def _shared(arm: Arm, means: Mapping[str, float]) -> Array:
    """The metric's means and the scores of the arm's runs that have both, ``[2, S]``."""
    scores = zip(arm.runs, arm.scores, strict=True)
    found = [(means[run.run_id], float(score)) for run, score in scores if run.run_id in means]
    return np.array(found).reshape(-1, 2).T


def _correlations(pairs: Sequence[Array]) -> list[str]:
    """Numbers of arms and runs, and the correlations over and within arms; ``pairs`` are those of each arm."""
    everything = np.concatenate(pairs, axis=1)
    deviations = np.concatenate([pair - pair.mean(axis=1, keepdims=True) for pair in pairs], axis=1)
    low, high = rank_correlation_interval(*zip(*pairs, strict=True))
    over = f"{rank_correlation(*everything):.2f} ({low:.2f} to {high:.2f})"
    return [str(len(pairs)), str(everything.shape[1]), over, f"{rank_correlation(*deviations):.2f}"]
