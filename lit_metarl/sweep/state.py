"""The states of cells: read from the store and from who holds which lock."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from lit_metarl.checkpoint import trained_by
from lit_metarl.sweep.cells import KEY_TAG, Cell
from lit_metarl.tracking import DIVERGED, StoredRun, connect, list_runs
from lit_metarl.types import ConfigError

try:
    import fcntl
except ImportError:  # Windows, where a lock cannot be handed on
    fcntl = None  # type: ignore[assignment]

_PATIENCE_S = 0.5  # a look at a lock holds it for microseconds


class State(StrEnum):
    """The states that a cell can be in."""

    ABSENT = "absent"  # never begun, or stopped before its first checkpoint
    INTERRUPTED = "interrupted"  # stopped, with a checkpoint to go on from
    RUNNING = "running"  # some process trains it
    FAILED = "failed"
    FINISHED = "finished"


class CellState(NamedTuple):
    """The state of a cell, and of which run.

    Attributes:
        run_id: of the run that it is the state of, None where there is none.
        resumable: whether the run has a checkpoint to go on from.
        evaluations: that the run has made so far.
        seconds: from the run's beginning to its end; None unless it has finished.
        note: who trains it, where it is known; where it is recorded, if it has no run here.
    """

    state: State
    run_id: str | None = None
    resumable: bool = False
    evaluations: int = 0
    seconds: float | None = None
    note: str = ""


class CellLock:
    """Lock of a cell, held by whoever trains it: first the sweep, then also the process it starts.

    The process inherits the lock (POSIX), so that the cell is not trained twice even if the sweep is killed and
    another one begins before the process has made its run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._fallback = FileLock(path) if fcntl is None else None

    def take(self, shared: bool = False) -> bool:
        """Whether the lock is now held; ``shared`` with other looks."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _PATIENCE_S
        while not self._try(shared):
            if shared or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _try(self, shared: bool) -> bool:
        if self._fallback is not None:
            try:
                self._fallback.acquire(timeout=0)
            except Timeout:
                return False
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that a process must be passed to inherit the lock."""
        return () if self._descriptor is None else (self._descriptor,)

    def let_go(self) -> None:
        """Hold it no longer; who inherited it still does."""
        if self._fallback is not None:
            self._fallback.release()
        elif self._descriptor is not None:
            os.close(self._descriptor)  # unlocking it would unlock it for all
            self._descriptor = None


def look(cells: Iterable[Cell]) -> dict[str, CellState]:
    """The state of every one of ``cells``, by key; nothing is created."""
    stored: dict[tuple[Path, str], dict[str, list[StoredRun]]] = {}
    states = {}
    for cell in cells:
        place = (cell.root, cell.recipe)
        if place not in stored:
            stored[place] = {}
            for run in list_runs(*place, KEY_TAG):
                stored[place].setdefault(run.tags[KEY_TAG], []).append(run)
        runs = stored[place].get(cell.key, [])
        state = _state(cell, runs)
        if state.state not in (State.FINISHED, State.RUNNING) and _is_locked(cell):
            state = state._replace(state=State.RUNNING, note="another sweep")
        states[cell.key] = state
    return states


def with_record(cells: Iterable[Cell], states: Mapping[str, CellState], record: Path) -> dict[str, CellState]:
    """``states``, but finished where a cell without a run here is in the recipe's ``record``.

    Somebody has trained it on another machine, or the store is gone; see ``lit-metarl report RECIPE``. So is one that
    diverged there, as the note says: it would again.

    Raises:
        ConfigError: the file is no record.
    """
    done = _recorded(record) if record.exists() else {}
    return {
        cell.key: CellState(State.FINISHED, note=done[cell.key])
        if states[cell.key].state is State.ABSENT and cell.key in done
        else states[cell.key]
        for cell in cells
    }


def _recorded(record: Path) -> dict[str, str]:
    """Key of every cell in the record → a note on it."""
    try:
        with record.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["key"]]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ConfigError(
            f"{record} cannot be read as a record ({error!r}): restore it (git checkout {record}) or delete it, "
            "upon which everything is trained again."
        ) from error
    where = f"recorded in {record.name}"
    return {row["key"]: f"{DIVERGED}, {where}" if row.get("metric") == DIVERGED else where for row in rows}


def look_within_lock(cell: Cell) -> CellState:
    """The state of ``cell`` for who holds its lock."""
    return _state(cell, [run for run in list_runs(cell.root, cell.recipe, KEY_TAG) if run.tags[KEY_TAG] == cell.key])


def abandon_runs(cell: Cell) -> None:
    """Mark the runs of ``cell`` KILLED that were killed before they could say so; for who holds its lock."""
    for run in list_runs(cell.root, cell.recipe, KEY_TAG):
        if run.tags[KEY_TAG] == cell.key and run.status == "RUNNING":
            connect(cell.root).set_terminated(run.run_id, "KILLED")


def evaluations_of(cells: Iterable[Cell]) -> dict[str, int]:
    """How many evaluations the newest run of each of ``cells`` has made, by key; without those that have no run."""
    wanted = {cell.key: (cell.root, cell.recipe) for cell in cells}
    found: dict[str, int] = {}
    for place in set(wanted.values()):
        for run in list_runs(*place, KEY_TAG):
            if run.tags[KEY_TAG] in wanted:
                found.setdefault(run.tags[KEY_TAG], run.evaluations)
    return found


def _state(cell: Cell, runs: list[StoredRun]) -> CellState:
    """The state of ``cell``, whose runs are ``runs``, the newest first."""
    for run in runs:
        if run.status == "FINISHED":
            seconds = ((run.ended_ms or run.started_ms) - run.started_ms) / 1000
            return CellState(State.FINISHED, run.run_id, False, run.evaluations, seconds)
    for run in runs:
        holder = trained_by(cell.root / "runs" / run.run_id)
        if holder is not None:
            return CellState(State.RUNNING, run.run_id, False, run.evaluations, None, holder)
    if runs and runs[0].status == "FAILED":
        return CellState(State.FAILED, runs[0].run_id, _has_checkpoint(cell, runs[0]), runs[0].evaluations)
    for run in runs:
        if _has_checkpoint(cell, run):
            return CellState(State.INTERRUPTED, run.run_id, True, run.evaluations)
    return CellState(State.ABSENT)


def _has_checkpoint(cell: Cell, run: StoredRun) -> bool:
    return (cell.root / "runs" / run.run_id / "last.ckpt").is_file()


def _is_locked(cell: Cell) -> bool:
    if not cell.file("lock").exists():
        return False
    lock = CellLock(cell.file("lock"))
    if not lock.take(shared=True):
        return True
    lock.let_go()
    return False
