"""Stopwatches of MAML-TRPO beside a plain implementation: each in a process of its own, iteration by iteration in turn.

A process builds everything, then waits to be asked for an iteration, so that only one works at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lightning.pytorch import seed_everything

from lit_metarl.algorithms import TRPOMAML
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.nn import GaussianMLP
from lit_metarl.reports.benchmarks.naive_maml import Settings
from lit_metarl.reports.benchmarks.timing import PeakPSS
from lit_metarl.reports.benchmarks.training import describe, fit, quiet_threads
from lit_metarl.reports.benchmarks.trpo_plain import (
    OPTIMISATION,
    SAMPLING,
    WORKS,
    Iteration,
    Stopwatch,
    Work,
    serve_plain,
)
from lit_metarl.reports.section import ReportError

PLAIN, OURS = "plain", "ours"
MEASURED_ITERATIONS = 2  # of memory; they warm up, too, and the second collects while the first one's data may be held


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
    serve, given = (serve_ours, ()) if name == OURS else (serve_plain, (Settings.of(module_of(work, threads)[1]),))
    process = context.Process(target=serve, args=(there, work, *given, threads, MEASURED_ITERATIONS + rounds))
    process.start()
    there.close()

    def answer() -> Any:
        try:
            return here.recv()
        except (EOFError, ConnectionError) as error:
            raise ReportError(f"the process of {work.title}, {name}, has ended; its error is above") from error

    def ask() -> Iteration:
        with suppress(BrokenPipeError):  # it has ended: so says the answer
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


def module_of(work: Work, threads: int) -> tuple[TrajectoryDataModule, TRPOMAML]:
    """Our DataModule and module, the same parameters every time."""
    seed_everything(0, verbose=False)
    data = TrajectoryDataModule(work.family(threads), work.tasks, work.trajectories, epoch_iterations=1)
    return data, TRPOMAML(
        data.obs_dim, data.action_dim, policy=GaussianMLP(work.hidden), action_scale=data.action_scale
    )
