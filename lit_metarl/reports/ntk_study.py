"""``lit-metarl study ntk``: how a critic's tangent kernel goes on in training, Fig. 3 of Evmorfos & Petropulu 2024.

Of runs that logged it: ``fit … --trainer.callbacks+=lit_metarl.callbacks.NTKMonitor``.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from lit_metarl.reports.curves import Run, common_curve, draw_curves, read_runs
from lit_metarl.reports.document import ReportError, markers, write_block
from lit_metarl.reports.results import by_group, labelled, positive_steps
from lit_metarl.tracking import TrackingError

BLOCK = "ntk"  # of the README, by default
METRICS = ("ratio", "diagonal", "effective_rank", "eq7_margin", "eq8_margin")


def main(arguments: list[str]) -> int:
    """Draw, print the table and return 0, or 2 with the reason if there is nothing to show."""
    parser = argparse.ArgumentParser(
        "lit-metarl study ntk", description="The tangent kernel of the critics over training (needs NTKMonitor)."
    )
    add = parser.add_argument
    add("--root", default="mlruns", help="folder of the store (default: %(default)s)")
    add("--experiment", nargs="+", default=[], metavar="NAME", help="experiments (default: all)")
    add("--metric", choices=METRICS, default="ratio", help="(default: %(default)s)")
    add("--at", nargs="+", type=positive_steps, default=[], metavar="STEPS", help="environment steps of the table")
    add("--all", action="store_true", help="also runs that are running or failed")
    add("--figure", metavar="DIR", default="mlruns/figures", help="folder of the pictures (default: %(default)s)")
    add("--block", default=BLOCK, metavar="NAME", help="markers of another name (default: %(default)s)")
    add("--write", metavar="FILE", help=f"put the table between {' and '.join(markers(BLOCK))} of FILE")
    args = parser.parse_args(arguments)
    metric = f"ntk/{args.metric}"
    try:
        runs, _ = read_runs(args.root, args.experiment, args.all, metric)
        groups = labelled(by_group(runs))
        text = markdown(groups, metric, args.at)
        sys.stdout.write(text)
        for path in draw_curves(groups, args.figure, metric):
            sys.stderr.write(f"{path}\n")
        if args.write:
            write_block(args.write, args.block, text)
    except (ReportError, TrackingError) as error:
        sys.stderr.write(f"lit-metarl: error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"lit-metarl: error: cannot write {error.filename}: {error.strerror}\n")
        return 2
    return 0


def markdown(groups: list[tuple[str, list[Run]]], metric: str, at: list[int]) -> str:
    """One line per experiment and environment: at the start, and at or just before every step of ``at``."""
    curves = [(label, runs, *common_curve(runs)) for label, runs in groups]
    at = at or sorted({int(steps[-1]) for _, _, steps, _ in curves if len(steps)})
    lines = [
        "| experiment | environment | seeds | start | " + " | ".join(f"{step:,}" for step in at) + " |",
        "|" + " --- |" * (4 + len(at)),
    ]
    for label, runs, steps, values in curves:
        cells = [_cell(np.array([run.returns[0] for run in runs]))]
        for step in at:
            reached = len(steps) and steps[0] <= step <= steps[-1]
            cells.append(_cell(values[:, np.searchsorted(steps, step, side="right") - 1]) if reached else "–")
        lines.append(f"| {label} | {runs[0].environment} | {len(runs)} | " + " | ".join(cells) + " |")
    note = f"`{metric}` on one fixed batch by environment steps: mean over seeds (lowest to highest)."
    return "\n".join(lines) + f"\n\n{note}\n"


def _cell(values: np.ndarray) -> str:
    mean = f"{values.mean():.3g}"
    return mean if len(values) == 1 else f"{mean} ({values.min():.3g} to {values.max():.3g})"
