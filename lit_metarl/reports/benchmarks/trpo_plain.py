"""The plain implementation's side of ``lit-metarl benchmark trpo``: what to do, stopwatch, process.

It imports none of what only our side needs, so that the memory of its process is that of a plain program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.reports.benchmarks.naive_maml import Episodes, HalfCheetah, PlainMAMLTRPO, Point, Settings

SAMPLING, OPTIMISATION, WHOLE = "sampling", "optimisation", "iteration"
NAVIGATION, CHEETAH = "2-D navigation", "half-cheetah, direction"


@dataclass(frozen=True)
class Work:
    """Something to do for both.

    Attributes:
        title: what it is.
        tasks: of an iteration.
        trajectories: of a task, before adaptation and after it.
        horizon: steps of a trajectory.
        hidden: widths of the policy.
        goal: times that an iteration should be faster than the plain one.
    """

    title: str
    tasks: int
    trajectories: int
    horizon: int
    hidden: tuple[int, ...]
    goal: float

    def family(self, threads: int) -> TaskFamily:
        """The tasks, simulated with ``threads``."""
        if self.title == NAVIGATION:
            return Navigation2D(max_episode_steps=self.horizon)
        return Direction(max_episode_steps=self.horizon, threads=threads)

    def plain_envs(self) -> SyncVectorEnv:
        """Environments of one task."""
        return SyncVectorEnv([Point if self.title == NAVIGATION else HalfCheetah] * self.trajectories)


WORKS = {
    "navigation": Work(NAVIGATION, 20, 20, 100, (100, 100), 3.0),
    "half_cheetah": Work(CHEETAH, 20, 10, 100, (64, 64), 4.0),
}


class Times(NamedTuple):
    """Seconds of a part of an iteration."""

    wall: float
    cpu: float  # of all threads and processes


Iteration = dict[str, Times]
"""Times by part: sampling with adaptation, optimisation, and the whole iteration."""


def serve_plain(connection: Connection, work: Work, settings: Settings, threads: int, iterations: int) -> None:
    """Iterate plainly; beyond one thread as many processes sample, as such code has it."""
    torch.set_num_threads(threads)
    plain, stream, family = PlainMAMLTRPO(settings), np.random.default_rng(0), work.family(1)
    with samplers(work, threads) as sample:
        connection.send(None)
        for _ in range(iterations):
            connection.recv()
            watch = Stopwatch()
            watch.begin()
            (goals,) = family.sample(work.tasks, stream).values()
            sampled, elsewhere = watch.time(SAMPLING, sample, plain, goals)
            watch.time(OPTIMISATION, plain.update, sampled)
            watch.add(SAMPLING, elsewhere)
            connection.send(watch.end())


@contextmanager
def samplers(work: Work, processes: int) -> Iterator[Callable[[PlainMAMLTRPO, np.ndarray], tuple[Any, float]]]:
    """A function from the algorithm and goals ``[B, ...]`` to the tasks' data and CPU seconds of other processes."""
    if processes == 1:
        envs = work.plain_envs()
        yield lambda plain, goals: ([plain.sample_task(envs, goal, work.horizon) for goal in goals], 0.0)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_prepare, initargs=(work,)) as pool:

        def sample(plain: PlainMAMLTRPO, goals: np.ndarray) -> tuple[Any, float]:
            answers = list(pool.map(_sample_elsewhere, repeat(plain.state()), goals))
            tasks = [tuple(Episodes(*map(torch.from_numpy, each)) for each in data) for data, _ in answers]
            return tasks, sum(cpu for _, cpu in answers)

        yield sample


_STATE: dict[str, Any] = {}  # of a process that samples


def _prepare(work: Work) -> None:
    torch.set_num_threads(1)
    _STATE.update(envs=work.plain_envs(), horizon=work.horizon)


def _sample_elsewhere(settings: Settings, goal: np.ndarray) -> tuple[Any, float]:
    began = time.process_time()
    data = PlainMAMLTRPO(settings).sample_task(_STATE["envs"], goal, _STATE["horizon"])
    return [[field.numpy() for field in each] for each in data], time.process_time() - began


class Stopwatch:
    """Wall and CPU seconds of an iteration and of its parts."""

    def begin(self) -> None:
        """Start an iteration."""
        self.parts = {SAMPLING: Times(0.0, 0.0), OPTIMISATION: Times(0.0, 0.0)}
        self.began = time.perf_counter(), time.process_time()
        self.elsewhere = 0.0

    def time(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function`` and count its seconds for ``part``; returns its result."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        so_far = self.parts[part]
        self.parts[part] = Times(so_far.wall + time.perf_counter() - wall, so_far.cpu + time.process_time() - cpu)
        return result

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count all calls of ``owner.name`` for ``part``."""
        method = getattr(owner, name)
        setattr(owner, name, wraps(method)(lambda *args, **kwargs: self.time(part, method, *args, **kwargs)))

    def add(self, part: str, cpu: float) -> None:
        """Add CPU seconds of other processes."""
        self.parts[part] = Times(self.parts[part].wall, self.parts[part].cpu + cpu)
        self.elsewhere += cpu

    def end(self) -> Iteration:
        """The times since :meth:`begin`."""
        wall, cpu = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self.began, strict=True)
        )
        return self.parts | {WHOLE: Times(wall, cpu + self.elsewhere)}
