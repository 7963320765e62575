"""Training of many cells on this machine, a few at a time."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from lit_metarl.sweep.cells import Cell
from lit_metarl.sweep.display import Lines
from lit_metarl.sweep.estimate import Durations, in_words
from lit_metarl.sweep.state import CellState, State, evaluations_of
from lit_metarl.sweep.training import POLL_S, Outcome, StopRequest, begin

LOOK_S = 2.0  # between two looks into the store at how far the runs are


class Running(Protocol):
    """The training of a cell that goes on: a process, or a job of a scheduler."""

    cell: Cell
    begun: float

    def poll(self) -> Outcome | None:
        """Outcome of it; None while it goes on."""
        ...

    def stop(self, number: int) -> None:
        """Send it a signal, if it still goes on."""
        ...


class Workers:
    """Trains ``cells``, each in a process of its own.

    Args:
        cells: all of the sweep.
        states: of each, by key.
        workers: how many are trained at a time.
        threads: of each process.
        retry: train again what has failed.
        shown: the display.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        states: Mapping[str, CellState],
        workers: int,
        threads: int,
        retry: bool,
        shown: Lines,
    ) -> None:
        self._cells, self._states = cells, dict(states)
        self._workers, self.threads, self.retry, self._shown = workers, threads, retry, shown
        again = (State.ABSENT, State.INTERRUPTED, *((State.FAILED,) if retry else ()))
        # What was begun is brought to its end first.
        waiting = [cell for cell in cells if states[cell.key].state in again]
        self._waiting = sorted(waiting, key=lambda cell: not states[cell.key].resumable)
        self.running: dict[str, Running] = {}
        self._before: dict[str, float] = {}  # fraction of each running cell when its process began
        self._fractions: dict[str, float | None] = {}
        self._looked = 0.0
        self._notes: dict[str, str] = {}
        self._durations = durations_of(cells, states)

    def run(self) -> tuple[dict[str, Outcome], int | None]:
        """Outcome of every cell, by key, and the signal that stopped the sweep, if one did."""
        told: int | None = None
        with StopRequest() as request:
            try:
                while self.running or (self._waiting and request.received is None):
                    self._collect()
                    if request.received is None:
                        self._fill()
                    elif (number := request.signal_for(told)) is not None:
                        self.stop_all(told := number)
                    self._show()
                    time.sleep(POLL_S)
            except BaseException:
                self.stop_all(signal.SIGTERM)  # they save on their own
                raise
            finally:
                self._shown.close()
        outcomes = {key: Outcome(state, self._notes.get(key, "")) for key, state in self._states.items()}
        return outcomes, request.received

    def begin(self, cell: Cell) -> Running | Outcome:
        """The process that now trains ``cell``; or why none is needed."""
        return begin(cell, self.threads, self.retry)

    def _fill(self) -> None:
        while self._waiting and len(self.running) < self._workers:
            cell = self._waiting.pop(0)
            begun = self.begin(cell)
            if isinstance(begun, Outcome):
                self._note(cell, begun)
                continue
            state = self._states[cell.key]
            self.running[cell.key] = begun
            self._before[cell.key] = self._fraction(cell, state.evaluations) or 0.0
            self._shown.say(f"{cell}: {'goes on' if state.resumable else 'begins'}, see {cell.file('log')}")

    def _collect(self) -> None:
        for key, attempt in list(self.running.items()):
            outcome = attempt.poll()
            if outcome is not None:
                del self.running[key]
                if outcome.state.state is State.FINISHED and self._before[key] == 0.0:
                    self._durations.add(attempt.cell.arm, time.monotonic() - attempt.begun)
                self._note(attempt.cell, outcome)

    def _note(self, cell: Cell, outcome: Outcome) -> None:
        self._states[cell.key], self._notes[cell.key] = outcome
        reason = f" ({outcome.note})" if outcome.note else ""
        self._shown.say(f"{cell}: {outcome.state.state}{reason}; {self._summary()}")

    def stop_all(self, number: int) -> None:
        """Send what goes on a signal, and say so."""
        how = "which saves" if len(self.running) == 1 else "which save"
        how = f"{how}; Ctrl-C again stops at once" if number == signal.SIGTERM else "saving nothing"
        self.say(f"stopping {len(self.running)} run{'s' if len(self.running) > 1 else ''}, {how}")
        for attempt in self.running.values():
            attempt.stop(number)

    def say(self, text: str) -> None:
        """Show a line."""
        self._shown.say(text)

    def leave(self, key: str) -> None:
        """Wait for the cell of that key no longer; it goes on."""
        del self.running[key]
        self._states[key] = self._states[key]._replace(state=State.RUNNING)

    def _show(self) -> None:
        if self.running and time.monotonic() - self._looked > LOOK_S:
            done = evaluations_of([attempt.cell for attempt in self.running.values()])
            for key, attempt in self.running.items():
                self._fractions[key] = self._fraction(attempt.cell, done.get(key, 0))
            self._looked = time.monotonic()
        running = {str(attempt.cell): self._fractions.get(key) for key, attempt in self.running.items()}
        self._shown.update(self._count(State.FINISHED), len(self._cells), self._summary(), running)

    def _summary(self) -> str:
        """How many cells are finished, and when the others may be."""
        return f"{self._count(State.FINISHED)}/{len(self._cells)} finished, time left: {in_words(self._left())}"

    def _left(self) -> float | None:
        """Seconds until the end; what nothing is known of takes as long as a running one seems to."""
        known = Durations() if self._durations.typical("") is None else self._durations
        # Also those that were stopped: they are left for another time.
        waiting = {cell.key for cell in self._waiting}
        parts = [
            (cell.arm, part_left(cell, self._states[cell.key]))
            for cell in self._cells
            if cell.key not in self.running
            and (cell.key in waiting or self._states[cell.key].state in (State.ABSENT, State.INTERRUPTED))
        ]
        for key, attempt in self.running.items():
            fraction, before = self._fractions.get(key) or 0.0, self._before[key]
            if known is not self._durations and fraction > before:
                known.add(attempt.cell.arm, (time.monotonic() - attempt.begun) / (fraction - before))
            parts.append((attempt.cell.arm, 1.0 - fraction))
        return known.left(parts, self._workers)

    def _count(self, state: State) -> int:
        return sum(each.state is state for each in self._states.values())

    @staticmethod
    def _fraction(cell: Cell, evaluations: int) -> float | None:
        return min(evaluations / cell.evaluations, 1.0) if cell.evaluations else None


def durations_of(cells: Sequence[Cell], states: Mapping[str, CellState]) -> Durations:
    """Durations of the finished ones of ``cells``."""
    durations = Durations()
    for cell in cells:
        seconds = states[cell.key].seconds
        if seconds is not None:
            durations.add(cell.arm, seconds)
    return durations


def part_left(cell: Cell, state: CellState) -> float:
    """The fraction of ``cell`` that is still to be trained."""
    return 1.0 - min(state.evaluations / cell.evaluations, 1.0) if cell.evaluations and state.resumable else 1.0
