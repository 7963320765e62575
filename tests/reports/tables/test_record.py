"""The record of a recipe: from the store to the file and back, what replaces what, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric
from report_cases import WALKER, add_run

from lit_metarl.reports.section import ReportError
from lit_metarl.reports.tables.curves import BEFORE, RETURN, Run, read_runs
from lit_metarl.reports.tables.record import (
    COLUMNS,
    Evaluation,
    is_return,
    merge,
    metrics_of,
    read_record,
    read_store,
    record_of,
    record_text,
    runs_of,
)
from lit_metarl.tracking import connect

OOD = "eval/out_of_distribution/return"
META = {  # slopes: of K = 2 adaptation steps, and of what is not recorded
    "eval/return_after_1_steps": 2.0,
    "eval/return_after_2_steps": 3.0,
    OOD: 1.0,
    "eval/out_of_distribution/return_after_0_steps": 0.5,
    "eval/out_of_distribution/return_after_1_steps": 1.0,
    "eval/return_std": 9.0,
    "eval/return_random": 9.0,
    "train/kl": 9.0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("record") / "store"
    add_run(root, "swing", 0, 7.0, arm="meta", before=1.0, more=META, width=32)  # trained again below
    for seed in (0, 10):
        add_run(root, "swing", seed, 3.0, arm="meta", before=1.0, more=META)
    add_run(root, "swing", 0, 1 / 3, arm="plain", environment=WALKER)
    add_run(root, "swing", 1, 1.0, arm="plain", environment=WALKER, status="failed")
    add_run(root, "swing", 5, 1.0)  # by hand, in the same experiment
    return root


def same(one: Run, other: Run) -> bool:
    numbers = [
        (one.steps, other.steps),
        (one.returns, other.returns),
        (one.times - one.start, other.times - other.start),
    ]
    names = ("algorithm", "environment", "seed", "commit", "config", "status", "arm", "run_id", "key")
    return all(np.allclose(a, b, rtol=1e-5, atol=300) for a, b in numbers) and all(
        getattr(one, name) == getattr(other, name) for name in names
    )  # a hundredth of a minute is 600 ms


def test_runs_come_back_from_the_file_as_from_the_store(root: Path) -> None:
    path = record_of("deep/swing.yaml")
    path.parent.mkdir()
    path.write_text(record_text(merge([], read_store(root, "swing"))[0]))
    assert path == Path("deep/swing.csv")
    rows = read_record(path)
    assert path.read_text().splitlines()[0] == (
        "arm,seed,metric,step,value,minutes,run,key,commit,config,algorithm,environment"
    )
    assert metrics_of(rows) == [
        "eval/return",
        OOD,
        "eval/out_of_distribution/return_after_0_steps",
        BEFORE,
        "eval/return_after_1_steps",
    ]
    stored = {run.run_id: run for run in read_runs(root, ["swing"])[0]}
    runs = runs_of(rows)
    assert [(run.experiment, run.seed) for run in runs] == [("meta", "0"), ("meta", "10"), ("plain", "0")]
    assert all(same(run, stored[run.run_id]) for run in runs)
    assert runs[0].key == "meta-0-64"  # the newest
    assert runs[2].returns[0] == 1.66667
    assert runs[2].before is None
    for run in runs[:2]:
        assert run.before is not None
        np.testing.assert_allclose(run.before, run.steps / 1000)
    for metric in ("eval/return_after_2_steps", "eval/out_of_distribution/return_after_1_steps"):
        stored = {run.run_id: run for run in read_runs(root, ["swing"], metric=metric)[0]}
        found = runs_of(rows, metric)
        assert len(found) == 2
        assert all(same(run, stored[run.run_id]) for run in found)
    assert runs_of(rows, "eval/return_after_3_steps") == []
    assert record_text(reversed(rows)) == path.read_text()


def test_what_training_logs_is_recorded_at_evaluations(tmp_path: Path) -> None:
    root = tmp_path / "often"
    steps = range(10, 41, 10)
    run_id = add_run(root, "swing", 0, 1.0, arm="sac", steps=steps, more={"ntk/ratio": 2.0})
    client = connect(root)
    client.log_metric(run_id, "ntk/ratio", 7.0, step=0)
    client.log_batch(run_id, metrics=[Metric("train/entropy", step, step, step) for step in range(12, 40, 3)])
    assert not [row for row in read_store(root, "swing") if not is_return(row.metric)]
    rows = read_store(root, "swing", ["ntk/ratio", "train/entropy", "train/none"])
    found = {name: [row.step for row in rows if row.metric == name] for name in metrics_of(rows)}
    assert found == {RETURN: list(steps), "ntk/ratio": [0, *steps], "train/entropy": [18, 30, 39]}


def test_a_return_before_adaptation_that_was_deleted_is_missing_alone(root: Path) -> None:
    rows = read_store(root, "swing")
    first = next(row for row in rows if row.metric == BEFORE)
    whole, without = (runs_of(kept) for kept in (rows, [row for row in rows if row is not first]))
    assert [run.run_id for run in whole] == [run.run_id for run in without]
    for run, other in zip(whole, without, strict=True):
        assert (other.before is None) is (run.before is None or run.run_id == first.run)


def test_a_diverged_run_is_recorded_by_where_it_stopped(tmp_path: Path) -> None:
    root = tmp_path / "hot"
    add_run(root, "hot", 0, 1.0, arm="sac")
    at = {"steps": range(40_000, 40_001), "status": "failed", "more": {"diverged": 0.025}}
    run = add_run(root, "hot", 1, 1.0, arm="sac", **at)
    add_run(root, "hot", 2, 1.0, arm="sac", **at)
    again = add_run(root, "hot", 2, 1.0, arm="sac", width=32)
    add_run(root, "hot", 3, 1.0, **at)  # by hand
    add_run(root, "hot", 4, 1.0, arm="sac", steps=range(40_000, 40_001), status="failed")  # of something else
    rows = merge([], read_store(root, "hot"))[0]
    (row,) = (row for row in rows if row.seed not in ("0", "2"))
    assert (row.seed, row.metric, row.step, row.value, row.run) == ("1", "diverged", 40_000, 1.0, run)
    assert {row.run for row in rows if row.seed == "2"} == {again}
    assert metrics_of(rows) == [RETURN]
    assert [run.seed for run in runs_of(rows)] == ["0", "2"]
    Path("hot.csv").write_text(record_text(rows))
    assert row in read_record("hot.csv")
    worse = [each._replace(metric="diverged", run="r9") for each in rows if (each.seed, each.step) == ("0", 100_000)]
    assert merge(rows, worse)[0] == rows  # it takes no finished run's place
    assert merge(worse, rows)[0] == rows


def test_a_store_without_finished_cells_says_so(root: Path) -> None:
    add_run(root, "by hand", 0, 1.0)
    with pytest.raises(ReportError, match=r"No finished run in .* is of the recipe by hand"):
        read_store(root, "by hand")


def rows_of(arm: str, seed: int, run: str, steps: int = 4, value: float = 1.0) -> list[Evaluation]:
    return [
        Evaluation(
            arm, str(seed), "eval/return", step, value, step / 10, run, f"key {run}", "abc", "cafe", "SAC", WALKER
        )
        for step in range(1, steps + 1)
    ]


def test_finished_runs_replace_those_of_their_arm_and_seed() -> None:
    gone, old, new, other = rows_of("a", 0, "r0"), rows_of("a", 1, "r1"), rows_of("a", 1, "r2"), rows_of("b", 0, "r3")
    rows, remarks = merge(gone + old, new + other)
    assert rows == gone + new + other
    assert remarks == ["Replaced: run r1 of a seed 1 by r2."]
    longer = rows_of("a", 1, "r1", 7)
    assert merge(rows, longer)[0] == gone + other + longer  # the same run, gone on with


def test_a_quick_look_does_not_cost_the_record() -> None:
    long, short = rows_of("a", 0, "r0", 9), rows_of("a", 0, "r1", 4)
    rows, (remark,) = merge(long, short)
    assert rows == long
    assert remark == (
        "Left out: run r1 of a seed 0, as it has 4 steps and run r0 9; "
        "to have this one, delete the other from the record and the store."
    )
    assert merge(long, rows_of("a", 0, "r1", 5))[0] != long


def test_a_quick_look_does_not_cost_a_run_of_the_store(root: Path) -> None:
    runs = [
        add_run(root, "looks", 0, 1.0, arm="a", steps=range(10, end + 1, 10), width=width)
        for width, end in enumerate((20, 1000, 10))
    ]
    stored = read_store(root, "looks")
    old = rows_of("a", 0, "r0", 400)
    for recorded in ([], old, stored[2:102]):  # nothing, less than the whole run, that run itself
        rows, remarks = merge(recorded, stored)
        assert {row.run for row in rows} == {runs[1]}
        assert remarks[0].startswith(f"Left out: run {runs[2]} of a seed 0, as it has 10 steps and run {runs[1]} 1,000")
        assert remarks[1:] == ([f"Replaced: run r0 of a seed 0 by {runs[1]}."] if recorded is old else [])
    longer = rows_of("a", 0, "r0", 3000)  # than anything in the store
    assert merge(longer, stored)[0] == longer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,0,eval/return,3,1,1", "line 4: it has 6 fields, not 12"),
        ("<<<<<<< HEAD", "line 4: it has 1 fields, not 12"),
        ("a,0,eval/return,3.5,1,1,r,k,abc,cafe,SAC,gym/x", "line 4: invalid literal for int"),
        ("a,0,eval/return,3,high,1,r,k,abc,cafe,SAC,gym/x", "line 4: could not convert string to float: 'high'"),
        ("a,0,eval/return,3,1,1,r9,k,abc,cafe,SAC,gym/x", "line 4: a seed 0 has a second run, r9"),
        ("a,0,eval/return,2,1,1,r,k,abc,cafe,SAC,gym/x", "line 4: eval/return at step 2 of this run is there twice"),
    ],
)
def test_a_damaged_line_is_named_with_the_remedy(line: str, message: str) -> None:
    Path("r.csv").write_text(record_text(rows_of("a", 0, "r", 2)) + line + "\n")
    with pytest.raises(ReportError) as error:
        read_record("r.csv")
    assert message in str(error.value)
    assert str(error.value).endswith("Delete the line, or restore the file: git checkout r.csv")


def test_files_that_are_no_record() -> None:
    assert read_record("gone.csv") == []
    Path("r.csv").write_text("arm,seed\n")
    with pytest.raises(ReportError, match=r"r.csv, line 1: the columns are \['arm', 'seed'\], not arm,seed,metric,"):
        read_record("r.csv")
    Path("r.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match=r"Cannot read the record r.csv: 'utf-8' codec"):
        read_record("r.csv")
    assert COLUMNS[:10] == ("arm", "seed", "metric", "step", "value", "minutes", "run", "key", "commit", "config")
