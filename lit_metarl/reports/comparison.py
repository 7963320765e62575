"""``lit-metarl compare``: two arms on several tasks, with intervals over seeds and tasks.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lit_metarl.reports.curves import WINDOW, Run, read_runs
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


class Scores(NamedTuple):
    """Of one arm on one environment."""

    final: Array  # [S] mean return over the last WINDOW of the steps
    area: Array  # [S] mean height of the learning curve


class Task(NamedTuple):
    """An environment with the seeds that both arms have."""

    environment: str
    seeds: list[str]
    control: Scores
    treated: Scores


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
        control, treated = (one_per_environment(args.root, name) for name in (args.control, args.treated))
        text = markdown(*compare(control, treated, args.after, args.at), args.control, args.treated)
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


def compare(
    control: Mapping[str, Sequence[Run]], treated: Mapping[str, Sequence[Run]], after: int, at: int | None
) -> tuple[list[Task], list[str]]:
    """Scores on the environments and seeds that both arms have, up to step ``at`` (the last common one if None).

    Returns:
        The tasks, and sentences about what was measured and what was left out.

    Raises:
        ReportError: nothing is common, or a run does not cover the steps.
    """
    pairs, remarks = {}, []
    for environment in sorted(control.keys() | treated.keys()):
        arms = [{run.seed: run for run in arm.get(environment, ())} for arm in (control, treated)]
        if alone := sorted(arms[0].keys() ^ arms[1].keys(), key=lambda seed: (len(seed), seed)):
            remarks.append(f"Left out, as only one arm has it: {environment}, seed {', '.join(alone)}.")
        if seeds := [seed for seed in arms[0] if seed in arms[1]]:
            pairs[environment] = seeds, [arms[0][seed] for seed in seeds], [arms[1][seed] for seed in seeds]
    if not pairs:
        raise ReportError("The experiments have no environment and seed in common.")
    last = at or int(min(run.steps[-1] for _, *arms in pairs.values() for runs in arms for run in runs))
    tasks = [
        Task(environment, seeds, *_scores(environment, first, second, after, last))
        for environment, (seeds, first, second) in pairs.items()
    ]
    counts = ", ".join(f"{task.environment} {len(task.seeds)}" for task in tasks)
    if len({len(task.seeds) for task in tasks}) > 1:
        remarks.append("No line for all environments: an environment with more seeds would count more.")
    note = (
        "Interquartile mean (below 4 scores the mean) over seeds, or over seeds and environments, with 95 % intervals "
        "of the stratified bootstrap (10,000 resamples of the seeds of each environment and arm; none for one seed, "
        f"and too narrow for few). Curves of `eval/return` on the evaluation steps of both arms, linear between a "
        f"run's own. Final return: mean over the last {100 * WINDOW:.0f} % of {last:,} environment steps. Area: mean "
        f"height from {after:,} steps, or the first evaluation of all, on. P(improvement): chance that a seed of the "
        f"second beats one of the first. Seeds: {counts}."
    )
    return tasks, [note, *remarks]


def _scores(
    environment: str, control: Sequence[Run], treated: Sequence[Run], after: int, last: int
) -> tuple[Scores, Scores]:
    """Of both arms on one grid: else the arm that is evaluated later looks better."""
    runs = [*control, *treated]
    if missing := sorted({run.seed for run in runs if not run.reached(last)}):
        raise ReportError(f"{environment}: seed {', '.join(missing)} was not evaluated shortly before {last:,} steps.")
    start = max(after, *(run.steps[0] for run in runs))
    grid = np.union1d([last], [step for run in runs for step in run.steps if start <= step <= last])
    if len(grid) < 2 or grid[0] > last * (1 - WINDOW):
        raise ReportError(f"{environment}: there is no curve of all seeds from {after:,} to {last:,} steps.")
    curves = np.stack([np.interp(grid, run.steps, run.returns) for run in runs])
    final = curves[:, grid > last * (1 - WINDOW)].mean(axis=1)
    area = np.asarray(learning_curve_area(grid, curves))
    split = len(control)
    return Scores(final[:split], area[:split]), Scores(final[split:], area[split:])


def markdown(tasks: Sequence[Task], remarks: Sequence[str], control: str, treated: str) -> str:
    """The table, with how to read it below."""
    lines = [f"| environment | measure | {control} | {treated} | ratio | P(improvement) |", "|" + " --- |" * 6]
    pooled = len(tasks) > 1 and len({len(task.seeds) for task in tasks}) == 1
    for measure, name in (("final", "final return"), ("area", "area under the curve")):
        pairs = [(getattr(task.control, measure), getattr(task.treated, measure)) for task in tasks]
        for task, pair in zip(tasks, pairs, strict=True):
            lines.append(f"| {task.environment} | {name} | {_compared([pair])} |")
        if pooled:
            lines.append(f"| all {len(tasks)} | {name} | {_compared(pairs)} |")
    if all(len(task.seeds) > 1 for task in tasks):
        spreads = [
            float(np.mean([np.std(scores.final, ddof=1) for scores in arm]))
            for arm in ([task.control for task in tasks], [task.treated for task in tasks])
        ]
        ratio = f"{spreads[1] / spreads[0]:.2f}" if spreads[0] > 0 else "–"
        lines.append(
            f"| all {len(tasks)} | deviation of final return over seeds, mean | {spreads[0]:.4g} | {spreads[1]:.4g} | "
            f"{ratio} | – |"
        )
    return "\n\n".join(["\n".join(lines), *remarks]) + "\n"


def _compared(pairs: Sequence[tuple[Array, Array]]) -> str:
    """Four cells: both arms' scores, their ratio where both are positive, and P(improvement); a pair per task."""
    control, treated = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    several = min(len(scores) for scores in control) > 1
    cells = []
    for arm in (control, treated):
        interval = " ({:.4g} to {:.4g})".format(*bootstrap_interval(arm)) if several else ""
        cells.append(f"{interquartile_mean(np.concatenate(arm)):.4g}{interval}")
    everything = np.concatenate([*control, *treated])
    ratio = partial(_ratio, split=sum(len(scores) for scores in control))
    if everything.min() > 0:
        interval = " ({:.2f} to {:.2f})".format(*bootstrap_interval([*control, *treated], ratio)) if several else ""
        cells.append(f"{ratio(everything):.2f}{interval}")
    else:
        cells.append("–")
    chance = np.mean([probability_of_improvement(y, x) for x, y in pairs])
    return " | ".join([*cells, f"{chance:.2f}"])


def _ratio(pooled: Array, split: int) -> Array:
    """Interquartile mean of the columns from ``split`` on over that of the columns before."""
    return interquartile_mean(pooled[..., split:], axis=-1) / interquartile_mean(pooled[..., :split], axis=-1)
