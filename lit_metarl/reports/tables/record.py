"""The record of a recipe: ``<name>.csv`` beside it, the evaluations of every finished run, one a line.

It is committed, so tables and curves are made of it on any machine, long after the store is gone. What the record
holds of a run stays until the same arm and seed have finished again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_metarl.reports.section import ReportError
from lit_metarl.reports.tables.curves import BEFORE, RETURN, Run, before_at, read_diverged, read_metrics
from lit_metarl.reports.tables.statistics import Array
from lit_metarl.tracking import DIVERGED

# Returns, of all splits; their spread and what random actions earn are not results.
_RECORDED = re.compile(r"eval/(\w+/)?return(_after_\d+_steps)?")


def is_return(metric: str) -> bool:
    """Whether ``metric`` is a return, of any split, after any number of adaptation steps."""
    return bool(_RECORDED.fullmatch(metric))


class Evaluation(NamedTuple):
    """A line of a record: one metric of one evaluation of one run.

    Attributes:
        arm: as the sweep names it, with its place in the grid.
        seed: of the run.
        metric: ``eval/return``, of a meta-learner also ``eval/return_after_k_steps`` for each k below the last, whose
            return is ``eval/return``, and both of other splits, ``eval/out_of_distribution/return``; and what the
            recipe names. Of a run that diverged only ``diverged``.
        step: environment steps.
        value: six significant digits of it.
        minutes: from the start of the run.
        run: id in the store where it was trained.
        key: of the cell, see :func:`lit_metarl.sweep.cells.key_of`.
        commit: of the code that trained it.
        config: short hash of the settings without the seed.
        algorithm: name of the class.
        environment: ``suite/task``.
    """

    arm: str
    seed: str
    metric: str
    step: int
    value: float
    minutes: float
    run: str
    key: str
    commit: str
    config: str
    algorithm: str
    environment: str


COLUMNS = Evaluation._fields


def record_of(recipe: Path | str) -> Path:
    """The file of a recipe's record."""
    return Path(recipe).with_suffix(".csv")


def read_record(path: Path | str) -> list[Evaluation]:
    """Read the record in ``path``; empty if there is no such file.

    Raises:
        ReportError: the file is damaged; the message names the line and the remedy.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if (head := next(lines, None)) != list(COLUMNS):
                raise _damaged(path, 1, f"the columns are {head}, not {','.join(COLUMNS)}")
            rows = [_row(path, lines.line_num, line) for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"Cannot read the record {path}: {error}.") from error
    _check(path, rows)
    return rows


def _row(path: Path, number: int, line: Sequence[str]) -> Evaluation:
    if len(line) != len(COLUMNS):
        raise _damaged(path, number, f"it has {len(line)} fields, not {len(COLUMNS)}")
    arm, seed, metric, step, value, minutes, *rest = line
    try:
        return Evaluation(arm, seed, metric, int(step), float(value), float(minutes), *rest)
    except ValueError as error:
        raise _damaged(path, number, str(error)) from error


def _check(path: Path, rows: Sequence[Evaluation]) -> None:
    """Refuse what merging two versions of the file by hand can leave: a run or an evaluation twice."""
    runs: dict[tuple[str, str], str] = {}
    seen = set()
    for number, row in enumerate(rows, 2):
        if runs.setdefault((row.arm, row.seed), row.run) != row.run:
            raise _damaged(path, number, f"{row.arm} seed {row.seed} has a second run, {row.run}")
        if (place := (row.run, row.metric, row.step)) in seen:
            raise _damaged(path, number, f"{row.metric} at step {row.step} of this run is there twice")
        seen.add(place)


def _damaged(path: Path, number: int, reason: str) -> ReportError:
    return ReportError(f"{path}, line {number}: {reason}. Delete the line, or restore the file: git checkout {path}")


def record_text(rows: Iterable[Evaluation]) -> str:
    """The content of a record's file, in an order that does not depend on that of ``rows``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (row.arm, len(row.seed), row.seed, row.metric, row.step)):
        arm, seed, metric, step, value, minutes, *rest = row
        writer.writerow([arm, seed, metric, step, f"{value:.6g}", f"{minutes:.2f}", *rest])
    return text.getvalue()


