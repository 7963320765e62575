"""Training of many cells as jobs of a cluster's scheduler, by submitit (https://github.com/facebookincubator/submitit).

A job is :func:`~lit_metarl.sweep.training.train` of one cell: it takes the cell's lock and looks at its state like any
other, so a job that comes late, or twice, trains nothing twice, and one that was put back into the queue goes on from
the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_metarl.config import read_word
from lit_metarl.sweep.cells import Cell
from lit_metarl.sweep.state import CellState, State, look, look_within_lock
from lit_metarl.sweep.training import Outcome, last_error, train
from lit_metarl.sweep.workers import Workers
from lit_metarl.types import ConfigError, require

CLUSTERS = ("slurm", "local")
OPTION = "--cluster."
_GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
_TIMEOUT_MIN = {"slurm": 24 * 60, "local": 365 * 24 * 60}  # submitit's own are 5 and 2 minutes
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "STOPPED", "SUSPENDED")
_POLL_S = 2.0


def split_options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Options ``--cluster.KEY VALUE`` (or ``=VALUE``) in ``words``, see :func:`read_word`, and the other words.

    Raises:
        ConfigError: an option without a value.
    """
    options: dict[str, Any] = {}
    rest = []
    left = iter(words)
    for word in left:
        if not word.startswith(OPTION):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(OPTION).partition("=")
        value = value if equals else next(left, "")
        given = bool(key and value) and (bool(equals) or not value.startswith("--"))
        require(given, word, value, "write --cluster.partition gpu, or another option of the scheduler")
        options[key] = read_word(value)
    return options, rest


class Job:
    """A job that trains a cell.

    Args:
        cell: what is trained.
        job: of submitit.
    """

    def __init__(self, cell: Cell, job: Any) -> None:
        self.cell = cell
        self.begun = time.monotonic()
        self.id = str(job.job_id)
        self._job = job
        self._looked = 0.0

    def poll(self) -> Outcome | None:
        """Outcome of the job; None while it is in the queue or goes on."""
        if time.monotonic() - self._looked < _POLL_S:
            return None
        self._looked = time.monotonic()
        if not self._job.done():
            return None
        state = look_within_lock(self.cell)
        if state.state is State.FINISHED:  # of a job that was put back into the queue the first result may be there
            return Outcome(state)
        if state.state in (State.INTERRUPTED, State.RUNNING) and self._job.state in _ALIVE:
            return None  # put back into the queue, and perhaps begun again
        try:
            outcome: Outcome = self._job.result()
        except Exception as error:  # of submitit: cancelled, out of time, a node that failed
            reason = str(error).strip().partition("\n")[0]
            return Outcome(state, last_error(self.cell.file("log")) or f"job {self.id}: {reason}")
        return outcome

    def stop(self, number: int) -> None:
        """Do nothing: the scheduler's jobs are its own."""


class Jobs(Workers):
    """Trains ``cells``, each in a job of its own.

    A sweep that is stopped leaves its jobs alone and says how to cancel them.

    Args:
        cells, states, retry, shown: as of :class:`~lit_metarl.sweep.workers.Workers`.
        workers: jobs at a time, in the queue or running.
        cluster: ``slurm``, or ``local`` for processes on this machine.
        options: of submitit, such as ``timeout_min``, ``mem_gb``, ``cpus_per_task``, ``gpus_per_node``; any other is
            SLURM's own, such as ``partition`` and ``account``.

    Raises:
        ConfigError: submitit is not installed, there is no such cluster, or an option that it does not have.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        states: Mapping[str, CellState],
        workers: int,
        cluster: str,
        options: Mapping[str, Any],
        retry: bool,
        shown: Any,
    ) -> None:
        threads = options.get("cpus_per_task", 1)
        super().__init__(cells, states, workers, threads, retry, shown)
        self._cluster = cluster
        first = cells[0]
        self._executor = _executor(first.root / "sweeps" / first.recipe / "jobs", cluster, options)

    def begin(self, cell: Cell) -> Job | Outcome:
        """The job that now trains ``cell``, one that is in the queue already if there is one; or why none is needed."""
        state = look([cell])[cell.key]
        if state.state in (State.FINISHED, State.RUNNING) or (state.state is State.FAILED and not self.retry):
            return Outcome(state, last_error(cell.file("log")) if state.state is State.FAILED else state.note)
        job = self._queued(cell)
        if job is None:
            cell.file("job").parent.mkdir(parents=True, exist_ok=True)
            with _ctrl_c_ignored():
                job = self._executor.submit(train, cell, self.threads, self.retry)
            cell.file("job").write_text(str(job.job_id), encoding="utf-8")
        return Job(cell, job)

    def _queued(self, cell: Cell) -> Any:
        """The job that an earlier sweep submitted for ``cell``, if SLURM still has it; None if not."""
        import submitit

        if self._cluster != "slurm" or not cell.file("job").is_file():
            return None
        job: Any = submitit.SlurmJob(self._executor.folder, cell.file("job").read_text(encoding="utf-8"))
        return job if job.get_info(mode="force").get("State") in _ALIVE else None

    def stop_all(self, number: int) -> None:
        """Leave the jobs alone, and say how to cancel them."""
        ids = " ".join(job.id for job in self.running.values() if isinstance(job, Job))
        many = f"{len(self.running)} jobs go" if len(self.running) > 1 else "the job goes"
        cancel = f"scancel {ids}" if self._cluster == "slurm" else f"kill {ids}"
        if ids:
            self.say(f"{many} on; `{cancel}` cancels, upon which a run saves")
        for key in list(self.running):
            self.leave(key)


def _executor(folder: Path, cluster: str, options: Mapping[str, Any]) -> Any:
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # else its import closes all handlers of logging
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # upon which a run saves and puts its job back into the queue
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--cluster needs submitit, which is not installed: pip install 'lit_metarl[cluster]'.") from (
            error
        )
    own = {key if key in _GENERIC else f"slurm_{key}": value for key, value in options.items()}
    defaults = {"name": folder.parent.name, "timeout_min": _TIMEOUT_MIN[cluster], "cpus_per_task": 1}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**(defaults | own))
    except RuntimeError as error:
        raise ConfigError(
            f"--cluster {cluster} cannot be used: {error} Start the sweep where jobs are submitted, or use --cluster "
            "local."
        ) from error
    except (NameError, ValueError, AssertionError, TypeError) as error:
        text = str(error).partition("\n")[0]
        raise ConfigError(f"{OPTION}… {dict(options)} cannot be used: {text}") from error
    return executor


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Let a process that is started be deaf to this terminal's Ctrl-C: a local job goes on, as one of SLURM does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
