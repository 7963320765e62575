"""The logger: nothing lost, the status true, everything inside the root."""

import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger
from mlflow.exceptions import MlflowException

import lit_metarl
from lit_metarl.tracking import (
    MLflowLogger,
    TrackingError,
    connect,
    environment_tags,
    find_runs,
    list_runs,
    open_store,
    store,
)
from lit_metarl.tracking import logger as logger_module
from lit_metarl.tracking.logger import clean_key
from lit_metarl.tracking.writer import MetricWriter

# the package need not be installed: a process started elsewhere finds the one under test
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(lit_metarl.__file__).parents[1])}


@pytest.fixture
def root() -> str:
    open_store("store")
    return "store"


def status(root: str, run_id: str | None) -> str:
    return connect(root).get_run(run_id).info.status


def history(root: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(root).get_metric_history(run_id, name)]


def trainer(root: str, **kwargs: object) -> lightning.Trainer:
    return lightning.Trainer(
        logger=MLflowLogger(root),
        max_steps=3,
        log_every_n_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


class Logging(BoringModel):
    """Logs its step; raises ``error`` at the last."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.error is not None and batch_idx == 2:
            raise self.error
        self.log("at", float(batch_idx))
        return super().training_step(batch, batch_idx)["loss"]

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.ones(8, 32), num_workers=0)


def test_construction_and_check_create_no_run_and_no_store(tmp_path: Path) -> None:
    MLflowLogger(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    logger = MLflowLogger(str(tmp_path / "b"))
    logger.check()
    logger.finalize("success")
    assert not (tmp_path / "b" / "mlflow.db").exists()


def test_check_refuses_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(TrackingError, match="occupied"):
        MLflowLogger(str(tmp_path / "occupied")).check()


def test_flush_puts_metrics_in_the_database_with_their_steps(root: str) -> None:
    logger = MLflowLogger(root)
    logger.log_metrics({"return": 1.5, "loss": math.nan}, step=3)
    logger.log_metrics({"return": 2.5}, step=4)
    logger.log_metrics({"once": 0.5})
    logger.flush()
    assert history(root, logger.run_id, "return") == [(3, 1.5), (4, 2.5)]
    assert history(root, logger.run_id, "once") == [(0, 0.5)]
    assert math.isnan(history(root, logger.run_id, "loss")[0][1])


def test_metrics_arrive_without_flush(root: str) -> None:
    logger = MLflowLogger(root)
    logger.log_metrics({"m": 1.0}, step=1)
    deadline = time.monotonic() + 30
    while not history(root, logger.run_id, "m"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_many_calls_then_finalize_are_all_stored(root: str) -> None:
    logger = MLflowLogger(root)
    for step in range(200):
        logger.log_metrics({f"m{i}": float(step * i) for i in range(12)}, step=step)
    logger.finalize("success")
    for i in range(12):
        assert history(root, logger.run_id, f"m{i}") == [(step, float(step * i)) for step in range(200)]


def test_log_metrics_does_not_wait_for_the_database(root: str) -> None:
    logger = MLflowLogger(root)
    run_id = logger.run_id
    with closing(sqlite3.connect(f"{root}/mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write: a synchronous write would wait, and fail
        for step in range(200):
            logger.log_metrics({"m": float(step)}, step=step)
        assert not history(root, run_id, "m")
    logger.flush()
    assert history(root, run_id, "m") == [(step, float(step)) for step in range(200)]


def test_points_that_the_database_refused_are_kept(root: str) -> None:
    logger = MLflowLogger(root)
    logger.log_metrics({"m": 1.0}, step=1)
    client = connect(root)
    client.delete_run(logger.run_id)
    with pytest.raises(TrackingError, match="1 metric points"):
        logger.flush()
    client.restore_run(logger.run_id)
    logger.flush()
    assert history(root, logger.run_id, "m") == [(1, 1.0)]


@pytest.mark.parametrize(
    ("key", "clean"),
    [
        ("eval/return mean", "eval/return mean"),
        ("α=0.1", "__0.1"),
        ("a//b/", "a/b"),
        ("/a", "a"),
        ("../a", "__/a"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_are_made_acceptable(root: str, key: str, clean: str) -> None:
    assert clean_key(key) == clean
    logger = MLflowLogger(root)
    logger.log_metrics({key: 1.0})
    logger.log_params({key: 1})
    logger.flush()
    assert connect(root).get_run(logger.run_id).data.metrics == {clean: 1.0}


def test_status_follows_the_run_through_a_resume(root: str) -> None:
    logger = MLflowLogger(root, run_name="named")
    assert status(root, logger.run_id) == "RUNNING"
    assert connect(root).get_run(logger.run_id).info.run_name == "named"
    logger.finalize("success")
    assert status(root, logger.run_id) == "FINISHED"

    resumed = MLflowLogger(root, run_id=logger.run_id)
    assert status(root, logger.run_id) == "FINISHED"  # not touched before use
    resumed.log_metrics({"test/return": 1.0})
    resumed.finalize("failed")
    assert status(root, logger.run_id) == "FINISHED"  # looked at, not gone on with

    resumed.start()
    assert status(root, logger.run_id) == "RUNNING"
    resumed.finalize("failed")
    assert status(root, logger.run_id) == "FAILED"


def test_resume_appends_to_the_metrics(root: str) -> None:
    first = MLflowLogger(root)
    first.log_metrics({"m": 1.0}, step=1)
    first.finalize("success")
    second = MLflowLogger(root, run_id=first.run_id)
    second.log_metrics({"m": 2.0}, step=2)
    second.finalize("success")
    assert history(root, first.run_id, "m") == [(1, 1.0), (2, 2.0)]


def test_unknown_run_is_refused_by_name(root: str) -> None:
    for run_id in ("0" * 32, "no/run"):
        with pytest.raises(TrackingError, match=rf"{run_id} in sqlite:.*store/mlflow\.db.*Drop run_id"):
            _ = MLflowLogger(root, run_id=run_id).experiment


def test_deleted_run_is_refused(root: str) -> None:
    logger = MLflowLogger(root)
    logger.finalize("success") if logger.run_id else None
    connect(root).delete_run(logger.run_id)
    with pytest.raises(TrackingError, match=r"deleted.*restore"):
        _ = MLflowLogger(root, run_id=logger.run_id).experiment


def test_a_parameter_keeps_its_first_value(root: str) -> None:
    first = MLflowLogger(root)
    first.log_params({"lr": 0.1, "seed": 1, "long": "x" * 9000})
    first.finalize("success")
    second = MLflowLogger(root, run_id=first.run_id)
    second.log_params({"lr": 0.2, "seed": 1, "long": "x" * 9000, "new": 5})
    assert connect(root).get_run(first.run_id).data.params == {"lr": "0.1", "seed": "1", "long": "x" * 6000, "new": "5"}


def test_points_beyond_a_checkpoint_are_dropped_and_those_of_tests_kept(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = MLflowLogger(root)
    first.log_metrics({"a": 1.0, "b": 1.0}, step=1)
    counted = first.logged_until
    first.log_metrics({"a": 2.0, "c": math.nan, "test/return": 5.0}, step=1)  # later, whatever its step
    first.log_metrics({"a": 3.0}, step=3)
    first.flush()
    other = MLflowLogger(root)
    other.log_metrics({"a": 9.0}, step=9)
    other.flush()

    second = MLflowLogger(root, run_id=first.run_id)
    second.start(counted)
    said = [message for message in caplog.messages if "dropped" in message]
    assert said == ["3 points of the steps after the checkpoint are dropped, to be logged anew"]
    assert history(root, first.run_id, "a") == [(1, 1.0)]
    assert connect(root).get_run(first.run_id).data.metrics == {"a": 1.0, "b": 1.0, "test/return": 5.0}
    assert history(root, other.run_id, "a") == [(9, 9.0)]
    second.log_metrics({"a": 4.0}, step=2)
    second.flush()
    assert history(root, first.run_id, "a") == [(1, 1.0), (2, 4.0)]
    caplog.clear()
    MLflowLogger(root, run_id=first.run_id).start(second.logged_until)
    assert not [message for message in caplog.messages if "dropped" in message]


def test_no_two_calls_have_one_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time of a checkpoint's last point tells those before it from those after it."""
    logger = MLflowLogger(root)
    logger.flush()  # there is nothing yet
    _ = logger.experiment
    monkeypatch.setattr(logger_module, "time", SimpleNamespace(time=lambda: 5.0))
    times = []
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step=step)
        times.append(logger.logged_until)
    assert times == [5000, 5001, 5002]


