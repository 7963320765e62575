"""Sweeps of real, tiny runs: stopped and gone on with, failed and retried, two at once, and bad input."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from sweep_cases import SMOKE, fork, resolver, write_recipe
from test_cli import error_of

from lit_metarl.__main__ import main
from lit_metarl.checkpoint import trained_by
from lit_metarl.config import load_config
from lit_metarl.reports.tables.record import read_record
from lit_metarl.sweep.cells import KEY_TAG, make_cells
from lit_metarl.sweep.recipe import load_recipe
from lit_metarl.sweep.state import State
from lit_metarl.sweep.training import StopRequest, train
from lit_metarl.tracking import StoredRun, connect, list_runs

EPOCHS = 40
BOOM = """
import os
from pathlib import Path
from lightning.pytorch import Callback

class Boom(Callback):
    '''Fails in the second epoch until there is a file named mended.'''
    def on_train_epoch_start(self, trainer, pl_module):
        Path("threads").write_text(os.environ["OMP_NUM_THREADS"])
        if trainer.current_epoch == 1 and not Path("mended").exists():
            raise RuntimeError("the simulator is on fire")
"""


class Sweep:
    """``lit-metarl sweep swing.yaml`` in a forked process."""

    def __init__(self, output: str, *flags: str) -> None:
        self.output = Path(output)
        self.process = fork.Process(target=self._run, args=(self.output, flags))
        self.process.start()

    @staticmethod
    def _run(output: Path, flags: tuple[str, ...]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with output.open("w", buffering=1) as file:
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)
            os._exit(main(["sweep", "swing.yaml", *SMOKE, *flags]))

    def wait(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self.process.is_alive(), self.output.read_text()
            time.sleep(0.05)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            os.kill(self.process.pid or 0, number)
        self.process.join(120)
        return self.process.exitcode if self.process.exitcode is not None else -1


@pytest.fixture
def sweep() -> Iterator[Callable[..., Sweep]]:
    started: list[Sweep] = []

    def start(*args: str) -> Sweep:
        started.append(Sweep(*args))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.join()
    for folder in Path("mlruns/runs").glob("*"):  # what a killed sweep leaves behind goes on
        holder = trained_by(folder)
        if holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(holder.split()[1]), signal.SIGKILL)


def runs() -> list[StoredRun]:
    return list_runs("mlruns", "swing", KEY_TAG)


def test_a_sweep_is_stopped_and_gone_on_with(sweep: Callable[..., Sweep], capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(seeds=2)
    epochs = f"--trainer.max_epochs={EPOCHS}"
    first = sweep("first.txt", epochs, "--workers=2")
    first.wait(lambda: sum((Path("mlruns/runs") / run.run_id / "last.ckpt").exists() for run in runs()) == 2)
    names = {run.tags["mlflow.runName"]: run.run_id for run in runs()}
    killed, saved = names["sac seed 0"], names["sac seed 1"]
    holder = trained_by(Path("mlruns/runs") / killed)
    assert holder is not None
    os.kill(int(holder.split()[1]), signal.SIGKILL)
    first.wait(lambda: "sac seed 0: interrupted (stopped by SIGKILL)" in first.output.read_text())
    assert first.end(signal.SIGINT) == 130
    lines = first.output.read_text().splitlines()
    assert lines[0] == "swing: SAC on a pendulum."
    assert "stopping 1 run, which saves; Ctrl-C again stops at once" in lines
    assert lines[-1].startswith("lit-metarl: stopped by SIGINT: 2 interrupted; go on with `lit-metarl sweep swing.yaml")
    # Of the killed one nobody was left to say so.
    assert {run.run_id: run.status for run in runs()} == {saved: "KILLED", killed: "RUNNING"}
    assert all(0 < run.evaluations < EPOCHS for run in runs())

    flags = ["swing.yaml", *SMOKE, epochs]
    assert main(["sweep", *flags, "--dry_run"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[3], row[5]) for row in table[:2]] == [("interrupted", killed), ("interrupted", saved)]
    overlay = load_config(Path(SMOKE[1]))
    (cell,) = make_cells(load_recipe(Path("swing.yaml")), resolver(), [overlay], [*SMOKE[2:], epochs], [0])
    outcome = pickle.loads(pickle.dumps(partial(train, cell)))()  # as a scheduler runs it
    assert (outcome.state.state, outcome.state.run_id) == (State.FINISHED, killed)
    assert main(["sweep", *flags, "--seeds=[0]"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == "swing: SAC on a pendulum.\nswing: 1 finished\n"
    (run,) = [run for run in runs() if run.run_id == killed]
    assert (run.status, run.evaluations) == ("FINISHED", EPOCHS)  # every point once: it went on
    assert len(runs()) == 2
    artifact = connect("mlruns").download_artifacts(killed, "swing.yaml")
    assert Path(artifact).read_text() == Path("swing.yaml").read_text()

    assert main(["report", "swing.yaml"]) == 0
    assert "Not finished, so not counted: `sac` seed 1." in capsys.readouterr().out
    rows = read_record("swing.csv")
    assert [(row.seed, row.run, row.key) for row in rows] == [("0", killed, cell.key)] * EPOCHS
    shutil.rmtree("mlruns")
    assert main(["sweep", *flags, "--dry_run"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("recorded in swing.csv")
    assert second.split()[3] == "absent"


def test_what_fails_is_trained_once_shown_and_retried(
    sweep: Callable[..., Sweep],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    Path("boom.py").write_text(BOOM)
    write_recipe(seeds=1)
    boom = "--trainer.callbacks+=boom.Boom"
    both = [sweep("first.txt", boom), sweep("second.txt", boom)]
    assert 1 in [each.end() for each in both]  # the other one leaves it alone, or came when it had failed
    assert Path("threads").read_text() == "1"
    (run,) = runs()
    assert run.status == "FAILED"
    output = "".join(each.output.read_text() for each in both)
    assert (
        "lit-metarl: sac seed 0 failed: RuntimeError: the simulator is on fire (--retry tries again; mlruns/" in output
    )

    assert main(["sweep", "swing.yaml", *SMOKE, boom]) == 1
    said = capsys.readouterr()
    assert "swing: 1 failed" in said.out
    assert "sac seed 0 failed: RuntimeError: the simulator is on fire" in said.err
    assert [each.run_id for each in runs()] == [run.run_id]
    Path("mended").touch()
    assert main(["sweep", "swing.yaml", *SMOKE, boom, "--retry", "--threads=2"]) == 0
    assert Path("threads").read_text() == "2"
    (again,) = runs()
    assert (again.run_id, again.status, again.evaluations) == (run.run_id, "FINISHED", 2)


def test_the_first_signal_lets_runs_save_and_a_second_ctrl_c_does_not() -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background command begins with it ignored
    before = signal.getsignal(signal.SIGINT)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_for(None) is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert (request.received, request.signal_for(None)) == (signal.SIGTERM, signal.SIGTERM)
            assert request.signal_for(signal.SIGTERM) is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal_for(signal.SIGTERM) is None
            os.kill(os.getpid(), signal.SIGINT)
            assert (request.received, request.signal_for(signal.SIGTERM)) == (signal.SIGTERM, signal.SIGINT)
            assert request.signal_for(signal.SIGINT) is None
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGHUP, ignored)
        signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gone.yaml"], "config file gone.yaml cannot be read: No such file or directory."),
        (["--trainer.max_epochs", "20", "swing.yaml"], "RECIPE = '20' cannot be used: it is a yaml file, and comes"),
        (["swing.yaml", "--seeds=0"], "--seeds = 0 cannot be used: write how many there are, or a list of different"),
        (["swing.yaml", "--seeds=[0"], "--seeds = '[0' cannot be used: write how many there are, or a list"),
        (["swing.yaml", "--seed_everything=7"], "--seed_everything=7' cannot be used: seeds are those of the recipe"),
        (
            ["swing.yaml", "--trainer.logger.run_name=x"],
            "cannot be used: a run is recorded under the names of recipe, arm",
        ),
        (["swing.yaml", "--ckpt_path", "last.ckpt"], "ckpt_path = 'last.ckpt' cannot be used: a run of a sweep begins"),
        (["swing.yaml", "--arm=sacc"], "--arm = 'sacc' cannot be used: the arms of swing.yaml are sac; a pattern"),
        (["swing.yaml", "--config=gone.yaml"], "config file gone.yaml cannot be read: No such file or directory."),
        (["swing.yaml", "--trainer.max_steps=3"], "trainer.max_steps = 3 cannot be used"),
        (["swing.yaml", "--model.gama=1"], "model.gama: SAC takes no gama. Did you mean gamma?"),
        (["swing.yaml", "--worker=2"], "--worker=2 is not understood."),
        (["swing.yaml", "--trainer.logger.root=swing.yaml"], "Cannot write in the tracking root swing.yaml"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe()
    assert message in error_of(["sweep", *flags], capsys)
    assert not Path("mlruns").exists()


def test_help_says_how_many_workers_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["sweep", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "default: one for each CPU" in words
    assert "default: 1; the small networks here gain little from a second one" in words
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "swing.yaml", "--workers=0"])
    assert "'0' is not an integer of at least 1" in capsys.readouterr().err
