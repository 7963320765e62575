"""The data of a page's charts: curves of every arm and metric, packed small enough to travel inside the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_metarl.reports.html.store import Details
from lit_metarl.reports.tables.curves import RETURN, WINDOW, Run, published_scores
from lit_metarl.reports.tables.statistics import Array, bootstrap_band, interquartile_mean

POINTS = 400  # of a curve at most: more are no wider than a line
MISSING = 65535  # in a packed array; page.js knows it too
_AFTER = re.compile(r"eval/(?:(\w+)/)?return_after_(\d+)_steps")
_RETURN = re.compile(r"eval/(?:(\w+)/)?return")


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each arm, in the order in which the arms come."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.experiment, []).append(run)
    return arms


def without_repeats(metrics: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """The metrics without ``return_after_K_steps`` of the last step K, which is the return."""
    kept = dict(metrics)
    for name in metrics:
        if found := _AFTER.fullmatch(name):
            whole = {run.run_id: run for run in metrics.get(_return_of(found[1]), ())}
            same = [
                run.run_id in whole and np.array_equal(run.returns, whole[run.run_id].returns) for run in metrics[name]
            ]
            if all(same):
                del kept[name]
    return kept


def _return_of(split: str | None) -> str:
    return f"eval/{split}/return" if split else RETURN


def splits_of(metrics: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Split → its metric of returns, ``test`` for the one without a name."""
    return {found[1] or "test": name for name in metrics if (found := _RETURN.fullmatch(name))}


def label_of(metric: str) -> str:
    """A metric's name in words."""
    split, _, name = metric.removeprefix("eval/").rpartition("/")
    if found := re.fullmatch(r"return_after_(\d+)_steps", name):
        count = int(found[1])
        name = f"return after {count} step{'' if count == 1 else 's'}" if count else "return before adaptation"
    return f"{split}: {name}".replace("_", " ") if split else name.replace("_", " ")


def chart_data(
    metrics: Mapping[str, Sequence[Run]],
    details: Mapping[str, Details],
    published: Mapping[tuple[str, str], float] = {},
) -> dict[str, Any]:
    """Everything that ``page.js`` draws, as JSON takes it.

    Args:
        metrics: metric → runs, named as by :func:`named`.
        details: of runs, by id.
        published: (arm, environment) → a published return.
    """
    everything = [run for runs in metrics.values() for run in runs]
    arms = list(dict.fromkeys(run.experiment for run in everything))
    panels = []
    for environment in sorted({run.environment for run in everything}):
        curves: dict[str, list[dict[str, Any]]] = {}
        for metric, runs in metrics.items():
            here = by_arm(run for run in runs if run.environment == environment)
            curves[metric] = [
                {"arm": arms.index(arm), "published": published.get((arm, environment)) if metric == RETURN else None}
                | curve_of(seeds)
                for arm, seeds in here.items()
            ]
        last = max(curve["steps"][-1] for found in curves.values() for curve in found)
        panels.append({"title": environment, "curves": curves, "marks": _marks(environment, last)})
    return {
        "arms": arms,
        "metrics": [{"name": name, "label": label_of(name)} for name in metrics],
        "panels": panels,
        "adaptation": adaptation_panels(metrics, details, arms),
    }


def curve_of(runs: Sequence[Run]) -> dict[str, Any]:
    """The curve of an arm's seeds on the steps at which any of them was evaluated, :data:`POINTS` at most.

    Returns:
        ``steps`` ``[T]``; packed ``minutes`` since a run's start (mean over seeds), ``seeds`` (missing outside of
        their own steps), ``centre`` (interquartile mean, below 4 seeds the mean) and its 95 % interval ``low``,
        ``high``, which are missing where a seed is; ``partial`` where one is.
    """
    steps = np.unique(np.concatenate([run.steps for run in runs]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))]
    seeds = np.stack([_within(steps, run.steps, run.returns) for run in runs])
    minutes = np.stack([_within(steps, run.steps, (run.times - run.start) / 60_000) for run in runs])
    elapsed = np.maximum.accumulate(np.nanmean(minutes, axis=0))
    common = np.isfinite(seeds).all(axis=0)
    centre, low, high = np.full((3, len(steps)), np.nan)
    if common.any():
        centre[common] = interquartile_mean(seeds[:, common], axis=0)
        low[common], high[common] = bootstrap_band(seeds[:, common])
    return {
        "steps": [int(step) for step in steps],
        "minutes": pack(elapsed),
        "centre": pack(centre),
        "low": pack(low),
        "high": pack(high),
        "seeds": [pack(seed) for seed in seeds],
        "partial": not common.all(),
    }


