"""Learning curves of runs, and the published scores beside them.

Published: mean evaluation return of SAC over the 100,000 environment steps before the named one, then mean, lowest and
highest over seeds; computed from ``data/sac.csv`` of https://github.com/denisyarats/pytorch_sac (dm_control tasks,
1000 steps an episode, no action repeat).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from lit_metarl.reports.results import Run
    from lit_metarl.reports.statistics import Array

PUBLISHED_WINDOW = 100_000  # environment steps that each published score is a mean over


class Published(NamedTuple):
    """A published score: over seeds, in units of the return."""

    mean: float
    minimum: float
    maximum: float
    seeds: int


def published_scores(environment: str) -> dict[int, Published]:
    """Published SAC scores of ``environment`` (``dm_control/cheetah_run``) by environment steps; empty if none are."""
    suite, _, task = environment.partition("/")
    return dict(_published().get(task, {})) if suite == "dm_control" else {}


@lru_cache(maxsize=1)
def _published() -> Mapping[str, Mapping[int, Published]]:
    table: dict[str, dict[int, Published]] = {}
    text = files("lit_metarl.reports").joinpath("published.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        score = Published(float(row["mean"]), float(row["minimum"]), float(row["maximum"]), int(row["seeds"]))
        table.setdefault(row["task"], {})[int(row["steps"])] = score
    return table


def common_curve(runs: Sequence[Run]) -> tuple[Array, Array]:
    """Put the curves of several seeds on common steps.

    Returns:
        Steps ``[T]`` at which any run was evaluated, from the last first evaluation to the first last one, and the
        returns ``[S, T]``, linear between a run's own evaluations. ``T`` is 0 if the runs do not overlap.
    """
    first, last = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
    steps = np.unique(np.concatenate([run.steps for run in runs])).astype(np.float64)
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, run.steps, run.returns) for run in runs])


def draw_curves(groups: Mapping[str, Sequence[Run]], folder: Path | str) -> list[Path]:
    """Draw one PNG per environment: mean over seeds, band from the lowest to the highest seed, published scores.

    Args:
        groups: label → runs of one environment, one a seed; every label has its colour, the same in all pictures.
        folder: created if need be.

    Returns:
        The files, ``<folder>/<environment with _ for />.png``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    experiments = list(dict.fromkeys(runs[0].experiment for runs in groups.values()))
    paths = []
    for environment in sorted({runs[0].environment for runs in groups.values()}):
        here = {label: runs for label, runs in groups.items() if runs[0].environment == environment}
        paths.append(folder / f"{environment.replace('/', '_')}.png")
        _figure(environment, here, experiments).savefig(paths[-1], dpi=150)
    return paths


def _figure(environment: str, groups: Mapping[str, Sequence[Run]], experiments: Sequence[str]) -> Any:
    # not pyplot: it would choose a window system, and keep every figure alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles: dict[str, int] = {}
    for label, runs in groups.items():
        experiment = runs[0].experiment
        repeat = styles[experiment] = styles.get(experiment, -1) + 1  # other settings under the same name
        colour, style = f"C{experiments.index(experiment) % 10}", ("-", "--", ":", "-.")[repeat % 4]
        steps, returns = common_curve(runs)
        axes.plot(steps, returns.mean(axis=0), color=colour, linestyle=style, label=f"{label} (n={len(runs)})")
        axes.fill_between(steps, returns.min(axis=0), returns.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    _add_published(axes, environment, max(run.steps[-1] for runs in groups.values() for run in runs))
    axes.set(title=environment, xlabel="environment steps", ylabel="evaluation return", xlim=(0, None))
    axes.legend(fontsize="small")
    return figure


def _add_published(axes: Any, environment: str, last: float) -> None:
    scores = {steps: score for steps, score in published_scores(environment).items() if steps <= last}
    if not scores:
        return
    mean = np.array([score.mean for score in scores.values()])
    low = np.array([score.minimum for score in scores.values()])
    high = np.array([score.maximum for score in scores.values()])
    bars = [mean - low, high - mean]
    label = "SAC, published (mean of the last 100k steps)"
    axes.errorbar(list(scores), mean, yerr=bars, fmt="o", color="black", capsize=3, markersize=4, label=label)