def read_store(root: Path | str, recipe: str, metrics: Collection[str] = ()) -> list[Evaluation]:
    """The evaluations of all finished runs of cells of ``recipe`` in the store, the oldest run's first.

    Of a run that diverged there is a line of :data:`~lit_metarl.tracking.DIVERGED`, and no other.

    Args:
        root: folder of the store.
        recipe: by name.
        metrics: besides returns; of one that is logged more often than evaluations are made, as what training logs is,
            the last point up to each.

    Raises:
        ReportError: there is no store, or no finished run of the recipe in it.
        TrackingError: the store cannot be opened.
    """
    found = read_metrics(root, recipe, lambda name: name in metrics or is_return(name))
    evaluated = {run.run_id: run.steps for run in found[RETURN]}
    points = [(metric, _thinned(run, evaluated[run.run_id])) for metric, runs in found.items() for run in runs]
    points += [(DIVERGED, run) for run in read_diverged(root, recipe)]
    oldest_first = sorted(points, key=lambda pair: pair[1].start)
    rows = [row for metric, run in oldest_first if run.key for row in _rows(run, metric)]
    if not rows:
        raise ReportError(f"No finished run in {root} is of the recipe {recipe}.")
    return _without_last_step(rows)


def _thinned(run: Run, evaluated: Array) -> Run:
    """The run with its last point up to each of the steps ``evaluated``, if it has more points than these."""
    if len(run.steps) <= len(evaluated) + 1:  # a monitor measures before training, too
        return run
    last = np.unique(np.searchsorted(run.steps, evaluated, side="right") - 1)
    last = last[last >= 0]
    return replace(run, steps=run.steps[last], returns=run.returns[last], times=run.times[last], before=None)


def _rows(run: Run, metric: str) -> list[Evaluation]:
    minutes = (run.times - run.start) / 60_000
    return [
        Evaluation(
            run.arm, run.seed, metric, int(step), float(f"{value:.6g}"), round(float(minute), 2), run.run_id, run.key,
            run.commit, run.config, run.algorithm, run.environment,
        )
        for step, value, minute in zip(run.steps, run.returns, minutes, strict=True)
    ]  # fmt: skip


