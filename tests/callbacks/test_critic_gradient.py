"""The monitor of critics' gradients: right where the gradient is known in closed form, and no trace in the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_metarl.algorithms import MAML, SAC, TD3, ActorCritic
from lit_metarl.callbacks import CriticGradientMonitor, GradientProtocol
from lit_metarl.callbacks.critic_gradient import measure
from lit_metarl.data import ReplayDataModule, TrajectoryDataModule
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.linear_quadratic import LinearQuadratic, action_gradient
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.reports.studies.critic_gradient import GAIN, GAMMA, linear_world
from lit_metarl.types import ConfigError

TINY = GradientProtocol(states=2, actions=4, repeats=1, horizon=3, spread=4)


@pytest.mark.parametrize("source", ["policy", "exploration", "random", "replay"])
def test_of_an_exact_critic_it_is_right(source: str) -> None:
    module, factory = linear_world()
    protocol = GradientProtocol(noise=0.02, repeats=1, horizon=30, spread=5, source=source)
    found = measure(module, factory, protocol, torch.from_numpy(factory.make(50, 1).reset()).float())
    size = found.critic.norm(dim=-1)
    assert (found.fitted - found.critic).norm(dim=-1).max() < 0.03 * size.mean()
    metrics = found.metrics()
    assert metrics["cosine"] > 0.999
    assert metrics["r_squared"] > 0.999
    assert metrics["above_three_quarters"] == 1.0


def test_the_critics_gradient_is_that_at_the_policys_action() -> None:
    module, factory = linear_world()
    measured = measure(module, factory, TINY)
    env = factory.make(TINY.states, TINY.seed)
    steps, gain = np.random.default_rng(TINY.seed).integers(TINY.spread, size=TINY.states), np.array(GAIN)
    state = env.reset()
    for step in range(steps.max() + 1):
        begins = steps == steps.max() - step
        state = env.reset(begins) if begins.any() and step else state
        if step < steps.max():
            state = env.step((-state @ gain.T).astype(np.float32)).obs
    expected = action_gradient(state, -state @ gain.T, gain, GAMMA)
    np.testing.assert_allclose(measured.critic, expected, atol=1e-5)


def test_a_wrong_critic_is_found_out_and_repeated_actions_are_another_question() -> None:
    module, factory = linear_world()
    protocol = GradientProtocol(noise=0.02, repeats=1, horizon=30, spread=5)
    exact = measure(module, factory, protocol)
    original = module.critic.forward
    module.critic.forward = lambda obs, action: -original(obs, action)
    assert measure(module, factory, protocol).metrics()["cosine"] < -0.999
    module.critic.forward = original
    repeated = measure(module, factory, GradientProtocol(noise=0.02, repeats=3, horizon=30, spread=5))
    lengths = [float(found.fitted.norm(dim=-1).mean()) for found in (exact, repeated)]
    assert lengths[1] > 2.0 * lengths[0]  # of three pushes


def make(cls: type[ActorCritic]) -> tuple[ActorCritic, ReplayDataModule]:
    seed_everything(0)
    data = ReplayDataModule(
        Gymnasium("Pendulum-v1"), batch_size=4, capacity=100, warmup_steps=5, epoch_steps=4, eval_episodes=1
    )
    actor = TanhGaussianMLP([8]) if cls is SAC else DeterministicMLP([8])
    return cls(3, 1, actor, EnsembleCriticMLP([8])), data


def fit(module: Any, datamodule: Any, folder: Path, callbacks: list[Any], epochs: int = 3) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule)


@pytest.mark.parametrize("cls", [SAC, TD3])
def test_it_logs_at_its_epochs_and_changes_nothing(cls: type[ActorCritic], tmp_path: Path) -> None:
    watched, datamodule = make(cls)
    points, original = [], watched.log_points
    watched.log_points = lambda metrics: (points.append((watched.env_steps, dict(metrics))), original(metrics))
    fit(watched, datamodule, tmp_path, [CriticGradientMonitor(2, TINY)])
    logged = [(step, metrics) for step, metrics in points if "critic_gradient/cosine" in metrics]
    assert [step for step, _ in logged] == [0, 13]  # 5 random steps, 4 an epoch
    assert logged[0][1].keys() == {
        f"critic_gradient/{name}" for name in ("cosine", "above_quarter", "above_three_quarters", "r_squared")
    }
    alone, datamodule = make(cls)
    fit(alone, datamodule, tmp_path, [])
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in watched.critic.parameters())


def test_states_of_the_replay_are_those_that_it_holds(tmp_path: Path) -> None:
    module, _ = linear_world()
    datamodule = ReplayDataModule(LinearQuadratic(), batch_size=4, warmup_steps=5, epoch_steps=4, eval_episodes=1)
    points, module.configure_optimizers = [], lambda: []
    module.update = lambda batch: {}  # the exact critic and its policy have no parameters
    module.log_points = lambda metrics: points.append((module.env_steps, dict(metrics)))
    protocol = replace(TINY, source="replay")
    fit(module, datamodule, tmp_path, [CriticGradientMonitor(2, protocol)])
    logged = [(step, metrics) for step, metrics in points if "critic_gradient/cosine" in metrics]
    assert [step for step, _ in logged] == [13]  # before training there is no replay
    at_the_time, at_the_end = (
        measure(module, LinearQuadratic(), protocol, datamodule.replay.storage.obs[:size]).metrics()
        for size in (13, 17)
    )
    assert logged[0][1] == {f"critic_gradient/{name}": value for name, value in at_the_time.items()}
    assert at_the_time != at_the_end


def test_a_replay_that_does_not_tell_states_is_refused_before_training(tmp_path: Path) -> None:
    module, datamodule = make(TD3)
    message = "source = 'replay' cannot be used: observations of gym/Pendulum-v1 do not tell the simulator's state"
    with pytest.raises(ConfigError, match=message):
        fit(module, datamodule, tmp_path, [CriticGradientMonitor(2, replace(TINY, source="replay"))])


def test_the_bonus_of_sac_is_the_entropys() -> None:
    module, _ = make(SAC)
    obs, noise = torch.randn(2, 3, 3), torch.randn(2, 3, 1)
    action, bonus = module.evaluated_action(obs, noise)
    sample, log_prob = module.actor(obs).sample(noise)
    assert torch.equal(action, sample)
    torch.testing.assert_close(bonus, -0.1 * log_prob)
    plain, none = make(TD3)[0].evaluated_action(obs, noise)
    assert torch.equal(plain, make(TD3)[0].act(obs))
    assert not none.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": 0}, "states = 0 cannot be used: it must be at least 1"),
        ({"actions": 2}, "actions = 2 cannot be used: a fit needs at least 3"),
        ({"noise": 0.0}, "noise = 0.0 cannot be used: it must be positive"),
        ({"noise": float("inf")}, "noise = inf cannot be used: it must be positive and finite"),
        ({"seed": -1}, "seed = -1 cannot be used: seeds are non-negative integers"),
        ({"horizon": 2}, "horizon = 2 cannot be used: an action is taken for 3 steps"),
        ({"source": "a"}, "source = 'a' cannot be used: choose from policy, exploration, random, replay"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GradientProtocol(**settings)


def test_a_module_without_a_critic_of_actions_is_refused(tmp_path: Path) -> None:
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=2), num_tasks=1, trajectories=1)
    with pytest.raises(ConfigError, match=r"CriticGradientMonitor = 'MAML' cannot be used"):
        fit(MAML(2, 2), datamodule, tmp_path, [CriticGradientMonitor()])
