"""`fit 2n` equals `fit n; resume; fit n`, bit for bit, for every algorithm and every kind of interruption."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from oracles import assert_same

from lit_metarl.algorithms import (
    LVC,
    MAML,
    PEARL,
    SAC,
    SGMRL,
    TD3,
    TMAML,
    TRPOMAML,
    ActorCritic,
    Algorithm,
    MetaPolicyGradient,
    PreconditionedSAC,
    ProMP,
)
from lit_metarl.callbacks import RunCheckpoint, RunRecord
from lit_metarl.data import ReplayDataModule, TaskReplayDataModule, TrajectoryDataModule
from lit_metarl.data.experience import ExperienceDataModule
from lit_metarl.envs.base import EnvFactory
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.envs.navigation import Navigation2D, PointRobot, SparsePointRobot
from lit_metarl.envs.suite import DMControl
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.nn import (
    DeterministicMLP,
    EnsembleCriticMLP,
    GaussianMLP,
    HyperActor,
    HyperCritic,
    HyperGaussian,
    MetaLearned,
    PolicyFactory,
    ProductOfGaussians,
    TanhGaussianMLP,
)
from lit_metarl.optim import PPO, TRPO, VPG, LeaveOneOut, OuterUpdate
from lit_metarl.tracking import MLflowLogger, connect
from lit_metarl.types import ConfigError, Interrupted


def make_sac(
    env: EnvFactory, cls: type[ActorCritic] = SAC, data: dict[str, Any] | None = None, **kwargs: Any
) -> tuple[ActorCritic, ReplayDataModule]:
    settings = {
        "num_envs": 2,
        "batch_size": 8,
        "capacity": 45,  # the ring wraps during the run
        "warmup_steps": 10,
        "updates_per_block": 3,
        "steps_per_block": 2,
        "epoch_steps": 24,
        "eval_episodes": 2,
    }
    datamodule = ReplayDataModule(env, **settings | (data or {}))
    seed_everything(0)
    own = (
        {"actor": DeterministicMLP([16])} if cls is TD3 else {"actor": TanhGaussianMLP([16]), "target_update_every": 2}
    )
    networks = {"critic": EnsembleCriticMLP([16])} | own
    return cls(datamodule.obs_dim, datamodule.action_dim, **networks | kwargs), datamodule


def make_meta(
    cls: type[MetaPolicyGradient],
    env: TaskFamily,
    data: dict[str, Any] | None = None,
    policy: PolicyFactory | None = None,
    **kwargs: Any,
) -> tuple[MetaPolicyGradient, TrajectoryDataModule]:
    settings = {"num_tasks": 2, "trajectories": 3, "epoch_iterations": 3, "eval_tasks": 2, "test_tasks": 2}
    datamodule = TrajectoryDataModule(env, **settings | (data or {}))
    seed_everything(0)
    sizes = datamodule.obs_dim, datamodule.action_dim, datamodule.num_actions
    told = {"context_dim": datamodule.context_dim, "action_scale": datamodule.action_scale}
    return cls(*sizes, policy or GaussianMLP((8,)), **kwargs | told), datamodule


def make_pearl(
    env: TaskFamily, data: dict[str, Any] | None = None, **networks: Any
) -> tuple[PEARL, TaskReplayDataModule]:
    numbers = {"train_tasks": 4, "num_tasks": 3, "meta_batch": 2, "eval_tasks": 2, "test_tasks": 2}
    steps = {"initial_steps": 10, "prior_steps": 10, "posterior_steps": 5, "extra_steps": 10}
    draws = {"batch_size": 6, "context_size": 5, "updates_per_iteration": 6, "updates_per_block": 2}
    datamodule = TaskReplayDataModule(env, **numbers | steps | draws | {"capacity": 60} | (data or {}))
    seed_everything(0)
    told = {"context_dim": datamodule.context_dim, "action_scale": datamodule.action_scale}
    own = {"actor": TanhGaussianMLP([8]), "critic": EnsembleCriticMLP([8]), "target_update_every": 2}
    return PEARL(datamodule.obs_dim, datamodule.action_dim, **own | networks | told), datamodule


def hyper_pearl() -> dict[str, Any]:
    size: dict[str, Any] = {"hidden": (6,), "widths": (8,), "blocks": 1}
    critic = {"meta": ("obs",), "base": ("action", "context")} | size
    networks = {"actor": HyperActor(**size), "critic": HyperCritic(**critic)}
    return networks | {"value": HyperCritic(members=1, **critic), "encoder": ProductOfGaussians(hidden=[8])}


NAVIGATION = Navigation2D(max_episode_steps=8)
CASES: dict[str, Callable[[], tuple[Algorithm, ExperienceDataModule]]] = {
    "SAC-mujoco": partial(make_sac, MuJoCo("half_cheetah", max_episode_steps=7, threads=1)),
    "SAC-mujoco_terminating": partial(make_sac, MuJoCo("hopper", max_episode_steps=50, threads=1)),
    "SAC-dm_control": partial(make_sac, DMControl("reacher/easy")),
    "SAC-gymnasium": partial(make_sac, Gymnasium("Pendulum-v1")),
    # three updates in a block, the actor at every second
    "TD3-mujoco": partial(make_sac, MuJoCo("half_cheetah", max_episode_steps=7, threads=1), TD3),
    # 72 updates in all; interrupted between the 18th and the 36th
    "PreconditionedSAC-first_phase": partial(
        make_sac, Gymnasium("Pendulum-v1"), PreconditionedSAC, {"warmup_updates": 48}
    ),
    "PreconditionedSAC-second_phase": partial(
        make_sac, Gymnasium("Pendulum-v1"), PreconditionedSAC, {"warmup_updates": 10}
    ),
    "PreconditionedSAC-hypernetwork": partial(
        make_sac,
        Gymnasium("Pendulum-v1"),
        PreconditionedSAC,
        {"warmup_updates": 22},
        critic=HyperCritic(hidden=(6,), widths=(8,), blocks=1),
        share_weights=True,
    ),
    "PreconditionedSAC-forgetting": partial(
        make_sac,
        Gymnasium("Pendulum-v1"),
        PreconditionedSAC,
        {"warmup_updates": 22, "keep_warmup": False},
    ),
    "PEARL": partial(make_pearl, PointRobot(max_episode_steps=5)),
    "PEARL-hypernetwork": partial(
        make_pearl, SparsePointRobot(max_episode_steps=5), {"shaped_rewards": True}, **hyper_pearl()
    ),
    "PEARL-oracle-mujoco": partial(
        make_pearl, Direction("walker2d", max_episode_steps=60, threads=1), {"oracle_context": True}
    ),
    "MAML": partial(make_meta, MAML, NAVIGATION),
    "SGMRL": partial(make_meta, SGMRL, NAVIGATION, correction=LeaveOneOut()),
    "ProMP": partial(make_meta, ProMP, NAVIGATION, outer=PPO(epochs=2, adaptive_kl=True)),
    "TRPOMAML": partial(make_meta, TRPOMAML, NAVIGATION, {"adaptation_steps": 2}, learn_inner_lr=True),
    "Hyper-MAML": partial(
        make_meta, TRPOMAML, NAVIGATION, {"oracle_context": True}, policy=HyperGaussian((6,), widths=(8,), blocks=1)
    ),
    "TMAML": partial(make_meta, TMAML, NAVIGATION, {"train_tasks": 3, "oracle_context": True}),
    "TMAML-meta_baseline": partial(make_meta, TMAML, NAVIGATION, baseline=MetaLearned((8,), updates=2)),
    "ProMP-mujoco": partial(make_meta, ProMP, Direction(max_episode_steps=5, threads=1)),
    "LVC-mujoco_terminating": partial(
        make_meta, LVC, Direction("walker2d", max_episode_steps=60, threads=1), {"action_scale": 1.0}
    ),
}


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


def whole_run(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint that the future depends on: all but run id, config and wall-clock."""
    checkpoint = load(path)
    (datamodule,) = (key for key in checkpoint if key.endswith("DataModule"))
    return {
        key: checkpoint[key]
        for key in ("state_dict", "optimizer_states", datamodule, "algorithm", "epoch", "global_step")
    }


