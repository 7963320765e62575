"""``lit-metarl compare``: two arms on several tasks, with intervals over seeds and tasks.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lit_metarl.reports.arguments import positive_steps
from lit_metarl.reports.section import ReportError, Section, markdown_table
from lit_metarl.reports.tables.curves import WINDOW, Run, read_runs
from lit_metarl.reports.tables.results import by_group
from lit_metarl.reports.tables.statistics import (
    Array,
    bootstrap_interval,
    interquartile_mean,
    learning_curve_area,
    normalised,
    probability_of_improvement,
)


class Scores(NamedTuple):
    """Scores of one arm on one environment."""

    final: Array  # [S] mean return over the last WINDOW of the steps
    area: Array  # [S] mean height of the learning curve


class PairedScores(NamedTuple):
    """Scores of both arms on one environment, of the seeds that both have."""

    environment: str
    seeds: list[str]
    control: Scores
    treated: Scores


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl compare``."""
    add = parser.add_argument
    add("control", help="experiment that the other one is compared with")
    add("treated", help="the other experiment")
    add("--root", default="mlruns", help="folder of the store (default: %(default)s)")
    add("--at", type=positive_steps, metavar="STEPS", help="environment steps (default: last common)")
    add("--after", type=int, default=0, metavar="STEPS", help="start of the area under the curve (default: 0)")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The table of both arms.

    Raises:
        ReportError, TrackingError: they cannot be compared.
    """
    control, unfinished = one_per_environment(args.root, args.control)
    treated, more = one_per_environment(args.root, args.treated)
    pairs, remarks = compare(control, treated, args.after, args.at)
    return Section(table_of(pairs, args.control, args.treated), [*remarks, *unfinished, *more])


def one_per_environment(root: str, experiment: str) -> tuple[dict[str, list[Run]], list[str]]:
    """Environment → finished runs, one per seed; and a sentence on every seed that never finished.

    A seed that diverged counts for an arm's worst, so it is not to be missing silently.

    Raises:
        ReportError: no run finished, or finished runs differ by more than the seed.
    """
    runs, _ = read_runs(root, [experiment], unfinished=True)
    finished = [run for run in runs if run.status == "FINISHED"]
    done = {(run.environment, run.seed) for run in finished}
    others = {(run.environment, run.seed): run.status for run in runs if (run.environment, run.seed) not in done}
    remarks = [f"Not finished: {experiment} on {name}, seed {seed} ({others[name, seed]})." for name, seed in others]
    if not finished:
        raise ReportError(" ".join([f"No finished run in {experiment}.", *remarks]))
    groups: dict[str, list[Run]] = {}
    for (_, environment, _, config), seeds in by_group(finished).items():
        if environment in groups:
            raise ReportError(
                f"{experiment} has runs of several configurations on {environment} ({groups[environment][0].config}, "
                f"{config}): give them experiments of their own."
            )
        groups[environment] = seeds
    return groups, remarks


def compare(
    control: Mapping[str, Sequence[Run]], treated: Mapping[str, Sequence[Run]], after: int, at: int | None
) -> tuple[list[PairedScores], list[str]]:
    """Scores on the environments and seeds that both arms have, up to step ``at`` (the last common one if None).

    Returns:
        The scores by environment, and sentences about what was measured and what was left out.

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
    scores = [
        PairedScores(environment, seeds, *_scores(environment, first, second, after, last))
        for environment, (seeds, first, second) in pairs.items()
    ]
    counts = ", ".join(f"{each.environment} {len(each.seeds)}" for each in scores)
    if len({len(each.seeds) for each in scores}) > 1:
        remarks.append("No line for all environments: an environment with more seeds would count more.")
    note = (
        "Interquartile mean (below 4 scores the mean) over seeds, or over seeds and environments, with 95 % intervals "
        "of the stratified bootstrap (10,000 resamples of the seeds of each environment and arm; none for one seed, "
        f"and too narrow for few). Curves of `eval/return` on the evaluation steps of both arms, linear between a "
        f"run's own. Final return: mean over the last {100 * WINDOW:.0f} % of {last:,} environment steps. Area: mean "
        f"height from {after:,} steps, or the first evaluation of all, on. Relative: in units of the mean of "
        "the first arm on each environment. P(improvement): chance that a seed of the second beats one of the first. "
        f"Seeds: {counts}."
    )
    return scores, [note, *remarks]


