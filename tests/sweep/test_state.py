"""What has become of a cell, from a store with known runs; and the lock that a process inherits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from sweep_cases import cells_of, resolver

from lit_metarl.checkpoint import LOCK, sign_lock
from lit_metarl.sweep.cells import Cell
from lit_metarl.sweep.command import _plan, main
from lit_metarl.sweep.state import CellLock, CellState, State, evaluations_of, look, look_within_lock, with_record
from lit_metarl.sweep.training import Outcome, begin, last_error
from lit_metarl.tracking import MLflowLogger, connect
from lit_metarl.types import ConfigError


def add_run(cell: Cell, ended: str | None, checkpoint: bool = False, evaluations: int = 0) -> str:
    """A run of ``cell`` in the store; None leaves it RUNNING, as SIGKILL does."""
    given = cell.config["trainer"]["logger"]["init_args"]
    logger = MLflowLogger(cell.root, given["experiment_name"], tags=given["tags"])
    assert logger.run_id is not None
    for step in range(evaluations):
        logger.log_metrics({"eval/return": 0.0}, step=step)
    logger.flush()
    if checkpoint:
        (logger.run_dir / "last.ckpt").write_bytes(b"")
    if ended is not None:
        logger.finalize(ended)
    return logger.run_id


@pytest.fixture
def cell() -> Cell:
    (only,) = cells_of()
    return only


def state_of(cell: Cell) -> CellState:
    found = look([cell])[cell.key]
    assert found == look_within_lock(cell)
    return found


def test_a_cell_without_a_run_is_absent_and_looking_makes_nothing(cell: Cell) -> None:
    assert state_of(cell) == CellState(State.ABSENT)
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    ("ended", "checkpoint", "state"),
    [
        (None, False, State.ABSENT),
        (None, True, State.INTERRUPTED),
        ("killed", False, State.ABSENT),
        ("killed", True, State.INTERRUPTED),
        ("failed", False, State.FAILED),
        ("failed", True, State.FAILED),
        ("success", True, State.FINISHED),
    ],
)
def test_states_follow_the_status_and_the_checkpoint(
    cell: Cell, ended: str | None, checkpoint: bool, state: State
) -> None:
    other = cell._replace(key="0123456789abcdef")
    run_id = add_run(cell, ended, checkpoint, evaluations=2)
    found = state_of(cell)
    assert found.state is state
    assert look([other])[other.key].state is State.ABSENT
    if state is not State.ABSENT:
        assert found.run_id == run_id
        assert found.evaluations == 2
        assert found.resumable == (checkpoint and state is not State.FINISHED)
    assert (found.seconds is not None) == (state is State.FINISHED)
    assert evaluations_of([cell, other]) == {cell.key: 2}


def test_of_several_runs_the_finished_one_counts_then_the_newest(cell: Cell) -> None:
    stopped = add_run(cell, "killed", checkpoint=True)
    time.sleep(0.01)
    add_run(cell, None)  # begun again, and killed before its first checkpoint
    assert state_of(cell)[:3] == (State.INTERRUPTED, stopped, True)
    time.sleep(0.01)
    failed = add_run(cell, "failed")
    assert state_of(cell)[:3] == (State.FAILED, failed, False)
    assert begin(cell) == Outcome(state_of(cell))
    done = add_run(cell, "success")
    assert state_of(cell)[:2] == (State.FINISHED, done)
    connect("mlruns").delete_run(done)
    assert state_of(cell).state is State.FAILED


def test_a_run_that_is_trained_by_hand_is_left_alone(cell: Cell) -> None:
    run_id = add_run(cell, "killed", checkpoint=True)
    folder = cell.root / "runs" / run_id
    with FileLock(folder / LOCK):
        sign_lock(folder)
        found = state_of(cell)
        assert found.state is State.RUNNING
        assert found.note == f"process {os.getpid()} on {os.uname().nodename}"
        assert begin(cell) == Outcome(found, found.note)
    assert state_of(cell).state is State.INTERRUPTED


def test_a_process_inherits_the_lock_of_its_cell(cell: Cell) -> None:
    first, second = CellLock(cell.file("lock")), CellLock(cell.file("lock"))
    assert first.take()
    assert not second.take()
    assert look([cell])[cell.key] == CellState(State.RUNNING, note="another sweep")
    assert begin(cell) == Outcome(CellState(State.RUNNING), "another sweep")
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=first.descriptors, text=True
    )
    first.let_go()  # as if the sweep was killed
    assert not second.take()
    process.communicate("\n")
    assert second.take()
    second.let_go()
    assert look([cell])[cell.key].state is State.ABSENT


def test_the_plan_says_what_is_left_and_what_it_costs() -> None:
    cells = cells_of(seeds=4)
    cells[3].file("log").parent.mkdir(parents=True)
    cells[3].file("log").write_text("lit-metarl: error: no space left\n")
    states = {cell.key: CellState(State.ABSENT) for cell in cells}
    assert _plan(cells, states, 2).splitlines()[-1] == (
        "4 cells: 4 absent; time left with 2 workers: unknown (no cell has finished yet)"
    )
    states[cells[0].key] = CellState(State.FINISHED, "1" * 32, seconds=3600.0)
    states[cells[1].key] = CellState(State.INTERRUPTED, "2" * 32, True, evaluations=3)  # half of six
    states[cells[2].key] = CellState(State.RUNNING, "3" * 32, note="another sweep")
    lines = _plan(cells, states | {cells[3].key: CellState(State.FAILED, "4" * 32)}, 1).splitlines()
    assert lines[3] == f"sac seed 3  failed       {cells[3].key}  {'4' * 32}  no space left"
    lines = _plan(cells, states, 1).splitlines()
    assert lines[0] == f"sac seed 0  finished     {cells[0].key}  {'1' * 32}  in 60 min"
    assert lines[2].endswith(f"{'3' * 32}  by another sweep")
    assert lines[3] == f"sac seed 3  absent       {cells[3].key}  -"
    assert lines[-1] == "4 cells: 1 absent, 1 finished, 1 interrupted, 1 running; time left with 1 worker: 1 h 30 min"


def test_a_recorded_cell_without_a_run_has_finished(cell: Cell) -> None:
    (other,) = cells_of(seeds=[1])
    record = Path("swing.csv")
    assert with_record([cell], look([cell]), record) == {cell.key: CellState(State.ABSENT)}
    record.write_text(f"arm,key,seed\nsac,{cell.key},0\nsac,{cell.key},0\n")
    states = with_record([cell, other], look([cell, other]), record)
    assert states[cell.key] == CellState(State.FINISHED, note="recorded in swing.csv")
    assert states[other.key] == CellState(State.ABSENT)
    assert "  recorded in swing.csv\n" in _plan([cell, other], states, 1)
    record.write_text(f"arm,key,metric\nsac,{cell.key},diverged\n")
    assert with_record([cell], look([cell]), record)[cell.key].note == "diverged, recorded in swing.csv"
    add_run(cell, "killed", checkpoint=True)
    assert with_record([cell], look([cell]), record)[cell.key].state is State.INTERRUPTED
    record.write_text("arm,seed\nsac,0\n")
    with pytest.raises(ConfigError, match=r"swing.csv cannot be read as a record \(KeyError\('key'\)\): restore it"):
        with_record([cell], look([cell]), record)


def test_a_sweep_leaves_alone_what_is_recorded(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    Path("swing.csv").write_text(f"key\n{cell.key}\n")
    assert main(["swing.yaml"], resolver) == 0
    assert capsys.readouterr().out == "swing: SAC on a pendulum.\nswing: 1 finished\n"
    assert main(["swing.yaml", "--dry_run", "--again"], resolver) == 0
    assert "1 cells: 1 absent" in capsys.readouterr().out


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) == ""
    log.write_text("# started\n")
    assert last_error(log) == ""
    log.write_text("# started\nSeed set to 0\n\n")
    assert last_error(log) == "Seed set to 0"
    trace = 'Traceback (most recent call last):\n  File "a.py"\n    f()\nValueError: what\nlast.ckpt is of step 3\n'
    log.write_text(f"# started\n{trace}")
    assert last_error(log) == "ValueError: what"
    log.write_text("lit-metarl: error: model = X names no class.\nlit-metarl COMMAND --help says more\n")
    assert last_error(log) == "model = X names no class."
    log.write_text(f"# started\n{trace}# again\nlit-metarl: error: the disk is full\n")
    assert last_error(log) == "the disk is full"
