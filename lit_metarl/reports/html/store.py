"""Details of runs beyond their curves, read from the store: adaptation of every task, random actions, films."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_metarl.reports.tables.curves import Run
from lit_metarl.reports.tables.statistics import Array
from lit_metarl.tracking import connect

_RETURNS = re.compile(r"eval/(\w+/)?return(_after_\d+_steps)?")
_RANDOM = re.compile(r"eval/(?:(\w+)/)?return_random")


class Details(NamedTuple):
    """Everything of a run that is not in its curves.

    Attributes:
        adaptation: split → mean returns ``[K + 1, B]`` of every task after 0 … K steps: of the test if there was one,
            else of the last evaluation.
        random: split → mean return of random actions.
        films: name → file.
        returns: names of the metrics that are evaluated returns, of all splits and numbers of adaptation steps.
    """

    adaptation: Mapping[str, Array] = {}
    random: Mapping[str, float] = {}
    films: Mapping[str, Path] = {}
    returns: Sequence[str] = ()


def read_details(root: Path | str, runs: Iterable[Run]) -> dict[str, Details]:
    """The details of ``runs`` by id; of runs that the store in ``root`` does not have, nothing.

    Raises:
        TrackingError: the store cannot be opened.
    """
    from mlflow.exceptions import MlflowException

    client = connect(root)
    found = {}
    for run_id in dict.fromkeys(run.run_id for run in runs):
        try:
            metrics = client.get_run(run_id).data.metrics
        except MlflowException:  # a recorded run of another machine
            continue
        random = {match[1] or "test": value for name, value in metrics.items() if (match := _RANDOM.fullmatch(name))}
        returns = [name for name in metrics if _RETURNS.fullmatch(name)]
        folders = {item.path for item in client.list_artifacts(run_id)}
        adaptation = _adaptation(client, run_id) if "adaptation" in folders else {}
        films = _films(client, run_id) if "predict" in folders else {}
        found[run_id] = Details(adaptation, random, films, returns)
    return found


def _adaptation(client: Any, run_id: str) -> dict[str, Array]:
    names = {Path(item.path).name for item in client.list_artifacts(run_id, "adaptation")}
    for name in ("test.csv", "eval.csv"):
        if name in names:
            path = client.download_artifacts(run_id, f"adaptation/{name}")
            return task_returns(Path(path).read_text(encoding="utf-8"))
    return {}


def task_returns(text: str) -> dict[str, Array]:
    """Split → ``[K + 1, B]`` of a table that :func:`lit_metarl.callbacks.adaptation.per_task_csv` wrote."""
    values: dict[str, dict[tuple[int, int], float]] = {}
    for row in csv.DictReader(text.splitlines()):
        place = int(row["adaptation_steps"]), int(row["task"])
        values.setdefault(row["split"], {})[place] = float(row["mean_return"])
    tables = {}
    for split, found in values.items():
        steps, tasks = (1 + max(place[axis] for place in found) for axis in (0, 1))
        tables[split] = np.array([[found[step, task] for task in range(tasks)] for step in range(steps)])
    return tables


def _films(client: Any, run_id: str) -> dict[str, Path]:
    found = [item.path for item in client.list_artifacts(run_id, "predict") if item.path.endswith(".mp4")]
    return {Path(path).stem: Path(client.download_artifacts(run_id, path)) for path in sorted(found)}
