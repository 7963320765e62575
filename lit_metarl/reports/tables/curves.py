"""Learning curves: read from the runs in the tracking store, drawn with the published scores beside them.

Published: mean evaluation return of SAC over the 100,000 environment steps before the named one, then mean, lowest and
highest over seeds; computed from ``data/sac.csv`` of https://github.com/denisyarats/pytorch_sac (dm_control tasks,
1000 steps an episode, no action repeat).
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_metarl.config import chosen
from lit_metarl.reports.section import ReportError, blank_figure
from lit_metarl.reports.tables.statistics import Array
from lit_metarl.sweep.cells import KEY_TAG
from lit_metarl.tracking import DIVERGED, connect
from lit_metarl.tracking.store import DATABASE

RETURN = "eval/return"
BEFORE = "eval/return_after_0_steps"
PUBLISHED_WINDOW = 100_000  # environment steps that each published score is a mean over
WINDOW = 0.1  # share of the steps so far over which evaluations are averaged
_ROOM = 6  # curves that a legend on the axes may name; more would be hidden by it
_FLAT = 100.0  # ratio of the heights of a figure up to which its axis is linear
_TAGS = ("algorithm", "environment", "seed")
# no setting of the experiment: the seed, where a run is stored or went on from, and how fast it is computed
NOT_SETTINGS = ("seed", "seed_everything", "ckpt_path", "weights_only", "logger", "default_root_dir", "cuda_graphs")


@dataclass(frozen=True)
class Run:
    """One training run: its tags and its evaluations, by increasing environment steps."""

    experiment: str  # of a record, the arm
    algorithm: str
    environment: str
    seed: str
    commit: str
    config: str  # short hash; runs of equal settings share it
    status: str  # FINISHED, RUNNING, FAILED or KILLED
    start: int  # ms since 1970
    steps: Array  # [T] environment steps
    returns: Array  # [T] mean of the evaluation episodes
    times: Array  # [T] ms since 1970
    before: Array | None = None  # [T] of a meta-learner, the return before adaptation
    arm: str = ""  # of a recipe, in which a sweep trained it
    run_id: str = ""
    key: str = ""  # of the recipe's cell
    settings: Mapping[str, Any] = field(default_factory=dict)  # without seed, logger and checkpoint

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Experiment, environment, algorithm and config, which runs that differ only by their seed have in common."""
        return self.experiment, self.environment, self.algorithm, self.config

    def reached(self, step: int) -> bool:
        """Whether the run has an evaluation in the window before ``step``, and would have the next only after it."""
        interval = np.diff(self.steps).max() if len(self.steps) > 1 else 0
        evaluated = (self.steps > step * (1 - WINDOW)) & (self.steps <= step)
        return bool(evaluated.any() and (self.steps[-1] >= step or self.steps[-1] + interval > step))

    def mean_return(self, after: float, until: float) -> float:
        """Mean evaluation return over ``after < step ≤ until``; NaN without an evaluation there."""
        counted = self.returns[(self.steps > after) & (self.steps <= until)]
        return float(counted.mean()) if len(counted) else math.nan

    def mean_return_before(self, after: float, until: float) -> float | None:
        """Mean return before adaptation over ``after < step ≤ until``; None if this is no meta-learner's run."""
        if self.before is None:
            return None
        return float(self.before[(self.steps > after) & (self.steps <= until)].mean())

    def minutes(self, step: int) -> float:
        """Minutes from the start of the run to its last evaluation up to ``step``."""
        return float(self.times[self.steps <= step][-1] - self.start) / 60_000


def read_runs(
    root: Path | str, experiments: Sequence[str] = (), unfinished: bool = False, metric: str = RETURN
) -> tuple[list[Run], int]:
    """Read the training runs of ``experiments`` (all if empty) from the store in ``root``, the oldest first.

    Args:
        root: folder of the store.
        experiments: by name.
        unfinished: also runs that are running or failed.
        metric: what :attr:`Run.returns` holds.

    Returns:
        The runs, and how many were left out because they have no ``metric`` or not the tags of a training run.

    Raises:
        ReportError: there is no store, an experiment is unknown, or no run is finished (or there is none at all).
        TrackingError: the store cannot be opened.
    """
    client, wanted = _find_runs(root, experiments, unfinished)
    runs = [_read_run(client, run, name, metric) for run, name in wanted]
    read = [run for run in runs if run is not None]
    if not read:
        raise ReportError(f"None of {len(runs)} runs in {root} has {metric} and the tags {', '.join(_TAGS)}.")
    return read, len(runs) - len(read)