def metrics_of(root: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = connect(root)
    names = client.get_run(run_id).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all runs: making one takes longer than a run."""
    return tmp_path_factory.mktemp("mlruns")


class Straight(NamedTuple):
    """What a run of four epochs without interruption leaves."""

    checkpoint: dict[str, Any]
    metrics: dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def straight(root: Path) -> Callable[[str], Straight]:
    """Case → its straight run, made once."""

    @cache
    def run(case: str) -> Straight:
        trainer = make_trainer(root, 4)
        trainer.fit(*CASES[case]())
        logger = trainer.logger
        return Straight(whole_run(logger.run_dir / "last.ckpt"), metrics_of(root, logger.run_id))

    return run


@pytest.mark.parametrize(
    ("case", "interrupted_at"),  # at the end of the second epoch, or at this batch of it
    [
        (case, at)
        for case in CASES
        for at in (
            "end",
            *((0, 2, 3) if "SAC" in case or case.startswith("TD3") else (1, 2) if case == "PEARL" else (1,)),
        )
    ],
)
def test_resumed_run_equals_straight_run(
    case: str, interrupted_at: str | int, straight: Callable[[str], Straight], root: Path
) -> None:
    make = CASES[case]
    first = make_trainer(root, 2)
    if interrupted_at == "end":
        first.fit(*make())
        checkpoint = first.logger.run_dir / "last.ckpt"
    else:
        checkpoint = stop_within_epoch(first, *make(), interrupted_at)
    torch.manual_seed(12345)  # the resumed process starts from whatever the global streams are
    second = make_trainer(root, 4, run_id=first.logger.run_id)
    second.fit(*make(), ckpt_path=checkpoint)

    assert second.logger.run_id == first.logger.run_id
    assert_same(straight(case).checkpoint, whole_run(second.logger.run_dir / "last.ckpt"))
    assert straight(case).metrics == metrics_of(root, second.logger.run_id)


def test_the_runs_have_what_resume_could_lose(straight: Callable[[str], Straight]) -> None:
    assert straight("ProMP").checkpoint["algorithm"]["counters"]["outer"][1]["penalties"] != [PPO().kl_penalty]
    assert not (straight("TRPOMAML").checkpoint["state_dict"]["learned_step_sizes.log_std"] == 0.1).any()
    assert min(length for _, length in straight("LVC-mujoco_terminating").metrics["train/episode_length"]) < 60


def stop_within_epoch(trainer: Trainer, module: Algorithm, datamodule: ExperienceDataModule, at: int) -> Path:
    """Stop in the second epoch, as Ctrl-C during batch ``at`` does."""
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))
    original = module.training_step

    def interrupting(batch: Any, batch_idx: int) -> None:
        original(batch, batch_idx)
        if trainer.current_epoch == 1 and batch_idx == at:
            checkpoint.signals.note(signal.SIGINT, None)

    module.training_step = interrupting
    with pytest.raises(Interrupted, match=r"stopped by SIGINT at .* environment steps; .*last\.ckpt is of step"):
        trainer.fit(module, datamodule)
    assert connect(trainer.logger.save_dir).get_run(trainer.logger.run_id).info.status == "KILLED"
    return trainer.logger.run_dir / "last.ckpt"


@pytest.mark.parametrize("case", ["SAC-gymnasium", "ProMP"])
def test_a_run_that_stops_early_goes_on_within_the_epoch(
    case: str, straight: Callable[[str], Straight], root: Path
) -> None:
    """What ``max_time``, EarlyStopping and others do: the stub of an epoch is not taken for a whole one."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.current_epoch == 1

    first = make_trainer(root, 4)
    first.callbacks.insert(0, Stop())
    first.fit(*CASES[case]())
    stub = load(first.logger.run_dir / "last.ckpt")
    assert stub["epoch"] == 1
    assert stub["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 1
    second = make_trainer(root, 4, run_id=first.logger.run_id)
    second.fit(*CASES[case](), ckpt_path=first.logger.run_dir / "last.ckpt")
    assert_same(straight(case).checkpoint, whole_run(second.logger.run_dir / "last.ckpt"))
    assert straight(case).metrics == metrics_of(root, second.logger.run_id)


def test_a_periodic_checkpoint_within_an_epoch_is_exact(root: Path, tmp_path: Path) -> None:
    make = CASES["SAC-gymnasium"]
    straight = make_trainer(root, 2, every_n_batches=3)
    kept: list[bytes] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            path = trainer.logger.run_dir / "last.ckpt"
            if path.exists() and len(kept) < 1:
                kept.append(path.read_bytes())

    straight.callbacks.append(Keep())
    straight.fit(*make())
    (tmp_path / "kept.ckpt").write_bytes(kept[0])
    assert load(tmp_path / "kept.ckpt")["algorithm"]["counters"]["updates"] == 9
    resumed = make_trainer(root, 2)
    resumed.fit(*make(), ckpt_path=tmp_path / "kept.ckpt")
    assert_same(whole_run(straight.logger.run_dir / "last.ckpt"), whole_run(resumed.logger.run_dir / "last.ckpt"))


def test_a_checkpoint_without_this_datamodules_state_is_refused(root: Path) -> None:
    class Renamed(ReplayDataModule):
        """Lightning looks for its state under another name."""

    first = make_trainer(root, 1)
    first.fit(*make_sac(Gymnasium("Pendulum-v1")))
    module, datamodule = make_sac(Gymnasium("Pendulum-v1"))
    datamodule.__class__ = Renamed
    again, file = make_trainer(root, 2, first.logger.run_id), first.logger.run_dir / "last.ckpt"
    with pytest.raises(ConfigError, match=r"data = 'test_a_.*Renamed' cannot be used: the checkpoint holds no state"):
        again.fit(module, datamodule=datamodule, ckpt_path=file)


def test_another_number_of_evaluation_episodes_starts_them_afresh(root: Path) -> None:
    first, env = make_trainer(root, 1), Gymnasium("Pendulum-v1")
    first.fit(*make_sac(env))
    module, datamodule = make_sac(env, data={"eval_episodes": 4})
    second = make_trainer(root, 2, first.logger.run_id)
    second.fit(module, datamodule=datamodule, ckpt_path=first.logger.run_dir / "last.ckpt")
    assert len(metrics_of(root, first.logger.run_id)["eval/return"]) == 2


ADAM, SGD = VPG(), VPG(optimizer_class="SGD", optimizer_args={"momentum": 0.9})


@pytest.mark.parametrize(
    ("before", "after", "was", "states"),  # keys of each optimizer's state of a parameter, the baseline's last
    [
        (ADAM, TRPO(), "VPG with Adam: TRPO", [{"step", "exp_avg", "exp_avg_sq"}]),
        (ADAM, SGD, "VPG with Adam: VPG with SGD", [{"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}]),
        (SGD, PPO(epochs=1), "VPG with SGD: PPO", [{"step", "exp_avg", "exp_avg_sq"}] * 2),
        (ADAM, PPO(epochs=1), "VPG with Adam: PPO", [{"step", "exp_avg", "exp_avg_sq"}] * 2),
        (TRPO(), ADAM, "TRPO: VPG with Adam", [{"step", "exp_avg", "exp_avg_sq"}] * 2),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
def test_another_outer_update_starts_afresh_and_the_baseline_goes_on(
    before: OuterUpdate, after: OuterUpdate, was: str, states: list[set[str]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def train(epochs: int, outer: OuterUpdate, **resume: Any) -> dict[str, Any]:
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[RunCheckpoint()], default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, inference_mode=False,
        )  # fmt: skip
        baseline = MetaLearned((4,), updates=2)
        trainer.fit(*make_meta(MAML, NAVIGATION, {"epoch_iterations": 1}, outer=outer, baseline=baseline), **resume)
        return load(tmp_path / "checkpoints" / "last.ckpt")

    train(2, before)
    resumed = train(3, after, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert f"model.outer was {was} starts without its state" in caplog.text
    found = resumed["optimizer_states"]
    assert [set(each["state"][0]) for each in found] == states
    steps = [float(each["state"][0].get("step", 1)) for each in found]  # of one epoch, and of three
    assert steps == [*[1.0] * (len(found) - 1), 2.0 * 3]
