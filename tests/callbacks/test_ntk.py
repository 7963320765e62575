"""The kernel monitor: the same inputs everywhere, the kernel of the critic as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_metarl.algorithms import MAML, PEARL, SAC, TD3, ActorCritic
from lit_metarl.callbacks import NTKMonitor
from lit_metarl.callbacks.ntk import random_inputs
from lit_metarl.data import ReplayDataModule, TaskReplayDataModule, TrajectoryDataModule
from lit_metarl.diagnostics.kernels import exact_kernel
from lit_metarl.diagnostics.ntk import ntk_ratio
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.types import ConfigError

ENV = Gymnasium("Pendulum-v1")


class Points(list):
    """What was logged: a logger of two lines."""

    def __init__(self, module: ActorCritic) -> None:
        super().__init__()
        original = module.log_points
        module.log_points = lambda metrics: (self.append((module.env_steps, dict(metrics))), original(metrics))


def fit(module: Any, datamodule: Any, monitor: NTKMonitor, folder: Path, epochs: int = 2) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[monitor],
        default_root_dir=folder,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule)


def make(cls: type[ActorCritic] = SAC) -> tuple[ActorCritic, ReplayDataModule]:
    seed_everything(0)
    datamodule = ReplayDataModule(ENV, batch_size=4, capacity=100, warmup_steps=5, epoch_steps=4, eval_episodes=1)
    return cls(3, 1, TanhGaussianMLP([8]), EnsembleCriticMLP([8])), datamodule


@pytest.mark.parametrize("cls", [SAC, TD3])
def test_it_logs_the_kernel_of_the_critic_at_its_environment_steps(cls: type[ActorCritic], tmp_path: Path) -> None:
    module, datamodule = make(cls)
    inputs = random_inputs(ENV, 6, 3, 0)
    before = exact_kernel(module.critic, dict(module.critic.named_parameters()), *inputs)
    points = Points(module)
    fit(module, datamodule, NTKMonitor(samples=6, spacing=3), tmp_path)
    after = exact_kernel(module.critic, dict(module.critic.named_parameters()), *inputs)
    kernels = [(step, metrics) for step, metrics in points if "ntk/ratio" in metrics]
    assert [step for step, _ in kernels] == [0, 9, 13]  # 5 random steps, then 4 an epoch
    assert kernels[0][1]["ntk/ratio"] == pytest.approx(float(ntk_ratio(before).mean()))
    assert kernels[-1][1]["ntk/ratio"] == pytest.approx(float(ntk_ratio(after).mean()))
    assert kernels[-1][1]["ntk/diagonal"] == pytest.approx(float(after.diagonal(dim1=1, dim2=2).mean()))
    assert kernels[0][1]["ntk/ratio"] != kernels[-1][1]["ntk/ratio"]


def test_it_measures_at_the_start_and_after_every_so_many_epochs(tmp_path: Path) -> None:
    module, datamodule = make()
    points = Points(module)
    fit(module, datamodule, NTKMonitor(samples=2, every_n_epochs=2), tmp_path, epochs=5)
    assert [step for step, metrics in points if "ntk/ratio" in metrics] == [0, 13, 21]  # 5 random steps, 4 an epoch


def test_the_inputs_depend_on_nothing_but_environment_and_seed() -> None:
    one, two, other = random_inputs(ENV, 5, 2, 0), random_inputs(ENV, 5, 2, 0), random_inputs(ENV, 5, 2, 1)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (5, 3)
    action = random_inputs(ENV, 40, 1, 0)[1]
    assert -1.0 <= action.min() < -0.8
    assert 0.8 < action.max() <= 1.0
    assert len(one[0].unique(dim=0)) == 5
    assert len(random_inputs(Navigation2D(max_episode_steps=3), 5, 2, 0)[0]) == 5  # beyond the end of an episode


def test_the_monitor_changes_nothing(tmp_path: Path) -> None:
    watched, datamodule = make()
    fit(watched, datamodule, NTKMonitor(samples=4), tmp_path)
    alone, datamodule = make()
    fit(alone, datamodule, NTKMonitor(samples=2, every_n_epochs=9), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_a_module_without_a_critic_is_refused(tmp_path: Path) -> None:
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=2), num_tasks=1, trajectories=1)
    with pytest.raises(ConfigError, match=r"NTKMonitor = 'MAML' .* no critic"):
        fit(MAML(2, 2), datamodule, NTKMonitor(), tmp_path)
    tasks = TaskReplayDataModule(Navigation2D(max_episode_steps=2), train_tasks=2, num_tasks=1, meta_batch=1)
    with pytest.raises(ConfigError, match=r"NTKMonitor = 'PEARL' cannot be used: its critic is told a task"):
        fit(PEARL(2, 2), tasks, NTKMonitor(), tmp_path)


@pytest.mark.parametrize(("key", "least"), [("samples", 2), ("every_n_epochs", 1), ("spacing", 1), ("seed", 0)])
def test_the_least_of_each_setting(key: str, least: int) -> None:
    with pytest.raises(ConfigError, match=rf"NTKMonitor\.{key} = {least - 1}"):
        NTKMonitor(**{key: least - 1})
    assert getattr(NTKMonitor(**{key: least}), key) == least