def test_a_database_that_fails_is_warned_of_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    works, written = iter([False, False, True, False]), []

    def log_batch(run_id: str, metrics: list[object]) -> None:
        if not next(works):
            raise MlflowException("no space")
        written.extend(metrics)

    writer = MetricWriter(SimpleNamespace(log_batch=log_batch, tracking_uri="sqlite"), "run", period=1e9)
    warnings = []
    for step in range(4):
        writer._points.append(("a", 1.0, step, step))
        writer._write_in_background()
        warnings.append(caplog.text.count("Trying again later"))
    assert warnings == [1, 1, 1, 2]
    assert [point.step for point in written] == [0, 1, 2]


def test_every_point_is_at_environment_steps(root: str) -> None:
    logger = MLflowLogger(root)
    logger.count_steps(lambda: 7000)
    logger.log_metrics({"lr-Adam": 1e-3}, step=3)  # as Lightning's callbacks do: at training steps
    logger.flush()
    assert history(root, logger.run_id, "lr-Adam") == [(7000, 1e-3)]


def test_a_new_run_has_a_unique_name_a_source_and_a_user(root: str) -> None:
    first, second, named = MLflowLogger(root), MLflowLogger(root), MLflowLogger(root, run_name="mine")
    for logger in (first, second, named):
        _ = logger.run_id
        logger.name_run("SAC-walker-seed0")
    runs = [connect(root).get_run(logger.run_id) for logger in (first, second, named)]
    assert [run.info.run_name for run in runs[:2]] == [f"SAC-walker-seed0-{run.info.run_id[:6]}" for run in runs[:2]]
    assert runs[2].info.run_name == "mine"
    assert runs[0].data.tags["mlflow.source.name"]
    assert runs[0].data.tags["mlflow.user"]


