"""``lit-metarl compare``: two arms on several tasks, with intervals over seeds and tasks.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_metarl.reports.arguments import positive_steps
from lit_metarl.reports.section import ReportError, Section, markdown_table
from lit_metarl.reports.tables.arms import groups_of, names_of
from lit_metarl.reports.tables.curves import RETURN, WINDOW, Run, read_runs
from lit_metarl.reports.tables.record import diverged_runs, metrics_of, read_record, record_of
from lit_metarl.reports.tables.results import by_group
from lit_metarl.reports.tables.statistics import (
    Array,
    bootstrap_interval,
    interquartile_mean,
    learning_curve_area,
    normalised,
    probability_of_improvement,
    steps_to_reach,
)
from lit_metarl.sweep.recipe import load_recipe


class Scores(NamedTuple):
    """Scores of one arm on one environment."""

    final: Array  # [S] mean return over the last WINDOW of the steps
    area: Array  # [S] mean height of the learning curve
    curves: Array  # [S, T]


class BothScores(NamedTuple):
    """Scores of both arms on one environment, each of all its seeds: nothing here pairs them."""

    environment: str
    steps: Array  # [T] of the curves of both
    control: Scores
    treated: Scores


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl compare``."""
    parser.usage = f"{parser.prog} [options] EXPERIMENT EXPERIMENT\n       {parser.prog} [options] RECIPE ARM ARM"
    add = parser.add_argument
    add(
        "names",
        nargs="+",
        metavar="NAME",
        help="two experiments of the store; or the file of a recipe and two of its arms, which are read from the "
        "record beside it (see lit-metarl report). The second is compared with the first",
    )
    add("--root", default="mlruns", help="folder of the store (default: %(default)s)")
    add("--metric", default=RETURN, metavar="NAME", help="any that the runs have (default: %(default)s); high is good")
    add("--at", type=positive_steps, metavar="STEPS", help="environment steps (default: last common)")
    add("--after", type=int, default=0, metavar="STEPS", help="start of the area under the curve (default: 0)")
    args = parser.parse_args(words)
    if len(args.names) not in (2, 3):
        parser.error("name two experiments, or a recipe and two of its arms")
    return args


def run(args: argparse.Namespace) -> Section:
    """The table of both arms.

    Raises:
        ReportError, ConfigError, TrackingError: they cannot be compared.
    """
    *recipe, control, treated = args.names
    if control == treated:
        raise ReportError(f"{control} would be compared with itself: name two.")
    remarks: list[str] = []
    if recipe:
        arms, remarks = recorded(Path(recipe[0]), [control, treated], args.metric)
    else:
        found = [one_per_environment(args.root, name, args.metric) for name in (control, treated)]
        arms, remarks = [arm for arm, _ in found], [remark for _, more in found for remark in more]
    first, second = arms
    scores, notes = compare(first, second, args.after, args.at, args.metric)
    return Section(table_of(scores, control, treated, args.metric), [*notes, *remarks])


def recorded(path: Path, arms: Sequence[str], metric: str) -> tuple[list[dict[str, list[Run]]], list[str]]:
    """Environment → runs, one per seed, of each of ``arms`` in the record of the recipe; a sentence on diverged ones.

    Raises:
        ReportError: there is no record, or an arm or ``metric`` is not in it.
        ConfigError: there is no such recipe.
    """
    recipe = load_recipe(path)
    rows = read_record(record_of(path))
    if not rows:
        raise ReportError(f"There is no record, {record_of(path)}: make it with `lit-metarl report {path}`.")
    if metric not in metrics_of(rows):
        raise ReportError(f"{record_of(path)} has no {metric}; it has {', '.join(metrics_of(rows))}.")
    names = names_of(rows, recipe.labels())
    own = dict.fromkeys(name.arm for name in names.values())
    if unknown := [arm for arm in arms if arm not in own]:
        known = ", ".join(map(repr, own))
        raise ReportError(f"{record_of(path)} has no arm {', '.join(map(repr, unknown))}; it has {known}.")
    groups, diverged = groups_of(rows, names, metric), diverged_runs(row for row in rows if names[row.arm].arm in arms)
    found = [{name: here[arm] for name, here in groups.items() if arm in here} for arm in arms]
    for arm, environments in zip(arms, found, strict=True):
        if not environments:
            raise ReportError(" ".join([f"{record_of(path)} has no {metric} of {arm!r}.", *diverged]))
        for environment, runs in environments.items():
            _check_settings(arm, environment, [run.config for run in runs])
    return found, diverged


