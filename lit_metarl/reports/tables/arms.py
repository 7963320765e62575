"""The arms of a recipe on every environment: their seeds' scores at a common step, and who is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import comb, prod
from typing import Protocol

import numpy as np

from lit_metarl.reports.section import ReportError, markdown_table
from lit_metarl.reports.tables.curves import RETURN, WINDOW, Run, common_curve
from lit_metarl.reports.tables.record import Evaluation, diverged_runs, is_return, metrics_of, runs_of
from lit_metarl.reports.tables.statistics import (
    Array,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    normalised,
    probability_of_improvement,
)
from lit_metarl.sweep.recipe import Label
from lit_metarl.tracking import DIVERGED

_SIGNIFICANT = 0.05  # a chance above it is no evidence

Groups = dict[str, dict[str, list[Run]]]
"""Environment → arm → runs by seed."""


@dataclass(frozen=True)
class Arm:
    """One arm on one environment.

    Attributes:
        name: in tables.
        environment: ``suite/task``.
        step: the last one up to which all arms were evaluated there.
        scores: of the seeds, ``[S]``.
        more: metric → scores ``[S]`` of another return, such as the one before adaptation.
        runs: one a seed, ``[S]``.
        diverged: how many more have no score, as they diverged.
    """

    name: str
    environment: str
    step: int
    scores: Array
    more: Mapping[str, Array]
    runs: Sequence[Run]
    diverged: int = 0

    def mean_of(self, metric: str) -> float | None:
        """Interquartile mean over the seeds of another return; None if the arm has none."""
        return float(interquartile_mean(self.more[metric])) if metric in self.more else None


class Placed(Protocol):
    """A thing of one arm on one environment."""

    @property
    def arm(self) -> str:
        """The arm with its place in the grid, as a cell has it."""

    @property
    def environment(self) -> str:
        """The environment's name, ``suite/task``."""


def names_of(rows: Sequence[Placed], labels: Mapping[str, Label]) -> dict[str, Label]:
    """Arm in the record → its name in tables, in the order of ``labels``.

    A place in the grid that is the environment's is left out, but where the name of an environment is that of several:
    returns on tasks of two ranges, say, are not compared.

    Args:
        rows: what is shown, of the record say.
        labels: of the recipe's arms.
    """
    places: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        own = labels.get(row.arm, Label(row.arm)).arm
        places.setdefault(row.environment, {}).setdefault(own, set()).add(row.arm)
    several = {name for name, here in places.items() if any(len(arms) > 1 for arms in here.values())}
    spelled = {row.arm for row in rows if row.environment in several}
    recorded = dict.fromkeys(row.arm for row in rows)
    order = [arm for arm in labels if arm in recorded] + [arm for arm in recorded if arm not in labels]
    names = {arm: labels.get(arm, Label(arm)) for arm in order}
    return {arm: name if arm in spelled else Label(name.arm) for arm, name in names.items()}


def groups_of(rows: Sequence[Evaluation], names: Mapping[str, Label], metric: str = RETURN) -> Groups:
    """The runs of a record by environment, arm (in the order of ``names``) and seed."""
    place = {arm: index for index, arm in enumerate(names)}
    groups: Groups = {}
    for run in sorted(runs_of(rows, metric), key=lambda run: (place[run.arm], len(run.seed), run.seed)):
        name, task = names[run.arm]
        named = replace(run, experiment=name, environment=f"{run.environment} {task}".rstrip())
        groups.setdefault(named.environment, {}).setdefault(name, []).append(named)
    return dict(sorted(groups.items()))


def arms_of(rows: Sequence[Evaluation], names: Mapping[str, Label]) -> list[Arm]:
    """Every arm on every environment.

    Raises:
        ReportError: no run has finished, or the runs on an environment have no steps in common.
    """
    groups, diverged = groups_of(rows, names), groups_of(rows, names, DIVERGED)
    if not groups:
        raise ReportError(" ".join(["No run has finished.", *diverged_runs(rows)]))
    scores = {metric: _scores(groups_of(rows, names, metric), is_return(metric)) for metric in metrics_of(rows)}
    arms = []
    for environment, here in groups.items():
        step = int(min(run.steps[-1] for runs in here.values() for run in runs))
        for name, runs in here.items():
            place = environment, name
            more = {key: each[place] for key, each in scores.items() if place in each}
            del more[RETURN]
            lost = len(diverged.get(environment, {}).get(name, []))
            arms.append(Arm(name, environment, step, scores[RETURN][place], more, runs, lost))
    return arms


def _scores(groups: Groups, required: bool = True) -> dict[tuple[str, str], Array]:
    """(environment, arm) → scores ``[S]``: means over the last WINDOW of the steps that all have.

    Where they have none, that is an error if ``required``, and no score otherwise.
    """
    scores: dict[tuple[str, str], Array] = {}
    for environment, here in groups.items():
        steps, curves = common_curve([run for runs in here.values() for run in runs])
        if not len(steps) and not required:
            continue
        if not len(steps):
            raise ReportError(f"The runs on {environment} have no steps in common: delete the shortest from the csv.")
        last = (steps > steps[-1] * (1 - WINDOW)) | (steps == steps[-1])  # a monitor's only point may be at 0
        final = curves[:, last].mean(axis=1)
        parts = np.split(final, np.cumsum([len(runs) for runs in here.values()])[:-1])
        scores |= {(environment, name): part for name, part in zip(here, parts, strict=True)}
    return scores