def read_metrics(root: Path | str, experiment: str, wanted: Callable[[str], bool]) -> dict[str, list[Run]]:
    """Read the finished runs of ``experiment``: metric → runs that have it, the oldest first.

    Args:
        root: folder of the store.
        experiment: by name.
        wanted: whether a metric is read; :data:`RETURN` is in any case, and runs without it are left out.

    Raises:
        ReportError: there is no store, the experiment is unknown, or no run is finished.
        TrackingError: the store cannot be opened.
    """
    client, found = _find_runs(root, [experiment], False)
    runs: dict[str, list[Run]] = {RETURN: []}
    for run, name in found:
        read = _read_run(client, run, name, RETURN)
        if read is None:
            continue
        runs[RETURN].append(read)
        for metric in sorted(filter(wanted, run.data.metrics.keys() - {RETURN})):
            steps, values, times = _history(client, read.run_id, metric)
            runs.setdefault(metric, []).append(replace(read, steps=steps, returns=values, times=times))
    return runs


def read_diverged(root: Path | str, experiment: str) -> list[Run]:
    """Read the runs of ``experiment`` that failed because they diverged; their point is where they did.

    Raises:
        ReportError: there is no store, the experiment is unknown, or it has no run.
        TrackingError: the store cannot be opened.
    """
    client, found = _find_runs(root, [experiment], True)
    failed = [_read_run(client, run, name, DIVERGED) for run, name in found if run.info.status == "FAILED"]
    return [run for run in failed if run is not None]


def read_metric(root: Path | str, runs: Sequence[Run], metric: str) -> list[Run]:
    """Read another metric of ``runs``, which :func:`read_runs` gave: those that have it, with its points.

    Raises:
        TrackingError: the store cannot be opened.
    """
    client = connect(root)
    found = [(run, _history(client, run.run_id, metric)) for run in runs]
    return [
        replace(run, steps=steps, returns=values, times=times, before=None)
        for run, (steps, values, times) in found
        if len(steps)
    ]


def _find_runs(root: Path | str, experiments: Sequence[str], unfinished: bool) -> tuple[Any, list[tuple[Any, str]]]:
    """A client and the runs of ``experiments`` with the experiment's name, the oldest first."""
    if not (Path(root) / DATABASE).is_file():
        raise ReportError(
            f"There is no store in {root}: {Path(root) / DATABASE} is missing. Train first, or use --root."
        )
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = connect(root)
    names = {item.name: item.experiment_id for item in client.search_experiments()}
    if unknown := [name for name in experiments if name not in names]:
        raise ReportError(
            f"No experiment {', '.join(map(repr, unknown))} in {root}. Known: {', '.join(sorted(names))}."
        )
    chosen = {names[name]: name for name in experiments or names}
    found = sorted(_all_runs(client, list(chosen)), key=lambda run: run.info.start_time)
    wanted = [run for run in found if unfinished or run.info.status == "FINISHED"]
    if not wanted:
        counts = Counter(run.info.status for run in found)
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none at all"
        raise ReportError(f"No finished run in {', '.join(chosen.values())} of {root}: {statuses}. See --all.")
    return client, [(run, chosen[run.info.experiment_id]) for run in wanted]


def _all_runs(client: Any, experiment_ids: list[str]) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(experiment_ids, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _read_run(client: Any, run: Any, experiment: str, metric: str) -> Run | None:
    run_id = run.info.run_id
    tags = run.data.tags
    if metric not in run.data.metrics or any(tag not in tags for tag in _TAGS):
        return None
    steps, values, times = _history(client, run_id, metric)
    before = dict(zip(*_history(client, run_id, BEFORE)[:2], strict=True))
    settings = _read_settings(client, run_id)
    return Run(
        experiment=experiment,
        **{tag: tags[tag] for tag in _TAGS},
        commit=tags.get("git_commit", "unknown"),
        config=_hash(settings) if settings else "unknown",
        status=run.info.status,
        start=run.info.start_time,
        steps=steps,
        returns=values,
        times=times,
        before=before_at(steps, before),
        arm=tags.get("arm", ""),
        run_id=run_id,
        key=tags.get(KEY_TAG, ""),
        settings=settings,
    )


def before_at(steps: Sequence[float] | Array, before: Mapping[Any, float]) -> Array | None:
    """Returns before adaptation at ``steps``, ``[T]``; None where one of these has none, as of what training logs."""
    return np.array([before[step] for step in steps]) if all(step in before for step in steps) else None


def _history(client: Any, run_id: str, metric: str) -> tuple[Array, Array, Array]:
    """Steps, values and times in ms ``[T]``, by increasing step."""
    # A resumed run goes over some steps again, and its later points count. Their first time does: `validate` adds a
    # point at an old step days afterwards.
    ordered = sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    values = {point.step: point.value for point in ordered}
    times = {point.step: point.timestamp for point in reversed(ordered)}
    columns = [[step, values[step], times[step]] for step in sorted(values)]
    steps, returns, when = np.array(columns, dtype=np.float64).reshape(-1, 3).T
    return steps, returns, when


def _read_settings(client: Any, run_id: str) -> dict[str, Any]:
    import yaml

    if not any(item.path == "config/fit.yaml" for item in client.list_artifacts(run_id, "config")):
        return {}
    config = yaml.safe_load(Path(client.download_artifacts(run_id, "config/fit.yaml")).read_text(encoding="utf-8"))
    return dict(_settings(config))


def _hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(chosen(settings), sort_keys=True).encode()).hexdigest()[:8]


