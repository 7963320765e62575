"""`fit 2n` equals `fit n; resume; fit n`, bit for bit, for every algorithm and every kind of interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lit_metarl.algorithms import SAC
from lit_metarl.callbacks import RunCheckpoint, RunRecord
from lit_metarl.data import ReplayDataModule
from lit_metarl.envs.base import EnvFactory
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.suite import DMControl
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.tracking import MLflowLogger, connect

SIMULATORS = {
    "mujoco": MuJoCo("half_cheetah", max_episode_steps=7, threads=1),
    "mujoco_terminating": MuJoCo("hopper", max_episode_steps=50, threads=1),
    "dm_control": DMControl("reacher/easy"),
    "gymnasium": Gymnasium("Pendulum-v1"),
}


def make_sac(env: EnvFactory, seed: int = 0, **data: Any) -> tuple[SAC, ReplayDataModule]:
    settings = {
        "num_envs": 2,
        "batch_size": 8,
        "capacity": 45,  # the ring wraps during the run
        "warmup_steps": 10,
        "updates_per_block": 3,
        "steps_per_block": 2,
        "epoch_steps": 24,
        "eval_episodes": 2,
    } | data
    datamodule = ReplayDataModule(env, seed=seed, **settings)
    seed_everything(seed)
    sac = SAC(
        datamodule.obs_dim,
        datamodule.action_dim,
        TanhGaussianMLP([16]),
        EnsembleCriticMLP([16]),
        target_update_every=2,
    )
    return sac, datamodule


def make_trainer(root: Path, epochs: int, run_id: str | None = None, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=MLflowLogger(str(root), run_id=run_id),
        callbacks=[RunCheckpoint(every_n_batches=kwargs.pop("every_n_batches", 0)), RunRecord({"test": 1})],
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        **kwargs,
    )


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Deep bit equality; names the first place that differs."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()), where
        assert torch.equal(
            a.nan_to_num() if a.is_floating_point() else a, b.nan_to_num() if b.is_floating_point() else b
        ), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def whole_run(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint that the future depends on: all but run id, config and wall-clock."""
    checkpoint = load(path)
    return {
        key: checkpoint[key]
        for key in ("state_dict", "optimizer_states", "ReplayDataModule", "algorithm", "epoch", "global_step")
    }


def metrics_of(root: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = connect(root)
    names = client.get_run(run_id).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


@pytest.mark.parametrize("name", SIMULATORS)
@pytest.mark.parametrize("interrupted_at", ["end_of_epoch", 0, 2, 3])  # batches of the second epoch, of 0 to 3
def test_resumed_run_equals_straight_run(name: str, interrupted_at: str | int, tmp_path: Path) -> None:
    env = SIMULATORS[name]
    straight = make_trainer(tmp_path / "straight", 4)
    straight.fit(*make_sac(env))
    straight_dir = straight.logger.run_dir

    first = make_trainer(tmp_path / "resumed", 2)
    if interrupted_at == "end_of_epoch":
        first.fit(*make_sac(env))
        checkpoint = first.logger.run_dir / "last.ckpt"
    else:
        sac, datamodule = make_sac(env)
        checkpoint = stop_within_epoch(first, sac, datamodule, interrupted_at)
    torch.manual_seed(12345)  # the resumed process starts from whatever the global streams are
    second = make_trainer(tmp_path / "resumed", 4, run_id=first.logger.run_id)
    second.fit(*make_sac(env), ckpt_path=checkpoint)

    assert second.logger.run_id == first.logger.run_id
    assert_same(whole_run(straight_dir / "last.ckpt"), whole_run(second.logger.run_dir / "last.ckpt"))
    assert metrics_of(tmp_path / "straight", straight.logger.run_id) == metrics_of(
        tmp_path / "resumed", second.logger.run_id
    )


def stop_within_epoch(trainer: Trainer, sac: SAC, datamodule: ReplayDataModule, at: int) -> Path:
    """Stop in the second epoch, as Ctrl-C during batch ``at`` does."""
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))
    original = sac.training_step

    def interrupting(batch: Any, batch_idx: int) -> None:
        original(batch, batch_idx)
        if trainer.current_epoch == 1 and batch_idx == at:
            checkpoint._on_signal(2, None)

    sac.training_step = interrupting
    with pytest.raises(SystemExit):
        trainer.fit(sac, datamodule)
    assert connect(trainer.logger.save_dir).get_run(trainer.logger.run_id).info.status == "FAILED"
    return trainer.logger.run_dir / "last.ckpt"


def test_a_periodic_checkpoint_within_an_epoch_is_exact(tmp_path: Path) -> None:
    env = SIMULATORS["gymnasium"]
    straight = make_trainer(tmp_path / "straight", 2, every_n_batches=3)
    kept: list[bytes] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            path = trainer.logger.run_dir / "last.ckpt"
            if path.exists() and len(kept) < 1:
                kept.append(path.read_bytes())

    straight.callbacks.append(Keep())
    straight.fit(*make_sac(env))
    (tmp_path / "kept.ckpt").write_bytes(kept[0])
    assert load(tmp_path / "kept.ckpt")["algorithm"]["counters"]["updates"] == 9
    resumed = make_trainer(tmp_path / "resumed", 2)
    resumed.fit(*make_sac(env), ckpt_path=tmp_path / "kept.ckpt")
    assert_same(whole_run(straight.logger.run_dir / "last.ckpt"), whole_run(resumed.logger.run_dir / "last.ckpt"))
