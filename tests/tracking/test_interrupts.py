"""A Ctrl-C within a write: the write ends first, whatever comes after it finds no lock of its own process."""

import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lit_metarl.tracking import MLflowLogger, connect, list_runs
from lit_metarl.tracking.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    """A shell ignores SIGINT for its background jobs, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_at(place: int, call: Callable[[], object]) -> int:
    """Make ``call``, with a Ctrl-C at its ``place``-th call of a Python function; returns how many calls there were."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"
        if event == "call" and calls == place:
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


def test_a_write_that_is_interrupted_anywhere_is_made(tmp_path: Path) -> None:
    logger = MLflowLogger(str(tmp_path))
    client = logger.experiment
    interrupted_at(0, lambda: client.set_tag(logger.run_id, "place", "0"))  # the first call also imports
    calls = interrupted_at(0, lambda: client.set_tag(logger.run_id, "place", "0"))
    assert calls > 1000
    for place in range(40, calls - 40, calls // 25):  # the first and the last calls are around the write, not of it
        tag = str(place)
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(place, lambda tag=tag: client.set_tag(logger.run_id, "place", tag))  # type: ignore[misc]
        with sqlite3.connect(tmp_path / "mlflow.db", timeout=0) as connection:
            connection.execute("BEGIN IMMEDIATE")
        assert connect(tmp_path).get_run(logger.run_id).data.tags["place"] == tag


def test_a_run_whose_creation_is_interrupted_is_known_and_ends(tmp_path: Path) -> None:
    _ = MLflowLogger(str(tmp_path), tags={"of": "another"}).experiment  # the first call also imports
    calls = interrupted_at(0, lambda: MLflowLogger(str(tmp_path), tags={"of": "test"}).experiment)
    for place in range(calls // 2, calls - 5, calls // 10):
        logger = MLflowLogger(str(tmp_path), tags={"of": "test"})
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(place, lambda logger=logger: logger.experiment)  # type: ignore[misc]
        logger.finalize("killed")
        run_id = logger.run_id
        assert [run.status for run in list_runs(tmp_path, "lit_metarl", "of") if run.run_id == run_id] == ["KILLED"]
    unknown = [run for run in list_runs(tmp_path, "lit_metarl", "of") if run.status == "RUNNING"]
    assert len(unknown) == 2  # those of the calls that were not interrupted


def test_the_end_of_a_run_that_is_interrupted_is_written(tmp_path: Path) -> None:
    """At any place: a second Ctrl-C often comes while the first one's status is being written."""
    calls = 200
    for place in range(30, calls, 40):
        logger = MLflowLogger(str(tmp_path), tags={"of": "test"})
        logger.start()
        logger.log_metrics({"m": 1.0}, step=1)
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(place, lambda logger=logger: logger.finalize("killed"))  # type: ignore[misc]
        (run,) = [run for run in list_runs(tmp_path, "lit_metarl", "of") if run.run_id == logger.run_id]
        assert run.status == "KILLED"
        assert [point.value for point in connect(tmp_path).get_metric_history(logger.run_id, "m")] == [1.0]


def test_every_ctrl_c_that_was_held_back_reaches_the_handler() -> None:
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    with uninterrupted() as let_through:
        signal.raise_signal(signal.SIGINT)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert received == []
        let_through()
        assert received == [signal.SIGINT] * 2
        signal.raise_signal(signal.SIGINT)
        assert len(received) == 2
    assert len(received) == 3


def test_ctrl_c_that_is_ignored_stays_so_and_other_threads_hold_nothing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def hold() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
