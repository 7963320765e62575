"""The store: created once by any number of processes, never left half made, never outside its root."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

import lit_metarl
from lit_metarl.tracking import TrackingError, check_store, connect, find_runs, has_run, open_store, store
from lit_metarl.tracking.store import ensure_experiment, reason_of

WRITE_A_RUN = """
import sys, time
from mlflow.entities import Metric
from lit_metarl.tracking.store import connect, ensure_experiment
rank = int(sys.argv[1])
client = connect("runs_of_all")
run_id = client.create_run(ensure_experiment(client, "runs_of_all", "together"), tags={"rank": str(rank)}).info.run_id
client.log_batch(run_id, metrics=[Metric("m", rank + step, 1, step) for step in range(20)])
"""


# the package need not be installed: a process started elsewhere finds the one under test
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(lit_metarl.__file__).parents[1])}


def start(code: str, *args: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_store(tmp_path / "store")
    return tmp_path / "store"


def set_revision(root: Path, revision: str) -> None:
    connection = sqlite3.connect(root / "mlflow.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_four_processes_on_a_fresh_root_all_get_their_run(tmp_path: Path) -> None:
    processes = [start(WRITE_A_RUN, str(rank), cwd=tmp_path) for rank in range(4)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(errors)

    root = tmp_path / "runs_of_all"
    client = connect(root)
    assert len(client.search_experiments()) == 2  # the default one and ours, created once
    for rank in range(4):
        (run_id,) = find_runs(root, "together", {"rank": str(rank)})
        history = client.get_metric_history(run_id, "m")
        assert [(point.step, point.value) for point in history] == [(step, rank + step) for step in range(20)]


def test_a_crash_while_the_store_is_made_leaves_no_broken_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    process = start(
        "import sys; from lit_metarl.tracking import open_store; open_store(sys.argv[1])", "store", cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in root.glob(".mlflow.db.*")):
        assert process.poll() is None, "the store was complete before the test could interrupt"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (root / "mlflow.db").exists()
    assert list(root.glob(".mlflow.db.*")), "killed too late to test anything"

    open_store(root)
    assert check_store(root) is not None
    assert not list(root.glob(".mlflow.db.*"))
    assert connect(root).search_experiments()


def test_uri_is_relative_if_the_root_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert open_store("store") == "sqlite:///store/mlflow.db"
    assert open_store(root) == f"sqlite:///{root}/mlflow.db"


def test_opening_an_existing_store_needs_neither_mlflow_nor_the_lock(root: Path) -> None:
    code = "import sys, lit_metarl.tracking as t; t.open_store('store'); assert 'mlflow' not in sys.modules"
    with FileLock(root / ".mlflow.lock"):  # waited for, it would be an error after a minute
        process = start(code, cwd=root.parent)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("place", ["occupied", "occupied/below"])
def test_root_that_is_a_file_is_refused_by_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(TrackingError, match=rf"{place}.*(writable folder|another root)"):
        check_store(tmp_path / place)
    assert (tmp_path / "occupied").is_file()


def test_root_that_a_uri_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="another root"):
        open_store(tmp_path / "100%")
    assert not list(tmp_path.iterdir())


def test_older_schema_names_the_upgrade(root: Path) -> None:
    set_revision(root, "0c779009ac13")  # of 2022
    with pytest.raises(TrackingError, match=r"older schema.*mlflow db upgrade sqlite:///"):
        open_store(root)


def test_newer_schema_is_refused(root: Path) -> None:
    set_revision(root, "ffffffffffff")
    with pytest.raises(TrackingError, match=r"newer .*schema \(ffffffffffff\).*newer one"):
        open_store(root)


def test_known_schema_is_the_one_that_mlflow_writes(root: Path) -> None:
    from lit_metarl.tracking.store import _schema_revisions

    state = check_store(root)
    assert state is not None
    assert _schema_revisions()[1] == (state.revision,)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, but of some length" * 10)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*move it away"):
        open_store(tmp_path)


def test_store_that_was_moved_writes_artifacts_at_its_new_place(root: Path, tmp_path: Path) -> None:
    client = connect(root)
    run_id = client.create_run(ensure_experiment(client, root, "e")).info.run_id
    client.log_text(run_id, "before", "note.txt")
    model_id = client.create_logged_model(client.get_run(run_id).info.experiment_id, "m").model_id
    moved = root.rename(tmp_path / "elsewhere")

    client = connect(moved)
    assert client.get_run(run_id).info.artifact_uri == f"{moved}/artifacts/e/{run_id}/artifacts"
    assert client.get_experiment_by_name("e").artifact_location == f"{moved}/artifacts/e"
    assert client.get_logged_model(model_id).artifact_location.startswith(f"{moved}/artifacts/e/models/")
    assert [item.path for item in client.list_artifacts(run_id)] == ["note.txt"]
    assert not root.exists()


def test_deleted_experiment_is_refused(root: Path) -> None:
    client = connect(root)
    client.delete_experiment(ensure_experiment(client, root, "gone"))
    with pytest.raises(TrackingError, match=r"'gone'.*deleted.*restore"):
        ensure_experiment(client, root, "gone")


def test_find_runs_by_tags_newest_first(root: Path) -> None:
    client = connect(root)
    experiment = ensure_experiment(client, root, "e")
    tags = [{"seed": "0", "env": 'it\'s "a"'}, {"seed": "1"}, {"seed": "0", "env": "b"}]
    ids = [client.create_run(experiment, start_time=at, tags=tag).info.run_id for at, tag in enumerate(tags, 1)]
    assert find_runs(root, "e") == ids[::-1]
    assert find_runs(root, "e", {"seed": "0"}) == [ids[2], ids[0]]
    assert find_runs(root, "e", {"seed": "0", "env": 'it\'s "a"'}) == [ids[0]]
    assert find_runs(root, "unheard of") == []


def test_a_store_has_the_runs_that_are_not_deleted(root: Path, tmp_path: Path) -> None:
    client = connect(root)
    kept, deleted = (client.create_run("0").info.run_id for _ in range(2))
    client.delete_run(deleted)
    assert has_run(root, kept) is True
    assert has_run(root, deleted) is False
    assert has_run(root, "f" * 32) is False
    assert has_run(tmp_path / "none", kept) is False
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(sqlite3.OperationalError) database is locked\n[SQL: INSERT]\nmore", "database is locked"),
        ("Invalid value.\n[SQL: INSERT]", "Invalid value"),
        ("nothing further", "nothing further"),
    ],
)
def test_the_reason_is_one_line_without_the_statement(text: str, reason: str) -> None:
    assert reason_of(RuntimeError(text)) == reason


def test_find_runs_reads_all_pages(root: Path) -> None:
    client = connect(root)
    run_id = client.create_run(ensure_experiment(client, root, "e"), start_time=1).info.run_id
    with closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
        others = ", ".join(name for name in columns if name != "run_uuid")
        copy = f"INSERT INTO runs (run_uuid, {others}) SELECT ?, {others} FROM runs WHERE run_uuid = ?"
        connection.executemany(copy, [(f"{number:032x}", run_id) for number in range(1000)])  # a page is 1000
    found = find_runs(root, "e")
    assert len(found) == 1001
    assert set(found) == {run_id} | {f"{number:032x}" for number in range(1000)}


@pytest.mark.parametrize(
    ("name", "folder"), [("a b/c", "a_b_c"), ("..", "_"), (".hidden", "hidden"), ("swing-2.1_x", "swing-2.1_x")]
)
def test_artifacts_of_an_experiment_lie_in_one_folder_below_the_root(root: Path, name: str, folder: str) -> None:
    client = connect(root)
    experiment = client.get_experiment(ensure_experiment(client, root, name))
    assert experiment.artifact_location == f"{root}/artifacts/{folder}"


def test_a_store_that_another_process_holds_is_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_TIMEOUT_S", 0.1)
    with FileLock(tmp_path / ".mlflow.lock"), pytest.raises(TrackingError, match=r"held .*mlflow\.lock for 0 s"):
        open_store(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_an_empty_file_is_a_store_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert check_store(tmp_path) is None


def test_find_runs_does_not_create_a_store(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "none", "e") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "code",
    [
        "import lit_metarl.tracking",
        "from lit_metarl.tracking import MLflowLogger, environment_tags; MLflowLogger().check(); environment_tags()",
    ],
)
def test_mlflow_is_imported_only_when_used(tmp_path: Path, code: str) -> None:
    process = start(f"{code}\nimport sys; assert 'mlflow' not in sys.modules", cwd=tmp_path)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0