def _check_settings(arm: str, environment: str, configs: Sequence[str]) -> None:
    if len(set(configs)) > 1:
        raise ReportError(
            f"{arm} has runs of several configurations on {environment} ({', '.join(dict.fromkeys(configs))}): give "
            "them experiments of their own, or train all seeds of a recipe's arm with the same settings."
        )


def one_per_environment(root: str, experiment: str, metric: str = RETURN) -> tuple[dict[str, list[Run]], list[str]]:
    """Environment → finished runs, one per seed; and a sentence on every seed that never finished.

    A seed that diverged counts for an arm's worst, so it is not to be missing silently.

    Raises:
        ReportError: no run finished, or finished runs differ by more than the seed.
    """
    runs, _ = read_runs(root, [experiment], unfinished=True, metric=metric)
    finished = [run for run in runs if run.status == "FINISHED"]
    done = {(run.environment, run.seed) for run in finished}
    others = {(run.environment, run.seed): run.status for run in runs if (run.environment, run.seed) not in done}
    remarks = [f"Not finished: {experiment} on {name}, seed {seed} ({others[name, seed]})." for name, seed in others]
    if not finished:
        raise ReportError(" ".join([f"No finished run in {experiment}.", *remarks]))
    groups: dict[str, list[Run]] = {}
    for (_, environment, _, config), seeds in by_group(finished).items():
        if environment in groups:
            _check_settings(experiment, environment, [groups[environment][0].config, config])
        groups[environment] = seeds
    return groups, remarks


def compare(
    control: Mapping[str, Sequence[Run]],
    treated: Mapping[str, Sequence[Run]],
    after: int,
    at: int | None,
    metric: str = RETURN,
) -> tuple[list[BothScores], list[str]]:
    """Scores on the environments that both arms have, up to step ``at`` (the last common one if None).

    Returns:
        The scores by environment, and sentences about what was measured and what was left out.

    Raises:
        ReportError: nothing is common, or a run does not cover the steps.
    """
    pairs = {name: (control[name], treated[name]) for name in sorted(control.keys() & treated.keys())}
    if not pairs:
        raise ReportError("The arms have no environment in common.")
    last = at or int(min(run.steps[-1] for arms in pairs.values() for runs in arms for run in runs))
    scores = [BothScores(name, *_scores(name, first, second, after, last)) for name, (first, second) in pairs.items()]
    alone = sorted(control.keys() ^ treated.keys())
    remarks = [f"Left out, as only one arm has it: {', '.join(alone)}."] if alone else []
    if len(scores) > 1 and not _balanced(scores):
        remarks.append("No line for all environments: an environment with more seeds would count more.")
    seeds = "; ".join(_seeds(name, *arms) for name, arms in pairs.items())
    note = (
        "Interquartile mean (below 4 scores the mean) over seeds, or over seeds and environments, with 95 % intervals "
        "of the stratified bootstrap (10,000 resamples of the seeds of each environment and arm; none for one seed, "
        f"and too narrow for few). Curves of `{metric}` on the evaluation steps of both arms, linear between a "
        f"run's own. Final: mean over the last {100 * WINDOW:.0f} % of {last:,} environment steps. Area: mean "
        f"height from {after:,} steps, or the first evaluation of all, on. Relative: in units of the mean of "
        "the first arm on each environment. P(improvement): chance that a seed of the second is above one of the "
        "first. Steps to the first arm's final return: where the mean curve over seeds first is as high. "
        f"Seeds are not paired, so all of either arm count: {seeds}."
    )
    return scores, [note, *remarks]


def _seeds(environment: str, *arms: Sequence[Run]) -> str:
    first, second = (", ".join(run.seed for run in runs) for runs in arms)
    return f"{environment} {first}" + (f" against {second}" if first != second else "")


def _balanced(scores: Sequence[BothScores]) -> bool:
    """Whether either arm has as many seeds on every environment."""
    return all(len({len(getattr(each, arm).final) for each in scores}) == 1 for arm in ("control", "treated"))


def _scores(
    environment: str, control: Sequence[Run], treated: Sequence[Run], after: int, last: int
) -> tuple[Array, Scores, Scores]:
    """The grid, and scores of both arms on it: else the arm that is evaluated later looks better."""
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
    first, second = (Scores(final[arm], area[arm], curves[arm]) for arm in (slice(split), slice(split, None)))
    return grid, first, second