def test_a_new_run_gets_the_tags_and_files_of_its_config(root: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("title: Two arms.")
    logger = MLflowLogger(root, "tagged", tags={"arm": "maml"}, artifacts=[str(tmp_path / "recipe.yaml")])
    logger.log_metrics({"eval/return": 1.0}, step=3)
    logger.log_metrics({"eval/return": 2.0, "train/loss": 0.1}, step=4)
    logger.finalize("success")
    client = connect(root)
    assert client.get_run(logger.run_id).data.tags.items() >= {"arm": "maml"}.items()
    assert Path(client.download_artifacts(logger.run_id, "recipe.yaml")).read_text() == "title: Two arms."
    plain = MLflowLogger(root, "tagged")
    assert plain.run_id != logger.run_id

    (run,) = list_runs(root, "tagged", "arm")
    info = client.get_run(logger.run_id).info
    assert run[:2] == (logger.run_id, "FINISHED")
    assert run.tags["arm"] == "maml"
    assert (run.started_ms, run.ended_ms, run.evaluations) == (info.start_time, info.end_time, 2)
    assert [each.run_id for each in list_runs(root, "tagged", "mlflow.user")] == [plain.run_id, logger.run_id]
    assert not list_runs(root, "untagged", "arm")
    assert not list_runs(tmp_path / "nowhere", "tagged", "arm")
    assert not (tmp_path / "nowhere").exists()
    client.delete_run(logger.run_id)
    assert not list_runs(root, "tagged", "arm")


@pytest.mark.parametrize(("ended", "expected"), [("success", "FINISHED"), ("killed", "KILLED"), ("failed", "FAILED")])
def test_status_says_how_a_run_ended(root: str, ended: str, expected: str) -> None:
    logger = MLflowLogger(root)
    _ = logger.run_id
    logger.finalize(ended)
    assert status(root, logger.run_id) == expected
    logger.finalize("failed")  # what Lightning says of every exception afterwards
    assert status(root, logger.run_id) == expected


def test_another_process_can_mark_the_run_failed(root: str) -> None:
    logger = MLflowLogger(root)
    logger.mark_failed()  # there is no run yet
    assert not find_runs(root, "lit_metarl")
    logger.start()
    assert status(root, logger.run_id) == "RUNNING"
    logger.mark_failed()
    assert status(root, logger.run_id) == "FAILED"


def test_a_database_that_stays_locked_is_given_up_in_the_end(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db import utils

    text = utils.sql.text
    monkeypatch.setattr(
        utils.sql, "text", lambda query: text(query.replace("busy_timeout = 20000", "busy_timeout = 100"))
    )
    monkeypatch.setattr(store, "LOCK_PATIENCE_S", 0.05)
    logger = MLflowLogger(root)
    _ = logger.run_id
    connection = sqlite3.connect(Path(root) / "mlflow.db")
    connection.execute("BEGIN IMMEDIATE")
    logger.log_metrics({"m": 1.0}, step=1)
    with pytest.raises(TrackingError, match="database is locked"):
        logger.flush()
    connection.rollback()
    connection.close()
    logger.flush()
    assert history(root, logger.run_id, "m") == [(1, 1.0)]


def test_a_locked_database_is_waited_for(
    root: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.db import utils

    text = utils.sql.text  # MLflow itself gives up after 20 s: here after half a second
    monkeypatch.setattr(
        utils.sql, "text", lambda query: text(query.replace("busy_timeout = 20000", "busy_timeout = 500"))
    )
    logger = MLflowLogger(root)
    _ = logger.run_id
    connection = sqlite3.connect(Path(root) / "mlflow.db", check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    threading.Timer(2.0, connection.rollback).start()
    logger.log_metrics({"m": 1.0}, step=1)
    logger.flush()
    assert history(root, logger.run_id, "m") == [(1, 1.0)]
    assert "is locked by another process; waiting" in caplog.text
    assert "Traceback" not in caplog.text


def test_more_entries_than_one_write_takes(root: str) -> None:
    logger = MLflowLogger(root)
    logger.log_params({f"p{i}": i for i in range(250)})
    logger.set_tags({f"t{i}": i for i in range(250)})
    data = connect(root).get_run(logger.run_id).data
    assert data.params == {f"p{i}": str(i) for i in range(250)}
    assert {key: value for key, value in data.tags.items() if key[0] == "t"} == {f"t{i}": str(i) for i in range(250)}


def test_fit_writes_only_inside_the_root(root: str, tmp_path: Path) -> None:
    fit = trainer(root)
    fit.fit(Logging())
    logger = fit.logger
    logger.log_text("a: 1\n", "config.yaml")
    (Path(root) / "kept.txt").write_text("kept")
    logger.log_artifact(Path(root) / "kept.txt", "files")

    assert status(root, logger.run_id) == "FINISHED"
    assert history(root, logger.run_id, "at") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == [root]
    assert {path.name for path in Path(root).iterdir()} <= {
        "mlflow.db",
        ".mlflow.lock",
        "artifacts",
        "runs",
        "kept.txt",
    }
    artifacts = Path(root) / "artifacts" / "lit_metarl" / logger.run_id / "artifacts"
    assert (artifacts / "config.yaml").read_text() == "a: 1\n"
    assert (artifacts / "files" / "kept.txt").read_text() == "kept"
    assert list((logger.run_dir / "checkpoints").glob("*.ckpt"))
    assert logger.run_dir == Path(root) / "runs" / logger.run_id


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyboardInterrupt()])
def test_failure_marks_the_run_and_keeps_its_metrics(root: str, error: BaseException) -> None:
    fit = trainer(root, enable_checkpointing=False)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((ValueError, SystemExit)):
            fit.fit(Logging(error))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from the first interrupt on
    assert status(root, fit.logger.run_id) == "FAILED"
    assert history(root, fit.logger.run_id, "at") == [(0, 0.0), (1, 1.0)]


def test_checkpoint_flushes(root: str) -> None:
    logger = MLflowLogger(root)
    logger.log_metrics({"m": 1.0}, step=7)
    logger.after_save_checkpoint(None)
    assert history(root, logger.run_id, "m") == [(7, 1.0)]


@pytest.mark.parametrize(("last_line", "expected"), [("", "FAILED"), ("logger.finalize('success')", "FINISHED")])
def test_process_that_ends_loses_nothing(root: str, last_line: str, expected: str) -> None:
    code = f"""
from lit_metarl.tracking import MLflowLogger
logger = MLflowLogger({root!r})
logger.log_metrics({{"m": 1.0}}, step=1)
{last_line}
logger.log_metrics({{"m": 2.0}}, step=2)
print(logger.run_id)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True)
    assert process.stderr == ""  # neither MLflow nor alembic chatters
    run_id = process.stdout.strip()
    assert status(root, run_id) == expected
    assert history(root, run_id, "m") == [(1, 1.0), (2, 2.0)]


FIT_UNTIL_KILLED = """
import pathlib, time
import lightning, torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lit_metarl.tracking import MLflowLogger
class Endless(BoringModel):
    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        self.log("at", float(batch_idx))
        if batch_idx == 2:
            pathlib.Path("run_id").write_text(self.logger.run_id)
        return super().training_step(batch, batch_idx)["loss"]
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(100000, 32))
lightning.Trainer(
    logger=MLflowLogger("store"), max_epochs=1, log_every_n_steps=1, limit_val_batches=0, accelerator="cpu",
    enable_checkpointing=False,
).fit(Endless())
"""


def test_sigterm_marks_the_run_and_keeps_its_metrics(root: str) -> None:
    command = [sys.executable, "-c", FIT_UNTIL_KILLED]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (Path("run_id").exists() and Path("run_id").read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run_id = Path("run_id").read_text()
    assert status(root, run_id) == "RUNNING"
    process.terminate()
    process.wait(timeout=60)
    assert status(root, run_id) == "FAILED"
    assert history(root, run_id, "at")[:3] == [(0, 0.0), (1, 1.0), (2, 2.0)]


RANK_OF_TWO = """
import sys, torch.distributed as dist
from lit_metarl.tracking import MLflowLogger, TrackingError
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
def broadcast(value):
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
logger = MLflowLogger("store")
if rank:
    try:
        logger.run_dir
        raise SystemExit("rank 1 named a folder of its own")
    except TrackingError:
        pass
logger.share_run_id(broadcast)
logger.log_metrics({"m": float(rank)}, step=rank)
logger.set_tags({"rank": rank})
logger.finalize("success")
assert rank == 0 or "mlflow" not in sys.modules
print(logger.run_dir)
dist.destroy_process_group()
"""


def test_two_ranks_share_one_run_that_rank_zero_writes(root: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_OF_TWO, str(rank), str(meeting)],
            env=ENVIRONMENT | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    run_id = Path(outputs[0][0].strip()).name
    assert history(root, run_id, "m") == [(0, 0.0)]
    assert connect(root).get_run(run_id).data.tags["rank"] == "0"


def test_yaml_builds_the_logger_and_unknown_keys_are_refused() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Logger, "logger")
    config = {"class_path": "lit_metarl.tracking.MLflowLogger", "init_args": {"root": "there", "run_name": "n"}}
    built = parser.instantiate(parser.parse_object({"logger": config})).logger
    assert isinstance(built, MLflowLogger)
    assert built.save_dir == "there"
    config["init_args"]["rot"] = "typo"
    with pytest.raises(jsonargparse.ArgumentError, match="rot"):
        parser.parse_object({"logger": config})


def test_environment_tags_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    tags = environment_tags()
    packages = ["lit_metarl", "torch", "lightning", "mujoco", "gymnasium", "dm_control", "mlflow"]
    assert tags["git_commit"] == "unknown"
    assert tags["version/torch"] == torch.__version__
    assert list(tags) == ["git_commit", "version/python", *(f"version/{name}" for name in packages)]
    monkeypatch.setenv("PATH", str(tmp_path))  # git itself is absent
    assert environment_tags()["git_commit"] == "unknown"


def test_environment_tags_name_the_commit_and_whether_it_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", *identity, *args], check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert environment_tags()["git_commit"] == commit
    (tmp_path / "file").write_text("2")
    assert environment_tags()["git_commit"] == f"{commit}-dirty"


def test_a_full_disk_is_said_once_and_in_the_databases_words(root: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = MLflowLogger(root)
    run_id, limits = logger.run_id, resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (Path(root) / "mlflow.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # Python ignores SIGXFSZ: writing fails
    try:
        for step in range(3000):
            logger.log_metrics({"a_long_name_of_a_metric_that_takes_space": 1.0}, step=step)
        said = r"cannot be written to sqlite:.*mlflow.db: (database or disk is full|disk I/O error). Check the space"
        with pytest.raises(TrackingError, match=said) as caught:
            logger.flush()
        logger.finalize("killed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert len([line for line in caplog.messages if "cannot be written" in line]) <= 1  # before, in the background
    logger.finalize("failed")  # as the end of the process does
    assert len(history(root, run_id, "a_long_name_of_a_metric_that_takes_space")) == 3000
    assert status(root, run_id) == "KILLED"
