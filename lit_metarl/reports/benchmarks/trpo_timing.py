"""Stopwatches of MAML-TRPO beside a plain implementation: each in a process of its own, iteration by iteration in turn.

A process builds everything, then waits to be asked for an iteration, so that only one works at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from lightning.pytorch import seed_everything

from lit_metarl.algorithms import TRPOMAML
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.nn import GaussianMLP
from lit_metarl.reports.benchmarks.naive_maml import Episodes, HalfCheetah, PlainMAMLTRPO, Point
from lit_metarl.reports.benchmarks.timing import PeakPSS
from lit_metarl.reports.benchmarks.training import describe, fit, quiet_threads
from lit_metarl.reports.section import ReportError

PLAIN, OURS = "plain", "ours"
SAMPLING, OPTIMISATION, WHOLE = "sampling", "optimisation", "iteration"
MEASURED_ITERATIONS = 2  # of memory; they warm up, too, and the second collects while the first one's data may be held


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


NAVIGATION, CHEETAH = "2-D navigation", "half-cheetah, direction"
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


@dataclass(frozen=True)
class Measured:
    """Everything about one work with one number of threads.

    Attributes:
        rounds: one iteration of each, by name.
        start: GiB of each before its first iteration (PSS), NaN where the system does not tell.
        peak: GiB at most, while it iterated.
    """

    rounds: list[dict[str, Iteration]]
    start: dict[str, float]
    peak: dict[str, float]


class Result(NamedTuple):
    """All measurements, by work and number of threads, with the settings and the machine."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    measured: dict[tuple[str, int], Measured]


def measure(args: argparse.Namespace) -> Result:
    """Measure every work with every number of threads.

    Raises:
        ReportError: a process ended before its time; its own error is on stderr.
    """
    with quiet_threads(None):
        described = describe(args)
    measured = {(name, n): measure_work(WORKS[name], n, args.rounds) for name in args.works for n in args.threads}
    return Result(described["settings"], described["machine"], measured)


def measure_work(work: Work, threads: int, rounds: int) -> Measured:
    """Iterations of both in turn, in the other order every other round."""
    with contender(OURS, work, threads, rounds) as ours, contender(PLAIN, work, threads, rounds) as plain:
        both = {PLAIN: plain, OURS: ours}
        start, peak = {}, {}
        for name, (process, ask) in both.items():
            with PeakPSS(process.pid) as memory:
                start[name] = memory.value
                for _ in range(MEASURED_ITERATIONS):
                    ask()
            peak[name] = memory.value
        done = []
        for number in range(rounds):
            order = (PLAIN, OURS) if number % 2 else (OURS, PLAIN)
            times = {name: both[name][1]() for name in order}
            done.append({name: times[name] for name in both})
    return Measured(done, start, peak)


@contextmanager
def contender(name: str, work: Work, threads: int, rounds: int) -> Iterator[tuple[Any, Callable[[], Iteration]]]:
    """A process that is ready to iterate, and the function that lets it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=SERVE[name], args=(there, work, threads, MEASURED_ITERATIONS + rounds))
    process.start()
    there.close()

    def answer() -> Any:
        try:
            return here.recv()
        except EOFError as error:
            raise ReportError(f"the process of {work.title}, {name}, has ended; its error is above") from error

    def ask() -> Iteration:
        here.send(None)
        times: Iteration = answer()
        return times

    try:
        answer()  # it is ready
        yield process, ask
    finally:
        here.close()
        process.join()


def serve_ours(connection: Connection, work: Work, threads: int, iterations: int) -> None:
    """Train as the command line does; every iteration waits to be asked for."""
    data, module = module_of(work, threads)
    watch = Stopwatch()

    def ready(trainer: Any, module: Any) -> None:
        watch.wrap(data, "next_batch", SAMPLING)
        watch.wrap(module, "training_step", OPTIMISATION)
        connection.send(None)

    def start(trainer: Any, module: Any) -> None:
        connection.recv()
        watch.begin()

    def end(trainer: Any, module: Any) -> None:
        connection.send(watch.end())

    def setup(trainer: Any, module: Any, stage: str) -> None:
        trainer.log_every_n_steps = 1  # as in configs/base_meta.yaml

    hooks = {"setup": setup, "on_train_start": ready, "on_train_epoch_start": start, "on_train_epoch_end": end}
    with quiet_threads(threads):
        fit(argparse.Namespace(accelerator="cpu"), module, iterations, hooks, datamodule=data)


def serve_plain(connection: Connection, work: Work, threads: int, iterations: int) -> None:
    """Iterate plainly; beyond one thread as many processes sample, as such code has it."""
    torch.set_num_threads(threads)
    plain, stream, family = PlainMAMLTRPO(module_of(work, threads)[1]), np.random.default_rng(0), work.family(1)
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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_prepare, initargs=(work,)) as pool:

        def sample(plain: PlainMAMLTRPO, goals: np.ndarray) -> tuple[Any, float]:
            params = {name: p.detach().numpy() for name, p in plain.params.items()}
            settings = {key: value for key, value in vars(plain).items() if key != "params"}
            answers = list(pool.map(_sample_elsewhere, repeat(settings), repeat(params), goals))
            tasks = [tuple(Episodes(*map(torch.from_numpy, each)) for each in data) for data, _ in answers]
            return tasks, sum(cpu for _, cpu in answers)

        yield sample


_STATE: dict[str, Any] = {}  # of a process that samples


def _prepare(work: Work) -> None:
    torch.set_num_threads(1)
    _STATE.update(envs=work.plain_envs(), horizon=work.horizon)


def _sample_elsewhere(settings: dict[str, Any], params: dict[str, np.ndarray], goal: np.ndarray) -> tuple[Any, float]:
    began = time.process_time()
    plain = PlainMAMLTRPO.__new__(PlainMAMLTRPO)
    vars(plain).update(settings, params={name: torch.tensor(p, requires_grad=True) for name, p in params.items()})
    data = plain.sample_task(_STATE["envs"], goal, _STATE["horizon"])
    return [[field.numpy() for field in each] for each in data], time.process_time() - began


SERVE = {PLAIN: serve_plain, OURS: serve_ours}


def module_of(work: Work, threads: int) -> tuple[TrajectoryDataModule, TRPOMAML]:
    """Our DataModule and module, the same parameters every time."""
    seed_everything(0, verbose=False)
    data = TrajectoryDataModule(work.family(threads), work.tasks, work.trajectories, epoch_iterations=1)
    return data, TRPOMAML(
        data.obs_dim, data.action_dim, policy=GaussianMLP(work.hidden), action_scale=data.action_scale
    )


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
