"""The record of a run beside its state: one process at a time, parameters, names, SLURM, what crashes leave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from test_cli import SMOKE, error_of, runs

from lit_metarl.__main__ import main
from lit_metarl.checkpoint import trained_by
from lit_metarl.tracking import connect

fork = multiprocessing.get_context("fork")  # a training in a process of its own, without the imports of a new one
FOREVER = "--trainer.max_epochs=100000"


class Training:
    """``lit-metarl fit`` in a forked process."""

    def __init__(self, *flags: str) -> None:
        self.process = fork.Process(target=self._run, args=(flags,))
        self.process.start()

    @staticmethod
    def _run(flags: tuple[str, ...]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        with Path("output.txt").open("w", buffering=1) as file:
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)
            code = main(["fit", *SMOKE, *flags])
            os._exit(code)

    def wait_for_checkpoint(self) -> Path:
        while not (found := list(Path("mlruns").glob("runs/*/last.ckpt"))):
            assert self.process.is_alive(), Path("output.txt").read_text()
            time.sleep(0.02)
        return found[0]

    def stop(self, number: int) -> int:
        os.kill(self.process.pid or 0, number)
        self.process.join(60)
        return self.process.exitcode or 0


@pytest.fixture
def train() -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(*flags: str) -> Training:
        started.append(Training(*flags))
        return started[-1]

    yield start
    for training in started:
        training.process.kill()
        training.process.join()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"])
def test_a_killed_run_resumes(name: str, train: Callable[..., Training]) -> None:
    training, number = train(FOREVER), getattr(signal, name)
    path = training.wait_for_checkpoint()
    time.sleep(0.3)
    code = training.stop(number)
    stopped, client = torch.load(path, weights_only=True), connect("mlruns")
    if number != signal.SIGKILL:  # which leaves nobody to say so
        assert client.get_run(path.parent.name).info.status == "KILLED"
        assert code == 128 + number
        output = Path("output.txt").read_text().splitlines()
        (line,) = [line for line in output if line.startswith("lit-metarl:")]
        assert line.startswith(f"lit-metarl: stopped by {name} at ")
        assert line.endswith(f"go on with --ckpt_path {path.parent.name}")
    epochs = stopped["epoch"] + 3
    assert main(["fit", *SMOKE, f"--trainer.max_epochs={epochs}", "--ckpt_path=last"]) == 0
    resumed = torch.load(path, weights_only=True)
    assert resumed["epoch"] == epochs - 1
    assert resumed["algorithm"]["counters"]["updates"] == 8 * epochs
    assert client.get_run(path.parent.name).info.status == "FINISHED"


def test_a_second_process_is_refused_until_the_first_has_ended(
    train: Callable[..., Training], capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(FOREVER)
    path = first.wait_for_checkpoint()
    holder = f"process {first.process.pid} on {os.uname().nodename}"
    assert f"is being trained by {holder}: wait for its end or stop it, then resume." in error_of(
        ["fit", *SMOKE, "--ckpt_path=last"], capsys
    )
    assert connect("mlruns").get_run(path.parent.name).info.status == "RUNNING"
    assert first.process.is_alive()
    assert trained_by(path.parent) == holder
    first.stop(signal.SIGKILL)
    assert trained_by(path.parent) is None
    path.with_name(".lock.holder").write_text(f"process 1 on {os.uname().nodename}")  # as if its number was given anew
    assert trained_by(path.parent) is None
    part = path.with_name(".last.ckpt.part")  # as if it had been saving
    part.write_bytes(b"half of a checkpoint")
    epochs = torch.load(path, weights_only=True)["epoch"] + 2
    assert main(["fit", *SMOKE, "--ckpt_path=last", f"--trainer.max_epochs={epochs}"]) == 0
    assert connect("mlruns").get_run(path.parent.name).info.status == "FINISHED"
    assert not part.exists()


def test_a_requeued_slurm_job_goes_on_in_its_run(
    train: Callable[..., Training], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    first = train(FOREVER)
    path = first.wait_for_checkpoint()
    assert first.stop(signal.SIGUSR1) == 128 + signal.SIGUSR1
    client, stopped = connect("mlruns"), torch.load(path, weights_only=True)
    assert client.get_run(path.parent.name).info.status == "KILLED"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(["fit", *SMOKE, f"--trainer.max_epochs={stopped['epoch'] + 3}"]) == 0
    assert [run.name for run in runs()] == [path.parent.name]
    assert torch.load(path, weights_only=True)["epoch"] == stopped["epoch"] + 2
    assert client.get_run(path.parent.name).info.status == "FINISHED"
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job that was requeued: nothing of this one is taken
    assert main(["fit", *SMOKE, "--trainer.max_epochs=1"]) == 0
    assert len(runs()) == 2
    assert not list(Path(".").rglob("hpc_ckpt*"))


def test_a_foreign_requeue_file_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of another run")
    message = "hpc_ckpt_1.ckpt would be resumed instead of this run's checkpoint: move it away."
    assert message in error_of(["fit", *SMOKE], capsys)


def test_the_run_page_is_complete() -> None:
    flags = ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=step"]
    assert main(["fit", *SMOKE, *flags, "--seed_everything=3"]) == 0
    assert main(["fit", *SMOKE, *flags, "--seed_everything=3", "--trainer.max_epochs=1"]) == 0
    client, names = connect("mlruns"), set()
    for run in runs():
        data = client.get_run(run.name).data
        names.add(data.tags["mlflow.runName"])
        assert data.params["model.gamma"] == "0.99"
        assert data.params["data.env.env"] == "Pendulum-v1"
        assert data.params["model.class_path"] == "lit_metarl.algorithms.SAC"
        assert data.params["seed_everything"] == "3"
        assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= data.tags.keys()
        steps = {point.step for point in client.get_metric_history(run.name, "train/critic_loss")}
        rates = {point.step for name in data.metrics if name.startswith("lr-") for point in
                 client.get_metric_history(run.name, name)}  # fmt: skip
        assert rates
        assert rates <= steps | {0, 20}  # environment steps; the first rate is logged before the warm-up
    assert len(names) == 2
    assert all(name.startswith("SAC-Pendulum-v1-seed3-") for name in names)


class InterruptTwice(Callback):
    """Ctrl-C, twice, when the signals are the run's and its checkpoint is being read."""

    def on_load_checkpoint(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("left", "now"), [("RUNNING", "KILLED"), ("FINISHED", "FINISHED")])
