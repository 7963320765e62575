"""Which checkpoint is the best, over interruptions and in a new run."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from meta_cases import quiet_trainer

from lit_metarl.algorithms import SAC
from lit_metarl.callbacks import KeepCheckpoints, RunCheckpoint
from lit_metarl.callbacks.checkpoint import _keep_slurm_requeue_away, _not_finite, _requeue, _stops_early
from lit_metarl.data import ReplayDataModule
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.types import ConfigError, Interrupted


def train(
    folder: Path, scores: list[float], done: int = 0, ckpt_path: Path | None = None, more: Sequence[Callback] = ()
) -> RunCheckpoint:
    """Epochs of two steps, ``done`` of them before; evaluation number i finds ``scores[i]``."""
    datamodule = ReplayDataModule(
        MuJoCo("half_cheetah", max_episode_steps=2, threads=1),
        batch_size=2,
        capacity=9,
        warmup_steps=2,
        epoch_steps=2,
        eval_episodes=1,
    )
    sac = SAC(17, 6, TanhGaussianMLP([2]), EnsembleCriticMLP([2]))
    left = iter(scores)
    sac.evaluation_metrics = lambda batch: {"return": torch.tensor(next(left))}
    checkpoint = RunCheckpoint()
    trainer = quiet_trainer(
        max_epochs=done + len(scores),
        callbacks=[checkpoint, *more],
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    trainer.fit(sac, datamodule, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return checkpoint


def steps_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["algorithm"]["counters"]["env_steps"]


def test_a_resumed_run_replaces_its_best_only_by_a_better(tmp_path: Path) -> None:
    first = train(tmp_path, [1.0, 5.0, 3.0])
    folder = first.directory
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    assert (first.best_score, steps_of(best), steps_of(last)) == (5.0, 6, 8)
    worse = train(tmp_path, [4.0, 5.0], done=3, ckpt_path=last)  # equal is not better
    assert (worse.best_score, steps_of(best), steps_of(last)) == (5.0, 6, 12)
    assert train(tmp_path, [5.5], done=5, ckpt_path=last).best_score == 5.5
    assert best.samefile(last)
    assert steps_of(best) == 14
    elsewhere = train(tmp_path / "elsewhere", [-9.0], done=6, ckpt_path=last)  # another run has its own best
    assert elsewhere.directory != folder
    assert elsewhere.best_score == -9.0
    assert steps_of(elsewhere.directory / "best.ckpt") == 16


def test_one_process_trains_a_run_and_the_other_is_told_which(tmp_path: Path) -> None:
    first, second = RunCheckpoint(), RunCheckpoint()
    first.directory = second.directory = tmp_path / "run"
    assert first._take_lock() is None
    (tmp_path / "run" / ".last.ckpt.part").touch()
    refused = second._take_lock()
    assert refused is not None
    assert f"run is being trained by process {os.getpid()} on {socket.gethostname()}: wait for its end" in refused
    assert (tmp_path / "run" / ".last.ckpt.part").exists()  # it may be writing that
    first._let_go()
    assert second._take_lock() is None
    assert not (tmp_path / "run" / ".last.ckpt.part").exists()  # left by a crash
    second._let_go()


def test_a_stop_needs_no_logger() -> None:
    stop = Interrupted("stopped", 2)
    RunCheckpoint().on_exception(quiet_trainer(), SAC(17, 6), stop)
    assert not hasattr(stop, "__notes__")  # it says itself what is saved


def test_what_is_not_finite_is_named() -> None:
    module = torch.nn.Linear(2, 1)
    module.register_buffer("count", torch.tensor(3))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1), torch.optim.Adam(module.parameters(), lr=0.1)]
    module(torch.ones(2)).sum().backward()
    optimizers[1].step()
    optimizers[0].state[module.weight] = {"momentum_buffer": None, "calls": 2}
    trainer: Any = SimpleNamespace(lightning_module=module, optimizers=optimizers)
    assert _not_finite(trainer) is None
    optimizers[1].state[module.weight]["exp_avg_sq"][0, 1] = math.inf
    assert _not_finite(trainer) == "exp_avg_sq of optimizer 1 (Adam) is not finite"
    for bad in (math.nan, -math.inf, 3e19):  # the square of the last is beyond float32
        module.weight.data.fill_(bad)
        assert _not_finite(trainer) == "parameter weight is not finite"


def test_lightnings_own_requeue_checkpoint_is_not_resumed_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    _keep_slurm_requeue_away(trainer)  # outside of SLURM nothing reads it
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    with pytest.raises(ConfigError, match=r"hpc_ckpt_1.ckpt would be resumed .*: move it away"):
        _keep_slurm_requeue_away(trainer)
    (tmp_path / "hpc_ckpt_1.ckpt").unlink()
    _keep_slurm_requeue_away(trainer)


@pytest.mark.parametrize(
    ("variables", "code", "command", "message"),
    [
        ({}, 0, None, ""),
        ({"SLURM_JOB_ID": "7"}, 0, "7", "; job 7 requeued"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, 0, "7_2", "; job 7_2 requeued"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, 0, None, ""),  # one process of the job is enough
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, 1, "7", "; job 7 not requeued: no such job"),
    ],
)
def test_a_job_is_requeued_by_its_first_process(
    variables: dict[str, str], code: int, command: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    called = []

    def run(command: list[str], **settings: object) -> SimpleNamespace:
        assert settings == {"capture_output": True, "text": True, "check": False}
        called.append(command)
        return SimpleNamespace(returncode=code, stderr="no such job\n")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    assert _requeue() == message
    assert called == ([] if command is None else [["scontrol", "requeue", command]])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert _requeue() == ""


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({}, True),
        ({"should_stop": False}, False),
        ({"min_epochs": None, "min_steps": None}, True),
        ({"min_epochs": None, "min_steps": None, "current_epoch": 0, "global_step": 0}, True),
        ({"min_epochs": 3}, True),
        ({"min_epochs": 4}, False),
        ({"min_steps": 10}, True),
        ({"min_steps": 11}, False),
        ({"min_epochs": 1, "current_epoch": 0}, False),
    ],
)
def test_a_run_that_was_asked_to_stop_stops_once_it_has_done_its_minimum(settings: dict, stops: bool) -> None:
    trainer = {"should_stop": True, "min_epochs": 1, "min_steps": 1, "current_epoch": 3, "global_step": 10}
    assert _stops_early(SimpleNamespace(**trainer | settings)) is stops


def test_checkpoints_of_some_epochs_are_kept(tmp_path: Path) -> None:
    folder = train(tmp_path, [1.0, 2.0, 3.0, 0.0, 0.0], more=[KeepCheckpoints(every_n_epochs=2)]).directory
    kept = {path.name: steps_of(path) for path in folder.glob("epoch_*.ckpt")}
    assert kept == {"epoch_2.ckpt": 6, "epoch_4.ckpt": 10}
    assert steps_of(folder / "last.ckpt") == 12


class StopInEvaluation(Callback):
    """SIGTERM while epoch 2 is evaluated: the run stops when that epoch is saved."""

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)  # a shell starts background commands with Ctrl-C ignored


def test_a_checkpoint_is_also_kept_where_the_run_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, [1.0, 2.0, 3.0], more=[KeepCheckpoints(every_n_epochs=2), StopInEvaluation()])
    (kept,) = tmp_path.glob("checkpoints/epoch_*.ckpt")
    assert kept.name == "epoch_2.ckpt"
    assert steps_of(kept) == 6


def test_a_score_that_is_not_a_number_is_not_the_best(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, [math.nan, -1e9, math.nan])
    assert checkpoint.best_score == -1e9
    assert steps_of(checkpoint.directory / "best.ckpt") == 6


def test_epochs_between_checkpoints_that_are_kept_are_a_positive_number() -> None:
    with pytest.raises(ConfigError, match=r"KeepCheckpoints\.every_n_epochs = 0"):
        KeepCheckpoints(every_n_epochs=0)


def test_batches_between_saves_are_a_number_from_zero() -> None:
    with pytest.raises(ConfigError, match=r"RunCheckpoint\.every_n_batches = -1"):
        RunCheckpoint(every_n_batches=-1)
    assert RunCheckpoint(every_n_batches=0).every_n_batches == 0
