"""Training of one cell: ``lit-metarl fit`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_metarl.sweep.cells import Cell
from lit_metarl.sweep.state import CellLock, CellState, State, abandon_runs, look_within_lock

ERROR = "lit-metarl: error: "
POLL_S = 0.1
_TRACEBACK = "Traceback (most recent call last):"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Outcome(NamedTuple):
    """The end of an attempt to train a cell.

    Attributes:
        state: of it now.
        note: why it failed or was not trained; empty if there is nothing to say.
    """

    state: CellState
    note: str = ""


class Attempt:
    """A process that trains a cell, with the cell's lock.

    Args:
        cell: what is trained.
        run_id: of the run to go on with; None to begin one.
        lock: of the cell, taken.
        threads: of the process.
    """

    def __init__(self, cell: Cell, run_id: str | None, lock: CellLock, threads: int) -> None:
        self.cell = cell
        self.begun = time.monotonic()
        self._lock = lock
        self._log = cell.file("log")
        config = cell.file("yaml")
        config.write_text(yaml.safe_dump(cell.config, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "lit_metarl", "fit", "--config", str(config)]
        command += [] if run_id is None else ["--ckpt_path", run_id]
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} {' '.join(command[2:])}\n")
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(threads),
                start_new_session=True,  # a Ctrl-C is the sweep's to pass on, once: a second one stops without saving
                pass_fds=lock.descriptors,
            )

    def poll(self) -> Outcome | None:
        """Outcome of the attempt; None while the process goes on."""
        code = self._process.poll()
        if code is None:
            return None
        state = look_within_lock(self.cell)
        self._lock.let_go()
        if state.state in (State.FINISHED, State.RUNNING):
            return Outcome(state, state.note)
        if code in (1, 2):  # an error, perhaps before there was a run
            return Outcome(state._replace(state=State.FAILED), last_error(self._log))
        return Outcome(state, _ended(code))

    def stop(self, number: int) -> None:
        """Send the process a signal, if it still goes on."""
        if self._process.poll() is None:
            self._process.send_signal(number)


class StopRequest:
    """Takes note of the signals that ask to stop while it is entered; those that are ignored stay so."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.at_once = False  # whether a second Ctrl-C does not want to wait
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: Any) -> None:
        self.at_once |= self.received is not None and number == signal.SIGINT
        self.received = self.received or number

    def signal_for(self, told: int | None) -> int | None:
        """The signal for processes that were ``told`` one before; None if there is nothing new.

        First SIGTERM, upon which they save; SIGINT after that, upon which they do not.
        """
        if self.at_once:
            return None if told == signal.SIGINT else signal.SIGINT
        return signal.SIGTERM if self.received is not None and told is None else None


def begin(cell: Cell, threads: int = 1, retry: bool = False) -> Attempt | Outcome:
    """The process that now trains ``cell``, from its last checkpoint if there is one; or why none is needed.

    Args:
        cell: what is trained.
        threads: of the process.
        retry: also if it has failed before.
    """
    lock = CellLock(cell.file("lock"))
    if not lock.take():
        return Outcome(CellState(State.RUNNING), "another sweep")
    state = look_within_lock(cell)  # within the lock: another sweep may just have trained it
    if state.state in (State.FINISHED, State.RUNNING) or (state.state is State.FAILED and not retry):
        lock.let_go()
        return Outcome(state, last_error(cell.file("log")) if state.state is State.FAILED else state.note)
    try:
        if not state.resumable:
            abandon_runs(cell)
        return Attempt(cell, state.run_id if state.resumable else None, lock, threads)
    except BaseException:
        lock.let_go()
        raise


def train(cell: Cell, threads: int = 1, retry: bool = False) -> Outcome:
    """Train ``cell`` here and now and return its outcome, see :func:`begin`; a signal stops it, saved.

    SIGUSR1, which a scheduler sends before a job's time is over, is handed on: a run in a SLURM job saves and puts the
    job back into the queue.
    """
    attempt = begin(cell, threads, retry)
    if isinstance(attempt, Outcome):
        return attempt
    told: int | None = None
    with StopRequest() as request:
        while (outcome := attempt.poll()) is None:
            if (number := request.signal_for(told)) is not None:
                again = number == signal.SIGTERM and request.received == getattr(signal, "SIGUSR1", None)
                attempt.stop(request.received if again and request.received else number)
                told = number
            time.sleep(POLL_S)
    return outcome


def last_error(log: Path) -> str:
    """The last line of ``log`` that says what went wrong; its last line at all if none does."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    text = text[text.rfind("\n# ") + 1 :]  # of the last attempt
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if not errors and _TRACEBACK in lines:
        after = lines[len(lines) - lines[::-1].index(_TRACEBACK) :]
        errors = [line for line in after if not line.startswith(" ")][:1]  # notes follow it
    return (errors or lines or [""])[-1].strip()


def _ended(code: int) -> str:
    """How a process ended that was stopped from outside, or that trained nothing."""
    number = -code if code < 0 else code - 128
    try:
        return f"stopped by {signal.Signals(number).name}"
    except ValueError:
        return f"ended with code {code}"


def _environment(threads: int) -> dict[str, str]:
    """The variables of a process with so many threads; a requeued SLURM job's others are not what it goes on with."""
    shared = {name: value for name, value in os.environ.items() if name != "SLURM_RESTART_COUNT"}
    return shared | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
