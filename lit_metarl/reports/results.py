"""``lit-metarl report``: the results table of the runs in the tracking store; no number in it is typed by hand."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_metarl.reports.curves import PUBLISHED_WINDOW, Published, draw_curves, published_scores
from lit_metarl.reports.statistics import Array, bootstrap_interval, interquartile_mean
from lit_metarl.tracking import TrackingError, connect
from lit_metarl.tracking.store import DATABASE

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
WINDOW = 0.1  # share of the steps so far over which evaluations are averaged
_TAGS = ("algorithm", "environment", "seed")
# neither the seed nor where a run is stored or went on from is a setting of the experiment
_NOT_SETTINGS = ("seed", "seed_everything", "ckpt_path", "weights_only", "logger", "default_root_dir")
_NOTE = f"""\
Return at a step s: mean of `eval/return` over the evaluations in the last {WINDOW:.0%} of the steps before it \
(0.9 s < step ≤ s), then the interquartile mean (IQM) over seeds, or the mean below 4 seeds. 95 % interval: percentile \
bootstrap over seeds, 10,000 resamples; none for one seed, and too narrow for few. Minutes: from the start of a run to \
its last evaluation counted, pauses included, mean over seeds. Config: hash of the configuration without seed, logger \
and checkpoint. Published SAC: mean (min–max; seeds) over the last {PUBLISHED_WINDOW:,} steps, from `data/sac.csv` of \
[pytorch_sac](https://github.com/denisyarats/pytorch_sac); beside it the mean over our seeds of the same window."""


class ReportError(ValueError):
    """There is nothing to report as asked; the message says what there is."""


@dataclass(frozen=True)
class Run:
    """One training run: its tags and its evaluations, by increasing environment steps."""

    experiment: str
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

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What runs that differ only by their seed have in common."""
        return self.experiment, self.environment, self.algorithm, self.config

    def reached(self, step: int) -> bool:
        """Whether it was evaluated in the window before ``step``, and would next have been only after ``step``."""
        interval = np.diff(self.steps).max() if len(self.steps) > 1 else 0
        last = self.steps[-1]
        evaluated = (self.steps > step * (1 - WINDOW)) & (self.steps <= step)
        return bool(evaluated.any() and (last >= step or last + interval > step))

    def mean_return(self, after: float, until: float) -> float:
        """Mean evaluation return over ``after < step ≤ until``; NaN without an evaluation there."""
        counted = self.returns[(self.steps > after) & (self.steps <= until)]
        return float(counted.mean()) if len(counted) else math.nan

    def minutes(self, step: int) -> float:
        """Minutes from the start of the run to its last evaluation up to ``step``."""
        return float(self.times[self.steps <= step][-1] - self.start) / 60_000


@dataclass(frozen=True)
class Row:
    """One line of the table: the seeds of one experiment at ``steps`` environment steps."""

    experiment: str
    algorithm: str
    environment: str
    steps: int
    statistic: str  # "IQM" or "mean"
    score: float
    interval: tuple[float, float] | None
    returns: dict[str, float]  # by seed
    statuses: dict[str, str]  # by seed
    same_window: float | None  # our mean over the steps that `published` is a mean over
    published: Published | None
    minutes: float
    commits: list[str]
    config: str


def read_runs(root: Path | str, experiments: Sequence[str] = (), unfinished: bool = False) -> tuple[list[Run], int]:
    """Read the training runs of ``experiments`` (all if empty) from the store in ``root``, the oldest first.

    Returns:
        The runs, and how many were left out because they have no evaluation or not the tags of a training run.

    Raises:
        ReportError: there is no store, an experiment is unknown, or no run is finished (or there is none at all).
        TrackingError: the store cannot be opened.
    """
    if not (Path(root) / DATABASE).is_file():
        raise ReportError(f"There is no store in {root}: {Path(root) / DATABASE} is missing. Train first, or use --root.")
    client = connect(root)
    names = {item.name: item.experiment_id for item in client.search_experiments()}
    if unknown := [name for name in experiments if name not in names]:
        raise ReportError(f"No experiment {', '.join(map(repr, unknown))} in {root}. Known: {', '.join(sorted(names))}.")
    chosen = {names[name]: name for name in experiments or names}
    found = sorted(_all_runs(client, list(chosen)), key=lambda run: run.info.start_time)
    wanted = [run for run in found if unfinished or run.info.status == "FINISHED"]
    if not wanted:
        statuses = ", ".join(sorted(run.info.status for run in found)) or "none at all"
        raise ReportError(f"No finished run in {', '.join(chosen.values())} of {root}: {statuses}. See --all.")
    runs = [_read_run(client, run, chosen[run.info.experiment_id]) for run in wanted]
    read = [run for run in runs if run is not None]
    return read, len(runs) - len(read)


def _all_runs(client: Any, experiment_ids: list[str]) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(experiment_ids, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _read_run(client: Any, run: Any, experiment: str) -> Run | None:
    points = client.get_metric_history(run.info.run_id, "eval/return")
    tags = run.data.tags
    if not points or any(tag not in tags for tag in _TAGS):
        return None
    # A resumed run goes over some steps again, and its later points count. Their first time does: `validate` adds a
    # point at an old step days afterwards.
    ordered = sorted(points, key=lambda point: point.timestamp)
    values = {point.step: point.value for point in ordered}
    times = {point.step: point.timestamp for point in reversed(ordered)}
    steps = sorted(values)
    return Run(
        experiment=experiment,
        **{tag: tags[tag] for tag in _TAGS},
        commit=tags.get("git_commit", "unknown"),
        config=_config_hash(client, run.info.run_id),
        status=run.info.status,
        start=run.info.start_time,
        steps=np.array(steps, dtype=np.float64),
        returns=np.array([values[step] for step in steps]),
        times=np.array([times[step] for step in steps], dtype=np.float64),
    )


def _config_hash(client: Any, run_id: str) -> str:
    import yaml

    if not any(item.path == "config/fit.yaml" for item in client.list_artifacts(run_id, "config")):
        return "unknown"
    config = yaml.safe_load(Path(client.download_artifacts(run_id, "config/fit.yaml")).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(_settings(config), sort_keys=True).encode()).hexdigest()[:8]


def _settings(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _settings(value) for key, value in tree.items() if key not in _NOT_SETTINGS}
    return [_settings(item) for item in tree] if isinstance(tree, list) else tree


def by_group(runs: Sequence[Run]) -> dict[tuple[str, ...], list[Run]]:
    """Sort runs into groups that differ only by the seed; of one seed the newest finished run, else the newest."""
    groups: dict[tuple[str, ...], dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.status == "FINISHED", run.start)):
        groups.setdefault(run.group, {})[run.seed] = run
    return {
        group: [seeds[seed] for seed in sorted(seeds, key=lambda seed: (len(seed), seed))]
        for group, seeds in sorted(groups.items())
    }


def make_rows(groups: Mapping[tuple[str, ...], Sequence[Run]], at: Sequence[int] = ()) -> list[Row]:
    """Make one row for each group and each step of ``at`` that a seed of it reached; by default the last common step.

    Raises:
        ReportError: no run reached any of the steps.
    """
    rows = []
    for runs in groups.values():
        for step in at or [int(min(run.steps[-1] for run in runs))]:
            if reached := [run for run in runs if run.reached(step)]:
                rows.append(_make_row(reached, step))
    if not rows:
        raise ReportError(f"No run was evaluated shortly before {' or '.join(f'{step:,}' for step in at)} steps. Drop --at.")
    return rows


def _make_row(runs: Sequence[Run], step: int) -> Row:
    returns = {run.seed: run.mean_return(step * (1 - WINDOW), step) for run in runs}
    scores = np.array(list(returns.values()))
    published = published_scores(runs[0].environment).get(step)
    same = [run.mean_return(step - PUBLISHED_WINDOW, step) for run in runs]
    return Row(
        experiment=runs[0].experiment,
        algorithm=runs[0].algorithm,
        environment=runs[0].environment,
        steps=step,
        statistic="IQM" if len(runs) >= 4 else "mean",
        score=float(interquartile_mean(scores)),
        interval=bootstrap_interval(scores) if len(runs) > 1 else None,
        returns=returns,
        statuses={run.seed: run.status for run in runs},
        same_window=float(np.mean(same)) if published else None,
        published=published,
        minutes=float(np.mean([run.minutes(step) for run in runs])),
        commits=sorted({run.commit for run in runs}),
        config=runs[0].config,
    )
