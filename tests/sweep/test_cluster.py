"""Sweeps as jobs: submitit's local executor for real, SLURM's with an ``sbatch`` that runs the script it is given."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from sweep_cases import SMOKE, fork, write_recipe
from test_cli import error_of

import lit_metarl
from lit_metarl.__main__ import main
from lit_metarl.sweep.cells import KEY_TAG
from lit_metarl.sweep.cluster import split_options
from lit_metarl.tracking import StoredRun, list_runs
from lit_metarl.types import ConfigError

SBATCH = """#!/bin/sh
echo "$@" >> "$FAKE/submitted"
cp "$1" "$FAKE/script.sh"
test -e "$FAKE/idle" || start-job &
echo "Submitted batch job 4242"
"""
START_JOB = """#!/bin/sh
export SLURM_JOB_ID=4242 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
exec sh "$FAKE/script.sh" >> "$FAKE/output" 2>&1
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case "$1" in --output|--error) shift ;; esac
    shift
done
echo $$ > "$FAKE/pid"
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
test -e "$FAKE/idle" && echo "4242|PENDING|None assigned" || echo "4242|RUNNING|here"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$FAKE/requeued"
(while kill -0 "$(cat "$FAKE/pid")"; do sleep 0.1; done; SLURM_RESTART_COUNT=1 start-job) > /dev/null 2>&1 &
"""
SLURM = {"sbatch": SBATCH, "start-job": START_JOB, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL}


@pytest.fixture(autouse=True)
def _found_by_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package need not be installed: a job finds the one under test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(lit_metarl.__file__).parents[1]))
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # put back after the test
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder where what is submitted to SLURM is kept; with a file ``idle`` in it the jobs stay in the queue."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def runs() -> list[StoredRun]:
    return list_runs("mlruns", "swing", KEY_TAG)


@pytest.mark.slow
def test_a_local_job_trains_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe()
    words = ["sweep", "swing.yaml", *SMOKE, "--cluster=local", "--cluster.cpus_per_task", "1"]
    assert main(words) == 0
    (run,) = runs()
    assert (run.status, run.evaluations) == ("FINISHED", 2)
    assert "swing: 1 finished" in capsys.readouterr().out
    assert list(Path("mlruns/sweeps/swing/jobs").glob("*_result.pkl"))
    assert main(words) == 0  # nothing is left to do
    assert len(list(Path("mlruns/sweeps/swing/jobs").glob("*_result.pkl"))) == 1


def test_slurm_gets_a_script_that_trains_a_cell(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe()
    options = ["--cluster.partition=gpu", "--cluster.timeout_min", "90", "--cluster.cpus_per_task=3"]
    assert main(["sweep", "swing.yaml", *SMOKE, "--cluster=slurm", *options, "--cluster.gpus_per_node=1"]) == 0
    (run,) = runs()
    assert run.status == "FINISHED"
    assert run.tags["slurm_job"] == "4242"
    script = (slurm / "script.sh").read_text().splitlines()
    flags = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    expected = {"partition=gpu", "time=90", "cpus-per-task=3", "gpus-per-node=1", "job-name=swing", "signal=USR1@90"}
    assert expected <= flags
    (command,) = [line for line in script if line.startswith("srun")]
    assert command.endswith(f"{sys.executable} -u -m submitit.core._submit {Path.cwd() / 'mlruns/sweeps/swing/jobs'}")


@pytest.mark.slow
def test_a_job_out_of_time_saves_and_is_put_back_into_the_queue(slurm: Path) -> None:
    write_recipe()
    words = ["sweep", "swing.yaml", *SMOKE, "--trainer.max_epochs=60", "--cluster=slurm"]
    process = fork.Process(target=lambda: os._exit(main(words)))
    process.start()
    while not list(Path("mlruns").glob("runs/*/last.ckpt")):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(int((slurm / "pid").read_text()), signal.SIGUSR1)
    process.join(180)
    assert process.exitcode == 0
    assert (slurm / "requeued").read_text() == "requeue 4242\n"
    (run,) = runs()
    assert (run.status, run.evaluations) == ("FINISHED", 60)  # every point once: it went on
    assert len((slurm / "submitted").read_text().splitlines()) == 1


def test_jobs_go_on_when_the_sweep_is_stopped(slurm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (slurm / "idle").touch()
    write_recipe()

    def sweep() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(main(["sweep", "swing.yaml", *SMOKE, "--cluster=slurm"]))

    for submitted in (1, 1):  # the second sweep waits for the job that is in the queue
        process = fork.Process(target=sweep)
        process.start()
        lines = []
        while not any("begins" in line for line in lines):
            assert process.is_alive()
            time.sleep(0.05)
            lines += capfd.readouterr().out.splitlines()
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(60)
        said = capfd.readouterr()
        assert process.exitcode == 130
        assert "the job goes on; `scancel 4242` cancels, upon which a run saves" in said.out
        assert "stopped by SIGINT: 1 running; go on with `lit-metarl sweep swing.yaml" in said.err
        assert len((slurm / "submitted").read_text().splitlines()) == submitted


def test_options_of_the_scheduler() -> None:
    words = ["--cluster.partition", "gpu", "--trainer.max_epochs=3", "--cluster.mem_gb=1.5", "--cluster.exclusive=true"]
    assert split_options(words) == (
        {"partition": "gpu", "mem_gb": 1.5, "exclusive": True},
        ["--trainer.max_epochs=3"],
    )
    for text in ("12:00:00", "1-00:00:00", "[v100|a100]", "010", "on", "@here", "[gpu"):
        assert split_options([f"--cluster.time={text}"]) == ({"time": text}, [])  # SLURM's own, which yaml would read
    assert split_options(["--cluster.exclusive=True", "--cluster.nodes", "2"])[0] == {"exclusive": True, "nodes": 2}
    with pytest.raises(ConfigError, match=r"--cluster.partition = '' cannot be used: write --cluster.partition gpu"):
        split_options(["--cluster.partition"])
    with pytest.raises(ConfigError, match=r"--cluster.exclusive = '--trainer.max_epochs' cannot be used: write"):
        split_options(["--cluster.exclusive", "--trainer.max_epochs", "3"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster.partition=gpu"], "--cluster = None cannot be used: say which, slurm or local."),
        (["--cluster=local", "--threads=2"], "--threads = 2 cannot be used: the jobs of a cluster have"),
        (["--cluster=slurm"], '--cluster slurm cannot be used: Could not detect "srun"'),
        (["--cluster=local", "--cluster.partitoin=gpu"], "Unknown argument 'partitoin' for executor 'slurm'"),
        (["--cluster=local", "--cluster.timeout_min=soon"], 'Parameter "timeout_min" expected type'),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe()
    assert message in error_of(["sweep", "swing.yaml", *SMOKE, *flags], capsys)


def test_without_submitit_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    write_recipe()
    message = error_of(["sweep", "swing.yaml", *SMOKE, "--cluster=local"], capsys)
    assert message == "--cluster needs submitit, which is not installed: pip install 'lit_metarl[cluster]'."
