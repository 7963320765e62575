"""The tracking store: everything that runs leave behind, under one root.

``<root>/mlflow.db`` holds parameters, metrics and tags; ``<root>/artifacts/<experiment>/<run id>`` the artifacts;
``<root>/runs/<run id>`` the checkpoints. MLflow is imported by the functions that need it, never by this module.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from filelock import FileLock, Timeout

from lit_metarl.tracking.interrupts import uninterrupted

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

DATABASE = "mlflow.db"
DIVERGED = "diverged"
"""Metric of a run that left the finite numbers: 1, at the environment steps where it stopped."""
_ARTIFACTS = "artifacts"
_LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
_LOCK_TIMEOUT_S = 120.0  # creating a store takes some 3 s; a busy machine some tens
_BUSY_TIMEOUT_S = 20.0  # as MLflow's own
LOCK_PATIENCE_S = 600.0  # how long a locked database is waited for


class TrackingError(RuntimeError):
    """The tracking store cannot be used as asked; the message names the place and the remedy."""


class _State(NamedTuple):
    revision: str
    default_location: str  # artifact location of experiment 0, which tells where the store was last opened


def open_store(root: Path | str = "mlruns") -> str:
    """Return the tracking URI of the store in ``root``, creating the store if there is none.

    The URI is relative if ``root`` is, so it is the one to give to ``mlflow ui --backend-store-uri``. Any number of
    processes may call this at once. A store whose folder was moved has its artifact locations rewritten.

    Raises:
        TrackingError: ``root`` cannot be written in, or its database has another schema than the installed MLflow.
    """
    root = Path(root).expanduser()
    state = check_store(root)
    if state is None or _is_moved(root, state):
        try:
            with FileLock(_lock_path(root), timeout=_LOCK_TIMEOUT_S):
                state = check_store(root)  # another process may have been first
                if state is None:
                    _create(root)
                elif _is_moved(root, state):
                    _rewrite_locations(root / DATABASE, state, _artifact_root(root))
        except Timeout as error:
            raise TrackingError(
                f"Another process has held {_lock_path(root)} for {_LOCK_TIMEOUT_S:.0f} s. End it, or use another root."
            ) from error
    return _uri(root)


def check_store(root: Path | str) -> _State | None:
    """Check in a few milliseconds, without MLflow, that the store in ``root`` can be used; None if it is still to make.

    Raises:
        TrackingError: ``root`` cannot be written in, or its database has another schema than the installed MLflow.
    """
    root = Path(root).expanduser()
    if found := sorted(set("?#%") & set(str(root.resolve()))):
        raise TrackingError(
            f"The tracking root {root.resolve()} contains {found}, which a URI cannot. Use another root."
        )
    database = root / DATABASE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        if database.exists() and not os.access(database, os.W_OK):
            raise PermissionError(None, "permission denied", str(database))
    except OSError as error:
        raise TrackingError(
            f"Cannot write in the tracking root {root}: {error.strerror or error} ({error.filename}). "
            "Make it a writable folder, or use another root."
        ) from error
    state = _read_state(database)
    if state is not None:
        _check_revision(database, state.revision)
    return state


def connect(root: Path | str = "mlruns") -> MlflowClient:
    """Open the store in ``root`` and return a client of it.

    Raises:
        TrackingError: as ``open_store``.
    """
    uri = open_store(root)
    _quieten_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        # absolute, because MLflow caches stores by URI and a relative one outlives a change of directory
        return cast("MlflowClient", _PatientClient(MlflowClient(_uri(Path(root).expanduser().resolve()))))
    except MlflowException as error:
        raise TrackingError(f"MLflow cannot open {uri}: {reason_of(error)}. Try `mlflow db upgrade {uri}`.") from error


class _PatientClient:
    """An ``MlflowClient`` that waits, minutes if need be, while another process holds the database."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return partial(self._patiently, attribute) if callable(attribute) else attribute

    def _patiently(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from mlflow.exceptions import MlflowException

        deadline = time.monotonic() + LOCK_PATIENCE_S
        with uninterrupted() as let_interrupts_through:
            while True:
                try:
                    return call(*args, **kwargs)
                except MlflowException as error:
                    if "database is locked" not in str(error) or time.monotonic() > deadline:
                        raise
                    log.warning(
                        "%s is locked by another process; waiting for it, %.0f s more at most",
                        self._client.tracking_uri,
                        deadline - time.monotonic(),
                    )
                let_interrupts_through()


def has_run(root: Path | str, run_id: str) -> bool:
    """Whether the store in ``root`` has the run, not deleted; read without MLflow, in milliseconds."""
    database = Path(root).expanduser() / DATABASE
    if not database.is_file():
        return False
    with closing(sqlite3.connect(database, timeout=LOCK_PATIENCE_S)) as connection:
        query = "SELECT count(*) FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
        return bool(connection.execute(query, (run_id,)).fetchone()[0])


class StoredRun(NamedTuple):
    """A run as the database has it.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED, as the run's process or MLflow last wrote it.
        started_ms, ended_ms: time in ms; the latter None until the run has ended.
        evaluations: number of points of ``eval/return``.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    started_ms: int
    ended_ms: int | None
    evaluations: int


def list_runs(root: Path | str, experiment: str, tag: str) -> list[StoredRun]:
    """The runs of ``experiment`` that carry ``tag``, the newest first; read without MLflow, in milliseconds.

    A store or an experiment that does not exist has no runs, and is not created.
    """
    database = Path(root).expanduser() / DATABASE
    if not database.is_file():
        return []
    query = (
        "SELECT run_uuid, status, start_time, end_time, "
        "(SELECT count(*) FROM metrics WHERE metrics.run_uuid = runs.run_uuid AND metrics.key = 'eval/return') "
        "FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = ? AND "
        "runs.lifecycle_stage = 'active' AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = ?) "
        "ORDER BY start_time DESC, run_uuid"
    )
    with closing(sqlite3.connect(database, timeout=LOCK_PATIENCE_S)) as connection:
        found = []
        for run_id, status, started, ended, evaluations in connection.execute(query, (experiment, tag)).fetchall():
            tags = dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)).fetchall())
            found.append(StoredRun(run_id, status, tags, started, ended, evaluations))
    return found


def reason_of(error: Exception) -> str:
    """The database's own message in ``error``, one line without the statement that failed."""
    said = re.search(r"\(sqlite3\.\w+\) ([^\n]+)", str(error))
    return (said[1] if said else str(error).partition("\n")[0]).rstrip(".")


def drop_points_after(root: Path | str, run_id: str, time_ms: int) -> int:
    """Delete the points that training logged in ``run_id`` after ``time_ms``; returns how many.

    Those of ``test`` and ``validate`` stay: they are of a checkpoint, and nothing logs them again. MLflow has no call
    for this, so it is done in its tables, ``latest_metrics`` included.
    """
    later = "run_uuid = ? AND timestamp > ? AND key NOT LIKE 'test/%' AND key NOT LIKE 'validate/%'"
    database = sqlite3.connect(Path(root) / DATABASE, timeout=LOCK_PATIENCE_S)
    with uninterrupted(), closing(database) as connection, connection:
        dropped = connection.execute(f"DELETE FROM metrics WHERE {later}", (run_id, time_ms)).rowcount
        if dropped:
            connection.execute("DELETE FROM latest_metrics WHERE run_uuid = ?", (run_id,))
            connection.execute(
                "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
                "SELECT key, value, timestamp, step, is_nan, run_uuid FROM (SELECT *, row_number() OVER "
                "(PARTITION BY key ORDER BY step DESC, timestamp DESC, value DESC) AS place "
                "FROM metrics WHERE run_uuid = ?) WHERE place = 1",
                (run_id,),
            )
    return dropped


def ensure_experiment(client: MlflowClient, root: Path | str, name: str) -> str:
    """Return the id of experiment ``name``, created with its artifacts under ``root`` if there is none.

    Raises:
        TrackingError: the experiment was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        with FileLock(_lock_path(Path(root)), timeout=_LOCK_TIMEOUT_S):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                folder = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"
                return client.create_experiment(name, artifact_location=f"{_artifact_root(Path(root))}/{folder}")
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"Experiment {name!r} of {_uri(Path(root))} was deleted. Use another experiment_name, or restore it: "
            f"`MLFLOW_TRACKING_URI={_uri(Path(root))} mlflow experiments restore -x {experiment.experiment_id}`."
        )
    return experiment.experiment_id


def find_runs(root: Path | str, experiment: str, tags: Mapping[str, str] | None = None) -> list[str]:
    """Return the ids of the runs of ``experiment`` that carry all of ``tags``, the newest first.

    A store or an experiment that does not exist has no runs, and is not created.

    Raises:
        TrackingError: as ``open_store``.
    """
    if not (Path(root).expanduser() / DATABASE).exists():
        return []
    client = connect(root)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    wanted = dict(tags or {}).items()
    run_ids: list[str] = []
    token = None
    while True:
        # filtered here, not in SQL: a filter string has no way to quote every value
        page = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
        run_ids += [run.info.run_id for run in page if wanted <= run.data.tags.items()]
        token = page.token
        if not token:
            return run_ids


def _uri(root: Path) -> str:
    return f"sqlite:///{(root / DATABASE).as_posix()}"


def _lock_path(root: Path) -> Path:
    return root / ".mlflow.lock"


def _artifact_root(root: Path) -> str:
    return (root.resolve() / _ARTIFACTS).as_posix()


def _is_moved(root: Path, state: _State) -> bool:
    location = state.default_location
    # a default experiment elsewhere was made by MLflow itself: not ours to touch
    return location.endswith(f"/{_ARTIFACTS}/0") and location != f"{_artifact_root(root)}/0"


def _create(root: Path) -> None:
    # made beside its place and moved there when complete, so that a crash half-way leaves no half of a database
    for left_by_crash in root.glob(f".{DATABASE}.*"):
        left_by_crash.unlink()
    temporary = root.resolve() / f".{DATABASE}.{os.getpid()}"
    _migrate(temporary, _artifact_root(root))
    os.replace(temporary, root / DATABASE)


def _migrate(database: Path, artifacts: str) -> None:
    _quieten_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{database.as_posix()}", artifacts).engine.dispose()


def _rewrite_locations(database: Path, state: _State, new: str) -> None:
    # MLflow stores absolute locations; without this a moved project would write its artifacts at the old place
    old = state.default_location.removesuffix("/0")
    with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection, connection:
        for table, column in _LOCATIONS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _read_state(database: Path) -> _State | None:
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection:
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            query = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
            location = connection.execute(query).fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"Cannot read {database} as an MLflow database: {error}. If no other process holds it, it is damaged: "
            "move it away (a new one is made), or use another root."
        ) from error
    return _State(revision[0] if revision else "none", (location and location[0]) or "")


def _check_revision(database: Path, revision: str) -> None:
    known, heads = _schema_revisions()
    if revision in heads or not heads:
        return
    if revision in known:
        age = "an older"
        remedy = f"Take a copy of it, then run `mlflow db upgrade sqlite:///{database.as_posix()}`."
    else:
        age = "a newer (or unknown)"
        remedy = "Use the MLflow that wrote it or a newer one (`mlflow db upgrade` cannot go back), or another root."
    raise TrackingError(f"{database} has {age} schema ({revision}) than the installed MLflow ({heads[0]}). {remedy}")


@lru_cache(maxsize=1)
def _schema_revisions() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return all schema revisions that the installed MLflow knows, and the newest; read from its files, because asking
    alembic costs seconds of imports. Empty if they are not where they are expected: MLflow itself checks again."""
    spec = importlib.util.find_spec("mlflow")
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    known: set[str] = set()
    parents: set[str] = set()
    for file in (package / "store" / "db_migrations" / "versions").glob("*.py"):
        for line in re.findall(r"^(?:down_)?revision\b.*$", file.read_text(encoding="utf-8"), re.MULTILINE):
            (parents if line.startswith("down_") else known).update(re.findall(r"[\"'](\w+)[\"']", line))
    return frozenset(known), tuple(sorted(known - parents))


def _quieten_mlflow() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    for name in ("alembic", "mlflow.store.db.utils"):
        # what goes wrong is raised, and told in one line; MLflow also logs it with its traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