def test_a_resume_that_ends_before_training_leaves_no_run_running(
    left: str, now: str, train: Callable[..., Training]
) -> None:
    assert main(["fit", *SMOKE]) == 0
    (path,) = Path("mlruns").glob("runs/*/last.ckpt")
    client = connect("mlruns")
    client.update_run(path.parent.name, status=left)  # RUNNING: as SIGKILL leaves it
    training = train(FOREVER, "--ckpt_path=last", f"--trainer.callbacks+={__name__}.InterruptTwice")
    training.process.join(60)
    assert training.process.exitcode == 130
    assert client.get_run(path.parent.name).info.status == now


class Impatient(Callback):
    """Ctrl-C, and again when the run stops of it but has not written so."""

    def on_train_batch_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def on_exception(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_on_the_way_out_leaves_the_record_true(train: Callable[..., Training]) -> None:
    training = train(FOREVER, f"--trainer.callbacks+={__name__}.Impatient")
    training.process.join(60)
    assert training.process.exitcode == 130
    (run,) = runs()
    assert connect("mlruns").get_run(run.name).info.status == "KILLED"
    assert f"go on with --ckpt_path {run.name}" in Path("output.txt").read_text()


class Rising(Callback):
    """Makes the evaluation of every epoch the best so far."""

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.callback_metrics["eval/return"] += 1e6 * trainer.current_epoch


class Kill(Rising):
    """SIGKILL between writing ``best.ckpt`` and ``last.ckpt`` of the second epoch."""

    def __init__(self) -> None:
        from lit_metarl.callbacks import checkpoint

        link = checkpoint.link_checkpoint

        def killed(source: Path, target: Path) -> None:
            if torch.load(source, weights_only=True)["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            link(source, target)

        checkpoint.link_checkpoint = killed  # in a process of its own


def test_best_is_repaired_after_a_kill_between_best_and_last(train: Callable[..., Training]) -> None:
    training = train("--trainer.callbacks+=test_record.Kill")
    training.process.join(120)
    assert training.process.exitcode == -signal.SIGKILL, Path("output.txt").read_text()
    (run,) = runs()
    last, best = (torch.load(run / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    assert (last["epoch"], best["epoch"]) == (0, 1)
    assert main(["fit", *SMOKE, "--trainer.callbacks+=test_record.Rising", "--ckpt_path=last"]) == 0
    last, again = (torch.load(run / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    assert last["epoch"] == again["epoch"] == 1
    assert again["callbacks"]["RunCheckpoint"] == best["callbacks"]["RunCheckpoint"]
    assert (run / "last.ckpt").samefile(run / "best.ckpt")
