"""``lit-metarl compare``: two arms on several tasks, with intervals over seeds and tasks.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lit_metarl.reports.curves import WINDOW, Run, common_curve, read_runs
from lit_metarl.reports.document import ReportError, markers, write_block
from lit_metarl.reports.results import by_group, positive_steps
from lit_metarl.reports.statistics import (
    Array,
    bootstrap_interval,
    interquartile_mean,
    learning_curve_area,
    probability_of_improvement,
)
from lit_metarl.tracking import TrackingError

BLOCK = "comparison"  # of the README, by default


@dataclass(frozen=True)
class Arm:
    """One experiment: scores of its seeds by task, in the order of the tasks."""

    name: str
    final: list[Array]  # [S] per task: mean return over the last WINDOW of the steps
    area: list[Array]  # [S] per task: mean height of the learning curve


def main(arguments: list[str]) -> int:
    """Print the table and return 0, or 2 with the reason if the arms cannot be compared."""
    parser = argparse.ArgumentParser(
        "lit-metarl compare", description="Compare two experiments on the environments that both have runs on."
    )
    add = parser.add_argument
    add("control", help="experiment that the other one is compared with")
    add("treated", help="the other experiment")
    add("--root", default="mlruns", help="folder of the store (default: %(default)s)")
    add("--at", type=positive_steps, metavar="STEPS", help="environment steps (default: last common)")
    add("--after", type=int, default=0, metavar="STEPS", help="start of the area under the curve (default: 0)")
    add("--block", default=BLOCK, metavar="NAME", help="markers of another name (default: %(default)s)")
    add("--write", metavar="FILE", help=f"put the table between {' and '.join(markers(BLOCK))} of FILE")
    args = parser.parse_args(arguments)
    try:
        runs = [one_per_environment(args.root, name) for name in (args.control, args.treated)]
        tasks = sorted(runs[0].keys() & runs[1].keys())
        if not tasks:
            raise ReportError(f"{args.control} and {args.treated} have no environment in common.")
        last = args.at or int(min(run.steps[-1] for arm in runs for task in tasks for run in arm[task]))
        control, treated = (
            make_arm(name, [arm[task] for task in tasks], args.after, last)
            for name, arm in zip((args.control, args.treated), runs, strict=True)
        )
        text = markdown(tasks, control, treated, args.after, last)
        sys.stdout.write(text)
        if args.write:
            write_block(args.write, args.block, text)
    except (ReportError, TrackingError) as error:
        sys.stderr.write(f"lit-metarl: error: {error}\n")
        return 2
    return 0


def one_per_environment(root: str, experiment: str) -> dict[str, list[Run]]:
    """Environment → finished runs, one per seed. ``ReportError`` if they differ by more than the seed."""
    groups: dict[str, list[Run]] = {}
    for (_, environment, _, config), runs in by_group(read_runs(root, [experiment])[0]).items():
        if environment in groups:
            raise ReportError(
                f"{experiment} has runs of several configurations on {environment} ({groups[environment][0].config}, "
                f"{config}): give them experiments of their own."
            )
        groups[environment] = runs
    return groups


def make_arm(name: str, tasks: Sequence[Sequence[Run]], after: int, last: int) -> Arm:
    """Scores over ``after`` < steps ≤ ``last``. ``ReportError`` for a run that ended earlier or has too few points."""
    final, area = [], []
    for runs in tasks:
        steps, returns = common_curve(runs)
        inside = (steps > after) & (steps <= last)
        where = f"{name} on {runs[0].environment}"
        if missing := [run.seed for run in runs if not run.reached(last)]:
            raise ReportError(f"{where}: seed {', '.join(missing)} was not evaluated shortly before {last:,} steps.")
        if inside.sum() < 2:
            raise ReportError(f"{where} has fewer than two evaluations between {after:,} and {last:,} steps.")
        final.append(np.array([run.mean_return(last * (1 - WINDOW), last) for run in runs]))
        area.append(np.asarray(learning_curve_area(steps[inside], returns[:, inside])))
    return Arm(name, final, area)


def markdown(tasks: Sequence[str], control: Arm, treated: Arm, after: int, last: int) -> str:
    """The table, with how to read it below."""
    lines = [
        f"| environment | measure | {control.name} | {treated.name} | ratio | P(improvement) |",
        "|" + " --- |" * 6,
    ]
    for measure, first, second in (
        ("final return", control.final, treated.final),
        ("area under the curve", control.area, treated.area),
    ):
        for task, x, y in zip(tasks, first, second, strict=True):
            lines.append(f"| {task} | {measure} | {_compared([x], [y])} |")
        if len(tasks) > 1:
            lines.append(f"| all {len(tasks)} | {measure} | {_compared(first, second)} |")
    spreads = [[float(np.std(scores, ddof=1)) for scores in arm.final if len(scores) > 1] for arm in (control, treated)]
    if all(spreads):
        means = [float(np.mean(values)) for values in spreads]
        lines.append(
            f"| all {len(tasks)} | deviation of final return over seeds | {means[0]:.4g} | {means[1]:.4g} | "
            f"{means[1] / means[0]:.2f} | – |"
        )
    seeds = [f"{arm.name} {', '.join(str(len(scores)) for scores in arm.final)}" for arm in (control, treated)]
    return "\n".join(lines) + (
        f"\n\nInterquartile mean (below 4 scores the mean) over seeds, or over seeds and environments, with 95 % "
        "intervals of the stratified bootstrap (10,000 resamples of the seeds of each environment and arm). Final "
        f"return: mean of the evaluations in the last {100 * WINDOW:.0f} % of {last:,} environment steps. Area: mean "
        f"height of the curve of `eval/return` from {after:,} steps on. P(improvement): chance that a seed beats one "
        f"of {control.name}. Seeds by environment: {'; '.join(seeds)}.\n"
    )


def _compared(control: Sequence[Array], treated: Sequence[Array]) -> str:
    """Four cells: both scores, their ratio, and P(improvement); one array of seeds per task."""
    cells = []
    for arm in (control, treated):
        low, high = bootstrap_interval(arm)
        cells.append(f"{interquartile_mean(np.concatenate(arm)):.4g} ({low:.4g} to {high:.4g})")
    split = sum(len(scores) for scores in control)
    ratio = partial(_ratio, split=split)
    low, high = bootstrap_interval([*control, *treated], ratio)
    cells.append(f"{ratio(np.concatenate([*control, *treated])):.2f} ({low:.2f} to {high:.2f})")
    chance = np.mean([probability_of_improvement(y, x) for x, y in zip(control, treated, strict=True)])
    return " | ".join([*cells, f"{chance:.2f}"])


def _ratio(pooled: Array, split: int) -> Array:
    """Interquartile mean of the columns from ``split`` on over that of the columns before."""
    return interquartile_mean(pooled[..., split:], axis=-1) / interquartile_mean(pooled[..., :split], axis=-1)
