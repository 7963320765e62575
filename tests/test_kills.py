"""A campaign of kills over all algorithms: whatever signal comes whenever, nothing is lost, doubled or wrong.

``pytest -m slow tests/test_kills.py`` takes some ten minutes on one core. Every training is a forked process; this one
never opens a store, since a database connection must not cross a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once, not in every child
import numpy as np
import pytest
import torch
from test_resume import CASES, assert_same, make_trainer, whole_run

from lit_metarl.tracking import open_store
from lit_metarl.types import Interrupted

fork = multiprocessing.get_context("fork")
KILLS = 15  # of each case
EPOCHS = 4
# One that nobody can catch, those that save, and a second Ctrl-C before the first has been served.
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT twice")
Points = dict[tuple[str, int], list[float]]


def training(case: str, root: Path, run_id: str | None, temporary: Path) -> None:
    """One process of a run, from its last checkpoint if there is one."""
    os.environ["TMPDIR"] = str(temporary)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    with (temporary.parent / "output.txt").open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    module, datamodule = CASES[case]()
    trainer = make_trainer(root, EPOCHS, run_id=run_id, every_n_batches=2)
    path = None if run_id is None else root / "runs" / run_id / "last.ckpt"
    try:
        trainer.fit(module, datamodule, ckpt_path=path)
    except Interrupted as stop:
        os._exit(128 + stop.number)
    except KeyboardInterrupt:  # before the run's own handlers are there: it has not taken the run, whose status stays
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(0)


def start(case: str, root: Path, run_id: str | None = None) -> Any:
    temporary = root.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    process = fork.Process(target=training, args=(case, root, run_id, temporary))
    process.start()
    return process


def resumable(root: Path) -> str | None:
    found = [path.parent.name for path in root.glob("runs/*/last.ckpt")]
    assert len(found) <= 1
    return found[0] if found else None


def record(root: Path, run_id: str) -> tuple[str, Points]:
    """Status of the run, and every value of every point."""
    with closing(sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True)) as connection:
        (status,) = connection.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        points: Points = {}
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ?"
        for key, step, value in connection.execute(query, (run_id,)):
            points.setdefault((key, step), []).append(value)
    return status, points


def send(process: Any, name: str) -> None:
    number = getattr(signal, name.partition(" ")[0])
    os.kill(process.pid, number)
    if name.endswith("twice"):
        time.sleep(0.01)
        if process.is_alive():
            os.kill(process.pid, number)


def faults(root: Path, run_id: str, whole: dict[str, Any], expected: Points) -> Counter[str]:
    """What is wrong with a run that has ended, by kind; its state must be that of the straight run, bit for bit."""
    folder, (status, points) = root / "runs" / run_id, record(root, run_id)
    assert_same(whole, whole_run(folder / "last.ckpt"))
    temporaries = [*folder.glob("*.part"), *folder.glob(".*.part"), *(root.parent / "temporary").rglob("*")]
    return Counter(
        status=int(status != "FINISHED"),
        missing=len(expected.keys() - points.keys()),
        unexpected=len(points.keys() - expected.keys()),
        # PEARL logs several updates at one environment step; no point is there more often than in the straight run
        doubled=sum(len(values) > len(expected.get(at, [0.0])) for at, values in points.items()),
        different=sum(sorted(values) != sorted(points.get(at, values)) for at, values in expected.items()),
        temporaries=sum(path.is_file() for path in temporaries),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost_doubled_or_wrong(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    straight, killed = tmp_path / "straight" / "store", tmp_path / "killed" / "store"
    for root in (straight, killed):
        maker = fork.Process(target=open_store, args=(root,))
        maker.start()
        maker.join()
    begun = time.monotonic()
    process = start(case, straight)
    process.join(300)
    duration = time.monotonic() - begun
    expected_id = resumable(straight)
    assert expected_id is not None, (straight.parent / "output.txt").read_text()[-3000:]
    whole, (_, expected) = whole_run(straight / "runs" / expected_id / "last.ckpt"), record(straight, expected_id)

    stream, sent, wrong, complete = np.random.default_rng(sum(map(ord, case))), Counter(), Counter(), 0
    while not complete or sent.total() < KILLS:
        process = start(case, killed, resumable(killed))
        if sent.total() < KILLS:
            process.join(float(stream.uniform(0.1, duration)))
        else:
            process.join(300)
        if process.is_alive():
            name = str(stream.choice(SIGNALS))
            sent[name] += 1
            send(process, name)
            process.join(120)
            run_id, caught = resumable(killed), process.exitcode == 128 + getattr(signal, name.partition(" ")[0])
            status = record(killed, run_id)[0] if run_id and caught else "KILLED"
            if status != "KILLED":
                wrong[f"{status} after {name}"] += 1
        else:
            assert process.exitcode == 0, (killed.parent / "output.txt").read_text()[-3000:]
            run_id, complete = resumable(killed), complete + 1
            assert run_id is not None
            wrong.update(faults(killed, run_id, whole, expected))  # + would drop what is 0
            (killed / "runs" / run_id).rename(killed / f"complete-{complete}")
    with capfd.disabled():
        sys.stdout.write(f"\n{case}: {sent.total()} kills {dict(sent)}; {complete} runs of {len(expected)} points, ")
        sys.stdout.write(f"wrong: {dict(wrong)}\n")
    assert not wrong.total()
