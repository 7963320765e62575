"""The Lightning logger: one MLflow run, written by rank zero.

Lightning's own ``MLFlowLogger`` opens its store when it is constructed, leaves a resumed run FINISHED, refuses a
parameter that changed and waits for every write; this one does not.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import logging
import os
import platform
import posixpath
import re
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_metarl.tracking.interrupts import uninterrupted
from lit_metarl.tracking.store import (
    TrackingError,
    check_store,
    connect,
    drop_points_after,
    ensure_experiment,
    reason_of,
)
from lit_metarl.tracking.writer import MetricWriter

log = logging.getLogger(__name__)

_PARAMS_PER_WRITE = 100  # MLflow's limits
_VALUE_LENGTH = 6000
_KEY_LENGTH = 250
_PACKAGES = ("lit_metarl", "torch", "lightning", "mujoco", "gymnasium", "dm_control", "mlflow")

OF_CHECKPOINT = "checkpoint"


class MLflowLogger(Logger):
    """Logs to a run of the MLflow store in ``root``; the store is opened and the run created at first use.

    Args:
        root: folder of the store; its database, artifacts and checkpoints live there and nowhere else.
        experiment_name: experiment that a new run belongs to.
        run_name: name of a new run; None for one that says what is trained, see :meth:`name_run`.
        run_id: ``checkpoint`` for the run of the checkpoint that training resumes, if it is in this store, and a new
            one otherwise; None for a new one; or the id of the run to continue.
        tags: further tags of a new run, there from its first moment on.
        artifacts: files that a new run gets a copy of.
        log_model: log the policy of the best checkpoint as an MLflow model when a training ends.
    """

    def __init__(
        self,
        root: str = "mlruns",
        experiment_name: str = "lit_metarl",
        run_name: str | None = None,
        run_id: str | None = OF_CHECKPOINT,
        tags: dict[str, str] | None = None,
        artifacts: list[str] | None = None,
        log_model: bool = True,
    ) -> None:
        super().__init__()
        if not experiment_name.strip():
            raise TrackingError("experiment_name is empty: give the experiment a name.")
        self._root = Path(root).expanduser()
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._run_id = None if run_id == OF_CHECKPOINT else run_id
        self._tags: Mapping[str, str] = tags or {}
        self._artifacts: Sequence[str] = artifacts or ()
        self._log_model = log_model
        self._steps: Callable[[], int] | None = None
        self._logged_until = 0  # time in ms of the latest point
        self._client: Any = None
        self._writer: MetricWriter | None = None
        self._unnamed = False  # whether MLflow invented the name
        self._started = False  # whether this process answers for the run's status
        self._killed = False  # whether a signal ended the run, also where that could not be written at once
        self._pid = 0

    def check(self) -> None:
        """Raise ``TrackingError`` if the store cannot be used; costs milliseconds and does not create the run."""
        check_store(self._root)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``MlflowClient`` of the store (a dummy on other ranks than zero); creates or reopens the run.

        Raises:
            TrackingError: the store cannot be used, or ``run_id`` is not in it.
        """
        if self._client is None:
            client = connect(self._root)
            with uninterrupted():  # once a run is in the store, somebody answers for its status
                self._open_run(client)
        return self._client

    def _open_run(self, client: Any) -> None:
        if self._run_id is None:
            experiment_id = ensure_experiment(client, self._root, self._experiment_name)
            tags = {**_own_tags(), **self._tags}
            self._run_id = client.create_run(experiment_id, run_name=self._run_name, tags=tags).info.run_id
            self._unnamed = self._run_name is None
            self._started = True
            for path in self._artifacts:
                client.log_artifact(self._run_id, str(Path(path).expanduser()))
        else:
            self._check_run(client, self._run_id)
        self._writer = MetricWriter(client, self._run_id)
        self._client, self._pid = client, os.getpid()
        atexit.register(self._close_at_exit)

    @rank_zero_only
    def start(self, resumed_at: int | None = None) -> None:
        """Say that the run goes on: RUNNING now, its end to be told by ``finalize``.

        Until this is called a reopened run keeps its status, so that testing a checkpoint, or refusing to resume from
        it, leaves the record of the training as it was.

        Args:
            resumed_at: :attr:`logged_until` of the checkpoint; what training logged later is dropped, for it will be
                logged again. None for a run that begins.
        """
        client = self.experiment
        if resumed_at is not None:
            self._logged_until = resumed_at
            dropped = drop_points_after(self._root, str(self.run_id), resumed_at)
            if dropped:
                log.warning("%d points of the steps after the checkpoint are dropped, to be logged anew", dropped)
        client.update_run(self.run_id, status="RUNNING")
        self._started, self._killed = True, False

    @rank_zero_only
    def adopt(self) -> None:
        """Answer for the status of the run if a crash left it RUNNING; only who has the run to itself may say so.

        However the resume ends, also before :meth:`start`, the run is not RUNNING then.
        """
        self._started |= self.experiment.get_run(self.run_id).info.status == "RUNNING"

    @property
    def logged_until(self) -> int:
        """Time, in ms, of the latest point: no later one has the same."""
        return self._logged_until

    def count_steps(self, steps: Callable[[], int]) -> None:
        """Let ``steps()`` be the x-axis of every point, whatever number its caller gives.

        Lightning's own callbacks and ``self.log`` give the number of training steps.
        """
        self._steps = steps

    @rank_zero_only
    def name_run(self, name: str) -> None:
        """Name a new run that has not been named ``<name>-<begin of its id>``: readable, and unique."""
        if self.run_id is not None and self._unnamed:
            self.experiment.update_run(self.run_id, name=f"{name}-{self.run_id[:6]}")
            self._unnamed = False

    def _check_run(self, client: Any, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise TrackingError(
                f"There is no run {run_id} in {client.tracking_uri}. Drop run_id to start a new run."
            ) from error
        if run.info.lifecycle_stage == "deleted":
            raise TrackingError(
                f"Run {run_id} in {client.tracking_uri} was deleted. Drop run_id to start a new run, or restore it: "
                f"`MLFLOW_TRACKING_URI={client.tracking_uri} mlflow runs restore --run-id {run_id}`."
            )

    @property
    def run_id(self) -> str | None:
        """Id of the run, created if need be; on other ranks than zero None until ``share_run_id``."""
        _ = self.experiment
        return self._run_id

    def share_run_id(self, broadcast: Callable[[str | None], str]) -> str:
        """Give all ranks the run id of rank zero; every rank must call it, with ``trainer.strategy.broadcast``."""
        self._run_id = broadcast(self.run_id)
        return self._run_id

    @property
    def run_dir(self) -> Path:
        """``<root>/runs/<run id>``, created: the place of the run's checkpoints.

        Raises:
            TrackingError: on another rank than zero, before ``share_run_id``.
        """
        run_id = self.run_id
        if run_id is None:
            raise TrackingError("This rank does not know the run yet. Call share_run_id on all ranks first.")
        path = self._root / self.name / run_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def save_dir(self) -> str:
        """The root of the store, so that what Lightning itself writes stays below it."""
        return str(self._root)

    @property
    def name(self) -> str:
        """``"runs"``: Lightning puts checkpoints in ``<save_dir>/<name>/<version>``, which thereby is ``run_dir``."""
        return "runs"

    @property
    def version(self) -> str | None:
        """The run id."""
        return self.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take ``metrics`` at ``step`` (0 if None) to be written within about a second; ``flush`` waits for it.

        After :meth:`count_steps` that is the x-axis instead.
        """
        _ = self.experiment
        assert self._writer is not None
        step = self._steps() if self._steps is not None else step or 0
        now_ms = self._logged_until = max(int(time.time() * 1000), self._logged_until + 1)
        self._writer.add([(clean_key(name), float(value), now_ms, step) for name, value in metrics.items()])

    @rank_zero_only
    def flush(self) -> None:
        """Return when all metrics are in the database. Raises ``TrackingError`` if they cannot be written."""
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def log_final_returns(self) -> None:
        """Log every curve ``eval/…return`` once more as ``final/…return``: its mean over the last tenth of the steps.

        One number of a whole run, by which MLflow's table of runs can be sorted.
        """
        self.flush()
        names = self.experiment.get_run(self.run_id).data.metrics
        for name in [name for name in names if re.fullmatch(r"eval/(.+/)?return", name)]:
            points = self.experiment.get_metric_history(self.run_id, name)
            end = max(point.step for point in points)
            values = [point.value for point in points if point.step > min(0.9 * end, end - 1)]
            self.log_metrics({name.replace("eval/", "final/", 1): sum(values) / len(values)})

    @rank_zero_only
    def log_policy(self, tags: Mapping[str, object]) -> None:
        """Log the policy of ``best.ckpt``, or of ``last.ckpt`` where there is none, as the run's model.

        Nothing with ``log_model`` false or without a checkpoint. What goes wrong is a warning: the run is whole.

        Args:
            tags: of the model.
        """
        found = [path for path in (self.run_dir / "best.ckpt", self.run_dir / "last.ckpt") if path.is_file()]
        if not (self._log_model and found):
            return
        from lit_metarl.tracking.model import log_policy

        try:
            log_policy(self.experiment, str(self.run_id), found[0], tags)
        except Exception as error:  # of MLflow, of the disk, of a policy's class
            log.warning("the policy is not logged as a model (%s: %s)", type(error).__name__, reason_of(error))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Flush, so that the run holds all metrics up to the checkpoint it may be resumed from."""
        self.flush()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is logged whole, with ``log_text``, and a few values with ``log_params``."""

    @rank_zero_only
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log those of ``params`` that the run has not yet: MLflow keeps the first value of a parameter for ever."""
        from mlflow.entities import Param

        client, run_id = self.experiment, self.run_id
        known = client.get_run(run_id).data.params
        given = {clean_key(key): str(value)[:_VALUE_LENGTH] for key, value in params.items()}
        new = [Param(key, value) for key, value in given.items() if key not in known]
        for start in range(0, len(new), _PARAMS_PER_WRITE):
            client.log_batch(run_id, params=new[start : start + _PARAMS_PER_WRITE])

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set ``tags`` of the run, over earlier ones of the same name."""
        from mlflow.entities import RunTag

        client, run_id = self.experiment, self.run_id
        pairs = [RunTag(key, str(value)) for key, value in tags.items()]
        for start in range(0, len(pairs), _PARAMS_PER_WRITE):
            client.log_batch(run_id, tags=pairs[start : start + _PARAMS_PER_WRITE])

    @rank_zero_only
    def log_text(self, text: str, artifact_file: str) -> None:
        """Store ``text`` as the run's artifact ``artifact_file``, over an earlier one."""
        self.experiment.log_text(self.run_id, text, artifact_file)

    @rank_zero_only
    def log_artifact(self, path: Path | str, artifact_path: str | None = None) -> None:
        """Copy the file at ``path`` into the run's artifact folder ``artifact_path``."""
        self.experiment.log_artifact(self.run_id, str(path), artifact_path)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Flush, then mark the run, if this process created or started it.

        Args:
            status: ``success`` for FINISHED, ``killed`` for KILLED, anything else for FAILED.
        """
        if self._client is None or self._writer is None:
            return
        from mlflow.exceptions import MlflowException

        succeeded, told = status in ("success", "finished"), self._writer.told
        self._killed |= status == "killed"
        try:
            with uninterrupted():  # a second Ctrl-C must not come between the last points and the status
                self._writer.flush()
                if self._started:
                    ended = "FINISHED" if succeeded else "KILLED" if self._killed else "FAILED"
                    self._client.set_terminated(self._run_id, ended)
                    self._started = False  # here: where it could not be written, the end of the process tries again
        except (TrackingError, MlflowException) as error:
            if succeeded:
                raise
            if told is None:  # else the run failed of it; raised, it would hide what the run failed of
                log.error("%s", reason_of(error))

    def mark_failed(self) -> None:
        """Mark the run FAILED from whatever process this is: for one that outlives process 0."""
        if self._run_id is not None:
            connect(self._root).set_terminated(self._run_id, "FAILED")

    def _close_at_exit(self) -> None:
        if os.getpid() != self._pid:  # a forked child leaves its parent's run alone
            return
        self.finalize("failed")  # if it was not before: the process ended before its work did


def mlflow_logger(trainer: Any) -> MLflowLogger | None:
    """The MLflow logger of a Trainer, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, MLflowLogger)), None)


@lru_cache(maxsize=4096)
def clean_key(key: str) -> str:
    """Return ``key`` as MLflow accepts it: other characters become ``_``, and it is a plain relative path."""
    key = re.sub(r"[^\w/. -]", "_", key, flags=re.ASCII)[:_KEY_LENGTH]
    key = posixpath.normpath(key).strip("/")
    return "_" if key in ("", ".") else re.sub(r"^\.\.", "__", key)


def _own_tags() -> dict[str, str]:
    """Source, user and the like, as MLflow's own functions set them."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags()


def environment_tags() -> dict[str, str]:
    """Return what a result depends on beside its configuration: the commit of the current folder and the versions.

    What cannot be found is ``"unknown"`` (commit) or ``"absent"`` (package).
    """
    tags = {"git_commit": _git_commit(), "version/python": platform.python_version()}
    for package in _PACKAGES:
        try:
            tags[f"version/{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            tags[f"version/{package}"] = "absent"
    return tags


def _git_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