def _scores(
    environment: str, control: Sequence[Run], treated: Sequence[Run], after: int, last: int
) -> tuple[Scores, Scores]:
    """Scores of both arms on one grid: else the arm that is evaluated later looks better."""
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


def table_of(scores: Sequence[PairedScores], control: str, treated: str) -> str:
    """A line per environment and measure; all environments together where that makes sense."""
    lines: list[list[str]] = []
    for field, name in (("final", "final return"), ("area", "area under the curve")):
        for environment, pairs in _rows(scores, field):
            positive = all(first.min() > 0 <= second.min() for first, second in pairs)
            cells = _compared(pairs, partial(interquartile_mean, axis=-1), positive)
            lines.append([environment, name, *cells, f"{_improvement(pairs):.2f}"])
    if all(len(each.seeds) > 1 for each in scores):
        for environment, pairs in _rows(scores, "final"):
            cells = _compared(
                pairs, partial(_deviation, tasks=len(pairs)), all(np.ptp(first) > 0 for first, _ in pairs)
            )
            lines.append([environment, "deviation of final return over seeds", *cells, "–"])
    return markdown_table(["environment", "measure", control, treated, "ratio", "P(improvement)"], lines)


def _rows(scores: Sequence[PairedScores], field: str) -> Iterator[tuple[str, list[tuple[Array, Array]]]]:
    """Environment and both arms' scores; then all environments, in units of the control's mean on each."""
    pairs = [(getattr(each.control, field), getattr(each.treated, field)) for each in scores]
    for each, pair in zip(scores, pairs, strict=True):
        yield each.environment, [pair]
    comparable = len({len(each.seeds) for each in scores}) == 1 and all(first.mean() > 0 for first, _ in pairs)
    if len(scores) > 1 and comparable:
        relative = [(normalised(x, 0, x.mean()), normalised(y, 0, x.mean())) for x, y in pairs]
        yield f"all {len(scores)}, relative", relative


def _compared(pairs: Sequence[tuple[Array, Array]], statistic: Callable[..., Array], comparable: bool) -> list[str]:
    """Three cells: ``statistic`` of both arms, and the ratio of the two if that means something; a pair per task."""
    arms = [[pair[arm] for pair in pairs] for arm in (0, 1)]
    several, split = len(arms[0][0]) > 1, sum(len(scores) for scores in arms[0])

    def ratio(pooled: Array) -> Array:
        below = statistic(pooled[..., :split])  # 0 for a resample of one score alone, if it is a deviation
        return statistic(pooled[..., split:]) / np.where(below > 0, below, np.nan)

    def cell(scores: Sequence[Array], of: Callable[..., Array], digits: str) -> str:
        value = f"{of(np.concatenate(scores)):{digits}}"
        low, high = bootstrap_interval(scores, of) if several else (np.nan, np.nan)
        return f"{value} ({low:{digits}} to {high:{digits}})" if np.isfinite([low, high]).all() else value

    ratio_cell = cell([*arms[0], *arms[1]], ratio, ".2f") if comparable else "–"
    return [*(cell(arm, statistic, ".4g") for arm in arms), ratio_cell]


def _deviation(pooled: Array, tasks: int) -> Array:
    """Over the seeds of a task, then the mean over tasks: ``[..., K·S]`` → ``[...]``."""
    return np.asarray(pooled.reshape(*pooled.shape[:-1], tasks, -1).std(axis=-1, ddof=1).mean(axis=-1))


def _improvement(pairs: Sequence[tuple[Array, Array]]) -> float:
    return float(np.mean([probability_of_improvement(y, x) for x, y in pairs]))
