"""A metric that a callback logged, over training: as a table and as curves, by arm and environment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_metarl.reports.section import Section, markdown_table
from lit_metarl.reports.tables.curves import Run, common_curve, draw_curves, read_runs
from lit_metarl.reports.tables.results import add_store, by_group, labelled


def parse_metric(parser: argparse.ArgumentParser, words: list[str], metrics: Sequence[str]) -> argparse.Namespace:
    """Settings of a study of one of ``metrics``, the first by default."""
    add_store(parser)
    add = parser.add_argument
    add("--metric", choices=metrics, default=metrics[0], help="(default: %(default)s)")
    add("--figure", metavar="DIR", default="mlruns/figures", help="folder of the pictures (default: %(default)s)")
    return parser.parse_args(words)


def over_training(args: argparse.Namespace, monitor: str, where: str) -> Section:
    """The metric ``<monitor>/<args.metric>``, measured ``where``, over training.

    Raises:
        ReportError, TrackingError: there is nothing to show.
    """
    metric = f"{monitor}/{args.metric}"
    runs, _ = read_runs(args.root, args.experiment, args.all, metric)
    groups = labelled(by_group(runs))
    note = f"`{metric}` {where} by environment steps: mean over seeds (lowest to highest)."
    return Section(table_of(groups, args.at), [note], draw_curves(groups, Path(args.figure), metric))


def table_of(groups: list[tuple[str, list[Run]]], at: list[int]) -> str:
    """One line per arm and environment: at the start, and at or just before every step of ``at``."""
    curves = [(label, runs, *common_curve(runs)) for label, runs in groups]
    at = at or sorted({int(steps[-1]) for _, _, steps, _ in curves if len(steps)})
    lines = []
    for label, runs, steps, values in curves:
        cells = [_cell(np.array([run.returns[0] for run in runs]))]
        for step in at:
            reached = len(steps) and steps[0] <= step <= steps[-1]
            cells.append(_cell(values[:, np.searchsorted(steps, step, side="right") - 1]) if reached else "–")
        lines.append([label, runs[0].environment, str(len(runs)), *cells])
    return markdown_table(["arm", "environment", "seeds", "start", *(f"{step:,}" for step in at)], lines)


def _cell(values: np.ndarray) -> str:
    mean = f"{values.mean():.3g}"
    return mean if len(values) == 1 else f"{mean} ({values.min():.3g} to {values.max():.3g})"