def _without_last_step(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """Leave out ``return_after_K_steps``, which is ``return``: a third of a meta-learner's lines."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        split, step = _step_of(row.metric)
        if step is not None:
            last[row.run, split] = max(step, last.get((row.run, split), 0))
    kept = []
    for row in rows:
        split, step = _step_of(row.metric)
        if step is None or step < last[row.run, split]:
            kept.append(row)
    return kept


def _step_of(metric: str) -> tuple[str, int | None]:
    """The split (``eval/out_of_distribution/``) and the number of adaptation steps of a metric; None for a return."""
    split, _, name = metric.rpartition("/")
    found = re.fullmatch(r"return_after_(\d+)_steps", name)
    return f"{split}/", int(found[1]) if found else None


def merge(recorded: Sequence[Evaluation], stored: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """Put what has finished into the record: of an arm and a seed the newest run of the store, if there is one.

    A run of less than half the steps takes no other's place, in the store or in the record: a quick look with other
    settings must not cost the record.

    Args:
        recorded: of the record.
        stored: of :func:`read_store`.

    Returns:
        The new record, and a sentence about each run that was replaced or left out.
    """
    done = {(row.arm, row.seed) for row in (*recorded, *stored) if row.metric != DIVERGED}
    # A finished run says more than one that diverged, in whatever order they were trained.
    recorded, stored = (
        [row for row in rows if row.metric != DIVERGED or (row.arm, row.seed) not in done]
        for rows in (recorded, stored)
    )
    old, new = _ends(recorded), _ends(stored)
    taken: dict[tuple[str, str], str] = {}  # runs of the store in the record
    remarks: list[str] = []
    for (arm, seed), runs in new.items():
        name, before = f"{arm} seed {seed}", old.get((arm, seed), {})
        found, left_out = _newest(name, runs.items())
        (run, _), refused = _newest(name, [*before.items(), found])
        remarks += left_out + refused
        if refused:
            continue
        taken[arm, seed] = run
        remarks += [f"Replaced: run {gone} of {name} by {run}." for gone in before if gone != run]
    kept = [row for row in recorded if (row.arm, row.seed) not in taken]
    return kept + [row for row in stored if taken.get((row.arm, row.seed)) == row.run], remarks


def _ends(rows: Iterable[Evaluation]) -> dict[tuple[str, str], dict[str, int]]:
    """(arm, seed) → run → the last step of it; runs in the order in which they come."""
    ends: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        runs = ends.setdefault((row.arm, row.seed), {})
        runs[row.run] = max(row.step, runs.get(row.run, 0))
    return ends


def _newest(name: str, runs: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], list[str]]:
    """The last of ``runs``, each with its last step, that has half the steps of the one before it, or more.

    Returns:
        The run, and a sentence about each later one, which has less.
    """
    (kept, last), *later = runs
    left_out: list[str] = []
    for run, step in later:
        if 2 * step >= last:
            (kept, last), left_out = (run, step), []
            continue
        left_out.append(
            f"Left out: run {run} of {name}, as it has {step:,} steps and run {kept} {last:,}; "
            "to have this one, delete the other from the record and the store."
        )
    return (kept, last), left_out


def metrics_of(rows: Iterable[Evaluation]) -> list[str]:
    """The metrics that a record has of finished runs, ``eval/return`` first."""
    return sorted({row.metric for row in rows} - {DIVERGED}, key=lambda name: (name != RETURN, name))


def diverged_runs(rows: Iterable[Evaluation]) -> list[str]:
    """The sentence that names the runs of a record that diverged, and after how many steps; empty if none did."""
    found = [f"`{row.arm}` seed {row.seed} after {row.step:,} steps" for row in rows if row.metric == DIVERGED]
    return [f"Diverged, so without a return, and not counted: {'; '.join(found)}."] if found else []


def runs_of(rows: Sequence[Evaluation], metric: str = RETURN) -> list[Run]:
    """The runs of a record, as :func:`~lit_metarl.reports.tables.curves.read_runs` gives those of a store.

    Args:
        rows: of the record.
        metric: what :attr:`Run.returns` holds; runs without it are left out. ``return_after_K_steps`` of the last
            step K is the return.

    Returns:
        The runs, their arm as experiment; times count from a start at 0.
    """
    curves: dict[str, dict[str, list[Evaluation]]] = {}
    for row in rows:
        curves.setdefault(row.run, {}).setdefault(row.metric, []).append(row)
    split, step = _step_of(metric)
    runs = []
    for metrics in curves.values():
        points = metrics.get(metric)
        if points is None and step and f"{split}return_after_{step - 1}_steps" in metrics:
            points = metrics.get(f"{split}return")
        if points:
            runs.append(_run(sorted(points, key=lambda row: row.step), metrics.get(BEFORE, [])))
    return runs


def _run(points: Sequence[Evaluation], unadapted: Sequence[Evaluation]) -> Run:
    first, before = points[0], {row.step: row.value for row in unadapted}
    return Run(
        experiment=first.arm,
        algorithm=first.algorithm,
        environment=first.environment,
        seed=first.seed,
        commit=first.commit,
        config=first.config,
        status="FINISHED",
        start=0,
        steps=np.array([row.step for row in points], dtype=np.float64),
        returns=np.array([row.value for row in points]),
        times=np.array([row.minutes * 60_000 for row in points]),
        before=before_at([row.step for row in points], before),
        arm=first.arm,
        run_id=first.run,
        key=first.key,
    )