def table_of(scores: Sequence[BothScores], control: str, treated: str, metric: str = RETURN) -> str:
    """A line per environment and measure; all environments together where that makes sense."""
    lines: list[list[str]] = []
    final = "final return" if metric == RETURN else f"final {metric}"
    for field, name in (("final", final), ("area", "area under the curve")):
        for environment, pairs in _rows(scores, field):
            positive = all(first.min() > 0 <= second.min() for first, second in pairs)
            cells = _compared(pairs, partial(interquartile_mean, axis=-1), positive)
            lines.append([environment, name, *cells, f"{_improvement(pairs):.2f}"])
    lines += [[each.environment, f"steps to the first arm's {final}", *_reached(each), "–"] for each in scores]
    if all(len(arm.final) > 1 for each in scores for arm in (each.control, each.treated)):
        for environment, pairs in _rows(scores, "final"):
            cells = _compared(
                pairs, partial(_deviation, tasks=len(pairs)), all(np.ptp(first) > 0 for first, _ in pairs)
            )
            lines.append([environment, f"deviation of {final} over seeds", *cells, "–"])
    return markdown_table(["environment", "measure", control, treated, "ratio", "P(improvement)"], lines)


def _rows(scores: Sequence[BothScores], field: str) -> Iterator[tuple[str, list[tuple[Array, Array]]]]:
    """Environment and both arms' scores; then all environments, in units of the control's mean on each."""
    pairs = [(getattr(each.control, field), getattr(each.treated, field)) for each in scores]
    for each, pair in zip(scores, pairs, strict=True):
        yield each.environment, [pair]
    comparable = _balanced(scores) and all(first.mean() > 0 for first, _ in pairs)
    if len(scores) > 1 and comparable:
        relative = [(normalised(x, 0, x.mean()), normalised(y, 0, x.mean())) for x, y in pairs]
        yield f"all {len(scores)}, relative", relative


def _compared(pairs: Sequence[tuple[Array, Array]], statistic: Callable[..., Array], comparable: bool) -> list[str]:
    """Three cells: ``statistic`` of both arms, and the ratio of the two if that means something; a pair per task."""
    arms = [[pair[arm] for pair in pairs] for arm in (0, 1)]
    split = sum(len(scores) for scores in arms[0])

    def ratio(pooled: Array) -> Array:
        below = statistic(pooled[..., :split])  # 0 for a resample of one score alone, if it is a deviation
        return statistic(pooled[..., split:]) / np.where(below > 0, below, np.nan)

    def cell(scores: Sequence[Array], of: Callable[..., Array], digits: str) -> str:
        value = f"{of(np.concatenate(scores)):{digits}}"
        several = min(len(task) for task in scores) > 1
        low, high = bootstrap_interval(scores, of) if several else (np.nan, np.nan)
        return f"{value} ({low:{digits}} to {high:{digits}})" if np.isfinite([low, high]).all() else value

    ratio_cell = cell([*arms[0], *arms[1]], ratio, ".2f") if comparable else "–"
    return [*(cell(arm, statistic, ".4g") for arm in arms), ratio_cell]


def _reached(scores: BothScores) -> list[str]:
    """Three cells: steps after which either arm is as high as the control ends, and the ratio of the two."""
    arms, ends = (scores.control.curves, scores.treated.curves), scores.steps > scores.steps[-1] * (1 - WINDOW)
    seeds = [np.arange(len(curves), dtype=np.float64) for curves in arms]

    def reached(places: Array) -> list[Array]:
        parts = np.split(places.astype(int), [len(seeds[0])], axis=-1)
        means = [interquartile_mean(curves[part], axis=-2) for curves, part in zip(arms, parts, strict=True)]
        target = means[0][..., ends].mean(axis=-1)
        steps = [steps_to_reach(scores.steps, mean, target) for mean in means]
        return [np.maximum(each, 1) for each in steps]  # a first evaluation at step 0 would have no ratio

    def speed(places: Array) -> Array:  # finite where the ratio is not: 0 if the second arm never is as high
        control, treated = reached(places)
        return control / treated

    def text(value: float, digits: str) -> str:
        return f"{value:{digits}}" if np.isfinite(value) else "never"

    everyone = np.concatenate(seeds)
    control, treated = (float(steps) for steps in reached(everyone))
    ratio = text(treated / control, ".2f")
    if min(map(len, seeds)) > 1:
        slow, fast = bootstrap_interval(seeds, speed, resamples=1000)
        ratio += f" ({text(1 / fast if fast else np.inf, '.2f')} to {text(1 / slow if slow else np.inf, '.2f')})"
    return [text(control, ",.0f"), text(treated, ",.0f"), ratio]


def _deviation(pooled: Array, tasks: int) -> Array:
    """Over the seeds of a task, then the mean over tasks: ``[..., K·S]`` → ``[...]``."""
    return np.asarray(pooled.reshape(*pooled.shape[:-1], tasks, -1).std(axis=-1, ddof=1).mean(axis=-1))


def _improvement(pairs: Sequence[tuple[Array, Array]]) -> float:
    return float(np.mean([probability_of_improvement(y, x) for x, y in pairs]))