def _settings(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _settings(value) for key, value in tree.items() if key not in NOT_SETTINGS}
    return [_settings(item) for item in tree] if isinstance(tree, list) else tree


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
    text = files("lit_metarl.reports.tables").joinpath("published.csv").read_text(encoding="utf-8")
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


def draw_curves(groups: Sequence[tuple[str, Sequence[Run]]], folder: Path, metric: str = RETURN) -> dict[Path, Any]:
    """One figure per environment: mean over seeds, band from the lowest to the highest seed, published scores.

    Of a metric that is positive and spans more than two decades, as variances do, the axis is logarithmic.

    Args:
        groups: label and runs of one environment, one a seed; an experiment has the same colour in all pictures.
        folder: of the files.
        metric: what the runs were read with.

    Returns:
        Figures by file, ``<folder>/<environment with _ for />.png``; of another metric than the return with
        ``_<metric>``.
    """
    experiments = list(dict.fromkeys(runs[0].experiment for _, runs in groups))
    figures = {}
    for environment in sorted({runs[0].environment for _, runs in groups}):
        here = [(label, runs) for label, runs in groups if runs[0].environment == environment]
        name = environment if metric == RETURN else f"{environment}_{metric}"
        figures[folder / f"{name.replace('/', '_')}.png"] = figure_of(environment, here, experiments, metric)
    return figures


def figure_of(
    environment: str, groups: Sequence[tuple[str, Sequence[Run]]], experiments: Sequence[str], metric: str = RETURN
) -> Any:
    """The figure of one environment, with the colours of ``experiments``; see :func:`draw_curves`."""
    figure = blank_figure(6.4, 4.0 + height_of_legend(len(groups)))
    draw_on(figure.add_subplot(), environment, groups, experiments, metric)
    return figure


def height_of_legend(curves: int) -> float:
    """Inches below the axes that the legend of so many curves takes."""
    return 0.19 * curves if curves > _ROOM else 0.0


def draw_on(
    axes: Any,
    environment: str,
    groups: Sequence[tuple[str, Sequence[Run]]],
    experiments: Sequence[str],
    metric: str = RETURN,
) -> None:
    """Draw the curves of one environment on ``axes``, with the colours of ``experiments``; see :func:`draw_curves`.

    The legend of many curves is below the axes, where a figure has to have :func:`height_of_legend` for it.
    """
    heights = np.empty(0)
    for label, runs in groups:
        look = look_of(runs[0].experiment, experiments)
        steps, returns = common_curve(runs)
        axes.plot(steps, returns.mean(axis=0), **look, label=f"{label} (n={len(runs)})")
        axes.fill_between(steps, returns.min(axis=0), returns.max(axis=0), color=look["color"], alpha=0.2, linewidth=0)
        heights = np.append(heights, returns)
    if metric == RETURN:
        _add_published(axes, environment, max(run.steps[-1] for _, runs in groups for run in runs))
    elif heights.size and 0 < _FLAT * heights.min() < heights.max():
        axes.set_yscale("log")
    label = "evaluation return" if metric == RETURN else metric
    axes.set(title=environment.replace(" ", "\n", 1), xlabel="environment steps", ylabel=label, xlim=(0, None))
    axes.locator_params(axis="x", nbins=5)  # more labels of six digits overlap
    add_legend(axes, len(groups))


def look_of(name: str, names: Sequence[str]) -> dict[str, str]:
    """Colour and line style of ``name`` among ``names``: no two of forty have both."""
    again, place = divmod(names.index(name), 10)
    return {"color": f"C{place}", "linestyle": ("-", "--", ":", "-.")[again % 4]}


def add_legend(axes: Any, curves: int) -> None:
    """Name so many curves, below the axes if they are many; see :func:`height_of_legend`."""
    below = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.15)}
    axes.legend(fontsize="small", **(below if curves > _ROOM else {}))


def _add_published(axes: Any, environment: str, last: float) -> None:
    scores = {steps: score for steps, score in published_scores(environment).items() if steps <= last}
    if not scores:
        return
    mean, low, high, _ = np.array(list(scores.values())).T
    bars = [mean - low, high - mean]
    label = "SAC, published (mean of the last 100k steps)"
    axes.errorbar(list(scores), mean, yerr=bars, fmt="o", color="black", capsize=3, markersize=4, label=label)