def _within(steps: Array, own: Array, values: Array) -> Array:
    return np.interp(steps, own, values, left=np.nan, right=np.nan)


def pack(values: Array) -> dict[str, Any]:
    """Sixteen bits for each number, in base64: to 1/65534 of their range; what is not finite is :data:`MISSING`."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    step = (high - low) / (MISSING - 1)
    levels = np.where(finite, (np.where(finite, values, low) - low) / (step or 1.0), MISSING).round().astype("<u2")
    return {"data": base64.b64encode(levels.tobytes()).decode(), "low": low, "step": step}


def _marks(environment: str, last: float) -> dict[str, dict[str, list[float]]]:
    """Published scores up to the step ``last``, by metric."""
    scores = {step: score for step, score in published_scores(environment).items() if step <= last}
    if not scores:
        return {}
    mean, low, high, _ = (list(column) for column in zip(*scores.values(), strict=True))
    return {RETURN: {"x": list(scores), "centre": mean, "low": low, "high": high}}


def adaptation_panels(
    metrics: Mapping[str, Sequence[Run]], details: Mapping[str, Details], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """Return against adaptation steps, a panel per environment and split; empty if no run adapts.

    Every task of a run's last meta-evaluation where the run stored them, else the mean over tasks of the evaluations
    in the last tenth of its steps. The line is the mean over seeds, the band from the lowest to the highest; it ends
    after the arm's own number of adaptation steps.
    """
    panels = []
    for split, metric in splits_of(metrics).items():
        stages = {
            int(found[2]): {run.run_id: run for run in metrics[name]}
            for name in metrics
            if (found := _AFTER.fullmatch(name)) and (found[1] or "test") == split
        }
        tasks = f"{split.replace('_', ' ')} tasks"
        environments = sorted({run.environment for run in metrics[metric]})
        for environment in environments:
            curves = []
            for arm, runs in by_arm(run for run in metrics[metric] if run.environment == environment).items():
                curve = _adaptation_of(runs, stages, [details.get(run.run_id) for run in runs], split)
                if curve is not None:
                    curves.append({"arm": arms.index(arm)} | curve)
            if any(len(curve["centre"]) > 1 for curve in curves):
                known = [details[run.run_id].random for run in metrics[metric] if run.run_id in details]
                random = [each[split] for each in known if np.isfinite(each.get(split, np.nan))]
                panels.append(
                    {
                        "title": (f"{environment}, {tasks}" if len(environments) > 1 else tasks.capitalize()),
                        "steps": list(range(max(len(curve["centre"]) for curve in curves))),
                        "random": float(np.mean(random)) if random else None,
                        "curves": curves,
                    }
                )
    return panels


def _adaptation_of(
    runs: Sequence[Run], stages: Mapping[int, Mapping[str, Run]], details: Sequence[Details | None], split: str
) -> dict[str, Any] | None:
    tables = [each.adaptation[split] for each in details if each is not None and split in each.adaptation]
    means: list[Array] = [table.mean(axis=1) for table in tables]
    if not tables:
        means = [mean for run in runs if (mean := _by_adaptation_step(run, stages)) is not None]
    if not means:
        return None
    count = min(len(mean) for mean in means)
    seeds = np.stack([mean[:count] for mean in means])
    lines = [task for table in tables for task in table[:count].T]
    return {
        "centre": _short(seeds.mean(axis=0)),
        "low": _short(seeds.min(axis=0)),
        "high": _short(seeds.max(axis=0)),
        "tasks": [_short(line) for line in (lines or seeds)],
    }


def _by_adaptation_step(run: Run, stages: Mapping[int, Mapping[str, Run]]) -> Array | None:
    """The run's return after 0 … K steps, K its own; None where one of them is missing.

    Args:
        run: its return, that after K steps.
        stages: number of steps → run id → return after so many; that after K steps may be there once more.
    """
    own = sorted(number for number, found in stages.items() if run.run_id in found)
    if own != list(range(len(own))):
        return None
    series = [stages[number][run.run_id] for number in own]
    if not series or not np.array_equal(series[-1].returns, run.returns, equal_nan=True):
        series.append(run)
    return np.array([_last(each) for each in series])


def _last(run: Run) -> float:
    return run.mean_return(run.steps[-1] * (1 - WINDOW), run.steps[-1])


def _short(values: Array) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