def relative(arms: Sequence[Arm]) -> dict[str, list[Array]]:
    """Scores of the arms that are on every environment with as many seeds, in units of the first one's mean there.

    An environment with more seeds than another would count more.

    Returns:
        Arm → scores ``[S]`` of each environment; empty for one arm or environment, or where a mean is not positive.
    """
    environments, on = list(dict.fromkeys(arm.environment for arm in arms)), _by_name(arms)
    counts = {name: [len(arm.scores) for arm in each.values()] for name, each in on.items()}
    everywhere = [name for name, each in counts.items() if len(each) == len(environments) and len(set(each)) == 1]
    if len(environments) < 2 or len(everywhere) < 2:
        return {}
    units = {name: arm.scores.mean() for name, arm in on[everywhere[0]].items()}
    if min(units.values()) <= 0:
        return {}
    return {name: [normalised(on[name][e].scores, 0, units[e]) for e in environments] for name in everywhere}


def _by_name(arms: Sequence[Arm]) -> dict[str, dict[str, Arm]]:
    """Arm → environment → the arm there."""
    found: dict[str, dict[str, Arm]] = {}
    for arm in arms:
        found.setdefault(arm.name, {})[arm.environment] = arm
    return found


def with_interval(scores: Sequence[Array]) -> str:
    """Interquartile mean of the scores of each environment, all together, and its 95 % interval if there is one."""
    value = f"{interquartile_mean(np.concatenate(scores)):.4g}"
    if min(len(each) for each in scores) < 2:
        return value
    low, high = bootstrap_interval(scores)
    return f"{value} ({low:.4g} to {high:.4g})"


def further(arms: Sequence[Arm]) -> str:
    """A sentence about the arms that were trained for much longer than the others; empty if none was."""
    found = []
    for arm in arms:
        if (end := min(run.steps[-1] for run in arm.runs)) > 1.2 * arm.step:
            scores = _scores({arm.environment: {arm.name: list(arm.runs)}})[arm.environment, arm.name]
            found.append(f"`{arm.name}` {with_interval([scores])} on {arm.environment} after {int(end):,} steps")
    return f"Trained for longer: {'; '.join(found)}." if found else ""


def improvements(arms: Sequence[Arm]) -> str:
    """The table of the probability that a seed of the row's arm beats one of the column's; empty for one arm."""
    on = _by_name(arms)
    pairs = {pair: _shared(on[pair[0]], on[pair[1]]) for pair in permutations(on, 2)}
    if not any(pairs.values()):
        return ""
    rows = [[f"`{name}`", *("–" if name == other else _improvement(pairs[name, other]) for other in on)] for name in on]
    return markdown_table(["arm", *(f"`{name}`" for name in on)], rows)


def _shared(one: Mapping[str, Arm], other: Mapping[str, Arm]) -> list[tuple[Array, Array]]:
    return [(one[each].scores, other[each].scores) for each in one if each in other]


def _improvement(pairs: Sequence[tuple[Array, Array]]) -> str:
    if not pairs:
        return "–"
    value = np.mean([probability_of_improvement(*pair) for pair in pairs])
    if min(len(scores) for pair in pairs for scores in pair) < 2:
        return f"{value:.2f}"
    low, high = improvement_interval(*zip(*pairs, strict=True))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def headline(arms: Sequence[Arm]) -> str:
    """One sentence, of the numbers: which arm is best and against which, or what the only one reaches."""
    together = relative(arms)
    if together and len(together) == len(_by_name(arms)):
        place = f"on all {len(next(iter(together.values())))} environments"
        return _winner(together, _by_name(arms), f"{place}, in units of the mean of `{next(iter(together))}`")
    winners: list[str] = []
    alone: dict[tuple[str, str], list[str]] = {}
    for environment in dict.fromkeys(arm.environment for arm in arms):
        here = [arm for arm in arms if arm.environment == environment]
        if len(here) > 1:
            place = f"on {environment} after {here[0].step:,} steps"
            winners.append(_winner({arm.name: [arm.scores] for arm in here}, _by_name(here), place))
        else:
            count = f"{len(here[0].runs)} seed{'s' if len(here[0].runs) > 1 else ''}"
            reached = f"{with_interval([here[0].scores])} on {environment}{_without({environment: here[0]})}"
            alone.setdefault((here[0].name, f"after {here[0].step:,} steps, {count}."), []).append(reached)
    return " ".join([*winners, *(f"`{name}` reaches {', '.join(each)} {end}" for (name, end), each in alone.items())])


def _without(arms: Mapping[str, Arm]) -> str:
    """How many runs of an arm, here by environment, its return is without, as they diverged; empty for none."""
    lost = sum(arm.diverged for arm in arms.values())
    return f" without {lost} run{'s' if lost > 1 else ''} that diverged" if lost else ""


def _winner(scores: Mapping[str, Sequence[Array]], on: Mapping[str, Mapping[str, Arm]], place: str) -> str:
    best, second = sorted(scores, key=lambda name: -interquartile_mean(np.concatenate(scores[name])))[:2]
    shared = _shared(on[best], on[second])
    reached, behind = (with_interval(scores[name]) + _without(on[name]) for name in (best, second))
    sentence = (
        f"`{best}` has the highest return {place}: {reached}; next is `{second}` with {behind}, which it beats with a "
        f"probability of {_improvement(shared)}"
    )
    if min(len(each) for pair in shared for each in pair) < 2:
        return f"{sentence}; one seed tells little."
    low, high = improvement_interval(*zip(*shared, strict=True))
    if low <= 0.5 <= high:
        return f"{sentence}; these seeds do not tell the two apart."
    # Of so few seeds the bootstrap is certain where nothing is: all orders of equal arms' seeds are equally likely, and
    # two of them (one per environment, at the same end) part the arms altogether.
    chance = 2 / prod(comb(len(one) + len(other), len(one)) for one, other in shared)
    few = f"; these seeds are too few: those of equal arms come apart with a probability of {100 * chance:.0f} %."
    return sentence + (few if chance > _SIGNIFICANT else ".")
