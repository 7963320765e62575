"""Meta-preconditioned SAC: a first phase that moves the critics only, then SAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_metarl.algorithms import SAC, PreconditionedSAC
from lit_metarl.callbacks import RunCheckpoint
from lit_metarl.data import ReplayDataModule
from lit_metarl.data.experience import cpu_generator
from lit_metarl.data.streams import Stream, derive_seed
from lit_metarl.diagnostics.kernels import JVP, Layerwise
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.losses.preconditioning import Eq10, Eq14Printed, LogCosine, LogRatio, SarsaBatch, meta_gradient
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.types import ConfigError, DivergenceError, Transition

NETWORKS = {"actor": TanhGaussianMLP([16]), "critic": EnsembleCriticMLP([16])}
OBJECTIVE = LogRatio(JVP(directions=4))


def make(**kwargs: Any) -> PreconditionedSAC:
    seed_everything(0)
    return PreconditionedSAC(3, 1, **{"objective": OBJECTIVE} | NETWORKS | kwargs)


def minibatch() -> Transition:
    obs, next_obs, flags = torch.randn(8, 3), torch.randn(8, 3), torch.zeros(8, dtype=torch.bool)
    return Transition(obs, torch.rand(8, 1) * 2 - 1, torch.randn(8), next_obs, flags, flags)


def fit(
    module: SAC,
    folder: Path,
    warmup_updates: int,
    epochs: int = 2,
    ckpt_path: Path | None = None,
    updates_per_block: int = 2,
    keep_warmup: bool = True,
) -> Trainer:
    datamodule = ReplayDataModule(
        Gymnasium("Pendulum-v1"),
        batch_size=8,
        capacity=200,
        warmup_steps=10,
        warmup_updates=warmup_updates,
        keep_warmup=keep_warmup,
        updates_per_block=updates_per_block,
        steps_per_block=updates_per_block,
        epoch_steps=8,
        eval_episodes=1,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[RunCheckpoint()],
        default_root_dir=folder,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    return trainer


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_default_objective_knows_no_scale_and_its_kernel_is_exact() -> None:
    assert make(objective=None).objective == LogCosine(Layerwise())


def test_a_meta_update_is_gradient_descent_on_the_objective_after_a_bellman_step() -> None:
    module, batch = make(meta_lr=0.05, bellman_lr=0.01), minibatch()
    before = dict(state(module.critic))
    torch.manual_seed(5)
    module.precondition(batch)
    torch.manual_seed(5)
    next_action = 2.0 * torch.rand_like(batch.action) - 1.0
    sarsa = SarsaBatch(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, next_action)
    meta = meta_gradient(module.critic, before, sarsa, OBJECTIVE, torch.default_generator, 0.99, 0.01)
    for name, value in module.critic.state_dict().items():
        assert torch.equal(value, before[name] - 0.05 * meta.gradient[name])
    assert not torch.equal(module.critic.trunk[0].weight, before["trunk.0.weight"])
    assert all(parameter.grad is None for parameter in module.critic.parameters())


def test_a_meta_update_keeps_full_precision_under_bf16() -> None:
    critics = []
    for enabled in (False, True):
        module, batch = make(), minibatch()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            module.precondition(batch)
        critics.append(state(module.critic))
    assert same(*critics)


def test_the_first_phase_moves_the_critics_only_and_ends_with_fresh_targets(tmp_path: Path) -> None:
    module = make()
    before = state(module)
    fit(module, tmp_path, 8, epochs=1)  # all of the epoch
    assert module.meta_updates == 8
    after = state(module)
    assert same({k: v for k, v in before.items() if k.startswith("actor")}, after)
    assert torch.equal(before["log_temperature"], after["log_temperature"])
    assert not torch.equal(before["critic.trunk.0.weight"], after["critic.trunk.0.weight"])
    assert module.updates == 0
    again = make(polyak=1e-9)
    fit(again, tmp_path / "again", 8, 2, tmp_path / "checkpoints" / "last.ckpt")
    for name, value in again.target_critic.state_dict().items():  # copied when SAC began; polyak is almost 0
        torch.testing.assert_close(value, after[f"critic.{name}"], rtol=0, atol=1e-7)
    assert {"train/meta_objective", "train/bellman_loss"} <= module.latest_metrics.keys()


def test_the_second_phase_is_sac(tmp_path: Path) -> None:
    module = make()
    before = state(module.actor)
    fit(module, tmp_path, 4, epochs=1)
    assert (module.meta_updates, module.updates) == (4, 4)
    assert not same(before, state(module.actor))
    assert {"train/meta_objective", "train/critic_loss"} <= module.latest_metrics.keys()


def test_a_block_belongs_to_the_phase_it_begins_in(tmp_path: Path) -> None:
    module = make()
    fit(module, tmp_path, 3, epochs=1)
    assert (module.meta_updates, module.updates) == (4, 4)  # blocks of two updates


@pytest.mark.parametrize("keep", [True, False])
def test_random_transitions_stay_or_are_forgotten(keep: bool, tmp_path: Path) -> None:
    module = make()
    replay = fit(module, tmp_path, 4, epochs=1, keep_warmup=keep).datamodule.replay
    # 10 of the warm-up and 8 steps, or the 10 of another warm-up after 2 blocks and the 4 steps of 2 more blocks.
    assert replay.size == (18 if keep else 14)
    assert module.env_steps == (18 if keep else 28)
    uniform = 2.0 * torch.rand(10, 1, generator=cpu_generator(derive_seed(0, 0, Stream.COLLECT))) - 1.0  # as drawn
    assert torch.equal(replay.storage.action[:10], uniform) is keep


def test_a_resumed_run_with_fewer_updates_ends_the_phase_and_nothing_brings_it_back(tmp_path: Path) -> None:
    fit(make(), tmp_path, 100, epochs=1)
    module = make(polyak=1e-9)
    data = fit(module, tmp_path / "fewer", 4, 2, tmp_path / "checkpoints" / "last.ckpt", keep_warmup=False).datamodule
    assert (module.meta_updates, module.updates, data.replay.size) == (8, 8, 18)
    critic = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in module.target_critic.state_dict().items():  # copied when the phase ended; polyak is almost 0
        torch.testing.assert_close(value, critic[f"critic.{name}"], rtol=0, atol=1e-7)
    more = make()
    fit(more, tmp_path / "more", 1000, 3, tmp_path / "fewer" / "checkpoints" / "last.ckpt")
    assert (more.meta_updates, more.updates) == (8, 16)


def test_without_updates_in_the_warm_up_there_is_nothing_to_precondition_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.warmup_updates = 0 cannot be used: .* or train SAC"):
        fit(make(), tmp_path, 0)


def test_sac_learns_from_the_warm_up_too(tmp_path: Path) -> None:
    seed_everything(0)
    sac = SAC(3, 1, **NETWORKS)
    replay = fit(sac, tmp_path, 4, epochs=1).datamodule.replay
    assert sac.updates == 8
    generator = cpu_generator(derive_seed(0, 0, Stream.COLLECT))
    for action in replay.storage.action[:12]:  # 10 steps of the warm-up, 2 of the first block
        assert torch.equal(action, 2.0 * torch.rand(1, generator=generator) - 1.0)


def test_a_diverging_objective_stops_and_the_run_goes_on_from_the_last_epoch(tmp_path: Path) -> None:
    module = make(objective=Eq10(Layerwise()), meta_lr=0.3)
    with pytest.raises(DivergenceError, match=r"meta-update \d+ would leave critics .* model.meta_lr \(now 0\.3\)"):
        fit(module, tmp_path, 100, epochs=20)
    files = {name: tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "diverged")}
    saved = {name: torch.load(file, weights_only=True) for name, file in files.items()}
    done = {name: checkpoint["algorithm"]["counters"]["meta_updates"] for name, checkpoint in saved.items()}
    assert done["diverged"] == module.meta_updates
    assert 0 < done["last"] < done["diverged"]
    critic = {k: v for k, v in saved["diverged"]["state_dict"].items() if k.startswith("critic")}
    assert all(v.isfinite().all() for v in critic.values())
    assert same(critic, state(module))
    again = make(objective=LogCosine(), meta_lr=0.02)
    fit(again, tmp_path, 100, 20, files["last"])
    assert again.updates > 0


def test_critics_destroyed_by_the_only_meta_update_are_not_what_is_saved(tmp_path: Path) -> None:
    module = make(objective=Eq14Printed(JVP(directions=4)), meta_lr=1.0)
    before = state(module)
    with pytest.raises(DivergenceError, match="meta-update 2 would leave critics"):
        fit(module, tmp_path, 1, updates_per_block=1)
    assert module.updates == 0
    assert same(before, state(module))
    saved = tmp_path / "checkpoints" / "diverged.ckpt"  # there is no other: it was the first epoch
    assert same(before, torch.load(saved, weights_only=True)["state_dict"])
    again = make(objective=LogCosine(), meta_lr=0.02)
    fit(again, tmp_path, 3, ckpt_path=saved, updates_per_block=1)
    assert again.updates > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta_lr": -0.1}, r"model.meta_lr = -0\.1"),
        ({"meta_lr": float("inf")}, r"model.meta_lr = inf"),
        ({"bellman_lr": float("nan")}, "model.bellman_lr = nan"),
        ({"gamma": 2.0}, r"model.gamma = 2\.0"),
    ],
)
def test_impossible_settings_are_refused_by_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_step_sizes_of_the_first_phase_may_be_zero() -> None:
    module = make(meta_lr=0.0, bellman_lr=0.0)
    assert (module.meta_lr, module.bellman_lr) == (0.0, 0.0)
