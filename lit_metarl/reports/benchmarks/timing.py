"""Readings of the benchmarks: time by part of a training loop, its spread over rounds, memory, load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

Round = TypeVar("Round")
OTHER = "Lightning"
PARTS = ("simulator", "acting", "replay", "collector", "updates", "logging", OTHER)  # of SAC's loop
META_PARTS = {  # of a meta-iteration → their content
    "physics": "mujoco.batch within the environments",
    "environments": "resets, observations, rewards, checks",
    "acting": "the tasks' policies, all at once",
    "collecting": "what is left of it: recording, scaling of actions, tasks",
    "adaptation": "between the rounds, baseline and advantages included",
    "update": "credits, meta-gradient and optimizer; baseline and advantages of all rounds",
    OTHER: "its loop, and logging",
}


class Clock:
    """Wall time by part; a call within another counts for its own part only, so the parts add up to the whole.

    Args:
        synchronise: wait for the GPU at every switch: what a part launched is its own.
        parts: their names, ``rest`` among them.
        rest: what is outside of all other parts.
    """

    def __init__(self, synchronise: Callable[[], None], parts: Iterable[str] = PARTS, rest: str = OTHER) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._synchronise = synchronise
        self._wrapped: list[tuple[Any, str]] = []
        self._rest = self._part = rest
        self._since = time.perf_counter()

    def begin(self) -> float:
        """Count from now on; returns the time that it is."""
        self._since = time.perf_counter()
        return self._since

    def switch(self, part: str) -> str:
        """Time from now on is that of ``part``; returns the part before."""
        self._synchronise()
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        previous, self._part, self._since = self._part, part, now
        return previous

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of ``owner.name`` for ``part`` until :meth:`unwrap`."""
        method = getattr(owner, name)

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            previous = self.switch(part)
            try:
                return method(*args, **kwargs)
            finally:
                self.switch(previous)

        setattr(owner, name, timed)
        self._wrapped.append((owner, name))

    def unwrap(self) -> None:
        """Leave every object as it was."""
        self.switch(self._rest)
        while self._wrapped:
            delattr(*self._wrapped.pop())


class Spread(NamedTuple):
    """Median, lowest and highest value of one number over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Spread of one number per round; ratios are taken within a round."""
    listed = list(values)
    return Spread(median(listed), min(listed), max(listed))


def typical(rounds: Sequence[Round], seconds: Callable[[Round], float]) -> Round:
    """The round of the median time, whose parts add up to 100 %; medians part by part would not."""
    return sorted(rounds, key=seconds)[(len(rounds) - 1) // 2]


def verdict(reached: bool) -> str:
    """``reached`` or ``missed``, of a goal."""
    return "reached" if reached else "missed"


def resident(field: str) -> float:
    """``VmRSS``, now, or ``VmHWM``, at most so far, of this process in GiB; NaN where there is no ``/proc``."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith(f"{field}:")]
    return kib[0] / 2**20 if kib else float("nan")


def forget_peak() -> None:
    """Let ``VmHWM`` begin anew at ``VmRSS``, where the system can."""
    references = Path("/proc/self/clear_refs")
    if references.exists():
        references.write_text("5", encoding="ascii")


def is_busy(machine: dict[str, Any]) -> bool:
    """Whether others used the CPUs of a described machine, so that all times are too long."""
    return machine["load"] + machine["threads"] > machine["cpus"] + 0.5


class PeakPSS:
    """The most memory that a process holds while the context is open, GiB: its proportional set size.

    Read 50 times a second from ``/proc``; NaN where there is none. Pages that processes share count in parts.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/smaps_rollup")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.value = self.now()

    def now(self) -> float:
        """The memory that it holds now; NaN if it is no more."""
        try:
            lines = self._file.read_text(encoding="ascii").splitlines()
        except OSError:
            return float("nan")
        kib = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
        return kib[0] / 2**20 if kib else float("nan")

    def __enter__(self) -> PeakPSS:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        closed = False
        while not closed:  # and once more at the end: the thread may not have run before
            closed = self._closed.wait(0.02)
            self.value = max(self.value, self.now())
