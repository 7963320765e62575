"""The replay DataModule: no policy lag, warm-up, streams, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from meta_cases import attach
from torch import Tensor, nn

from lit_metarl.algorithms import SAC
from lit_metarl.data import ReplayDataModule
from lit_metarl.data.collector import Collector, run_episodes
from lit_metarl.envs import points
from lit_metarl.envs.base import EnvError
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.suite import DMControl
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.types import ConfigError, DivergenceError, ReplayBlock

CHEETAH = MuJoCo("half_cheetah", max_episode_steps=20, threads=1)


@dataclass(frozen=True)
class Watched(MuJoCo):
    """Keeps count of simulators that were not closed."""

    opened: ClassVar[list[Any]] = []

    def make(self, num_envs: int, seed: int) -> Any:
        env = super().make(num_envs, seed)
        self.opened.append(env)
        env.close = lambda: self.opened.remove(env)  # type: ignore[method-assign]
        return env


class Endless:
    """Says that its episodes end after three steps, but never ends one."""

    def __init__(self) -> None:
        env = CHEETAH.make(1, seed=0)
        self.num_envs, self.spec, self.reset = 1, replace(env.spec, max_episode_steps=3), env.reset
        self.step, self.steps = env.step, 0

    def counted(self, obs: Tensor) -> Tensor:
        self.steps += 1
        return torch.zeros(1, 6)


class Counting(LightningModule):
    """A policy whose action tells how many updates it has had."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(()))
        self.updates = 0
        self.blocks: list[ReplayBlock] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full((len(obs), 6), self.updates / 1000)

    def act(self, obs: Tensor) -> Tensor:
        return torch.randn(len(obs), 6).clamp(-1, 1)  # a policy that draws from the global stream

    def diverged(self, what: str) -> DivergenceError:
        return DivergenceError(what)

    def training_step(self, batch: ReplayBlock, batch_idx: int) -> None:
        self.blocks.append(batch)
        self.updates += 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("eval/return", batch.returns.mean(), batch_size=1)


class Looking(Counting):
    """Keeps what the replay held at each update."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[Tensor] = []

    def training_step(self, batch: ReplayBlock, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        replay = self.trainer.datamodule.replay
        self.stored.append(replay.storage.obs[: replay.size].clone())


def train(
    evaluate: bool = True, module: Counting | None = None, env: MuJoCo = CHEETAH, **settings: Any
) -> tuple[Any, ReplayDataModule]:
    data = {"num_envs": 1, "batch_size": 4, "capacity": 200, "warmup_steps": 5, "epoch_steps": 10, "eval_episodes": 2}
    module, datamodule = module or Counting(), ReplayDataModule(env, **(data | settings))
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1 if evaluate else 0,
    ).fit(module, datamodule)
    return module, datamodule


def test_every_step_is_taken_by_the_newest_policy() -> None:
    _, datamodule = train()
    actions = datamodule.replay.storage.action[: datamodule.replay.size, 0]
    assert torch.equal(actions[5:], torch.arange(20) / 1000)  # a lag of one would start 0, 0, 1, …


def test_warm_up_acts_uniformly_and_once() -> None:
    module, datamodule = train(warmup_steps=100, epoch_steps=10)
    warm = datamodule.replay.storage.action[:100]
    assert datamodule.env_steps == 120
    assert warm.min() >= -1
    assert warm.max() <= 1
    assert warm.mean().abs() < 0.1
    assert warm.std() == pytest.approx(1 / 3**0.5, abs=0.05)
    assert module.blocks[0].env_steps == 101


def test_an_update_draws_from_what_was_stored_before_its_step_also_after_forgetting() -> None:
    settings = {"updates_per_block": 4, "steps_per_block": 2, "epoch_steps": 4, "batch_size": 200}
    module, datamodule = train(module=Looking(), warmup_updates=5, keep_warmup=False, **settings)
    assert [block.warm_up for block in module.blocks] == [True, True, False, False]
    assert [len(stored) for stored in module.stored] == [7, 9, 7, 9]  # a warm-up of 5 and blocks of 2, twice
    assert [block.env_steps for block in module.blocks] == [7, 9, 16, 18]
    assert not torch.equal(module.stored[0], module.stored[2])
    for stored, block, before in zip(module.stored, module.blocks, [5, 7, 5, 7], strict=True):
        for drawn, available in zip(block.transitions.obs, [before, before, before + 1, before + 1], strict=True):
            assert torch.equal(drawn.unique(dim=0), stored[:available].unique(dim=0))
    assert datamodule.env_steps == 18


def test_blocks_have_the_asked_shape_and_account_for_every_step() -> None:
    module, _ = train(num_envs=2, updates_per_block=3, steps_per_block=5, epoch_steps=20)
    block = module.blocks[-1].transitions
    assert block.obs.shape == (3, 4, 17)
    assert block.action.shape == (3, 4, 6)
    assert block.reward.shape == block.terminated.shape == block.truncated.shape == (3, 4)
    assert [b.env_steps for b in module.blocks] == [6 + 10, 6 + 20, 6 + 30, 6 + 40]
    lengths = torch.cat([b.episode_lengths for b in module.blocks])
    assert lengths.tolist() == [20, 20]  # both environments, once each, in 23 steps


def test_truncated_steps_keep_their_true_successor() -> None:
    _, datamodule = train(epoch_steps=30)
    stored = datamodule.replay.storage
    (ends,) = torch.nonzero(stored.truncated, as_tuple=True)
    assert ends.tolist() == [19, 39, 59]
    assert not stored.terminated.any()
    inside = torch.arange(1, 60)[~torch.isin(torch.arange(1, 60), ends + 1)]
    assert torch.equal(stored.next_obs[inside - 1], stored.obs[inside])
    assert not torch.isclose(stored.next_obs[ends[:2]], stored.obs[ends[:2] + 1]).all(dim=1).any()


def test_the_seed_fixes_everything_collected() -> None:
    a, b, c = (train(seed=seed)[1].replay.storage.obs for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_episode_returns_are_sums_of_rewards() -> None:
    module, datamodule = train(epoch_steps=30)
    returns = torch.cat([b.episode_returns for b in module.blocks])
    rewards = datamodule.replay.storage.reward[:60].view(3, 20).sum(dim=1)
    torch.testing.assert_close(returns, rewards)


def test_evaluation_leaves_training_alone() -> None:
    with_evaluation = train()[1].replay.storage.obs
    without = train(evaluate=False)[1].replay.storage.obs
    assert torch.equal(with_evaluation, without)


def test_run_episodes_counts_each_environment_once() -> None:
    env = MuJoCo("hopper", max_episode_steps=50, threads=1).make(4, seed=3)
    generator = torch.Generator().manual_seed(0)
    actions: list[Tensor] = []

    def act(obs: Tensor) -> Tensor:
        actions.append(2 * torch.rand(len(obs), 3, generator=generator) - 1)
        return actions[-1]

    episodes = run_episodes(env, act)
    assert len(set(episodes.lengths.tolist())) > 1  # they fall at different times
    again = MuJoCo("hopper", max_episode_steps=50, threads=1).make(4, seed=3)
    again.reset()
    total, alive = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    for action in actions:
        result = again.step(action.numpy())
        total += torch.from_numpy(result.reward) * alive
        ended = result.terminated | result.truncated
        alive &= ~torch.from_numpy(ended)
        if ended.any():
            again.reset(ended)
    torch.testing.assert_close(episodes.returns, total.float())


def test_the_collector_resets_and_counts_each_environment_at_its_own_end() -> None:
    factory, generator = MuJoCo("hopper", max_episode_steps=50, threads=1), torch.Generator().manual_seed(0)
    collector, twin = Collector(factory.make(4, seed=3)), factory.make(4, seed=3)
    actions = 2 * torch.rand(120, 4, 3, generator=generator) - 1
    obs, returns, lengths, finished = twin.reset(), np.zeros(4), np.zeros(4), []
    for action in actions:
        seen = collector.step(lambda obs, action=action: action)
        result = twin.step(action.numpy())
        np.testing.assert_array_equal(seen.obs, obs.astype(np.float32))
        np.testing.assert_array_equal(seen.next_obs, result.obs.astype(np.float32))
        returns, lengths, ended = returns + result.reward, lengths + 1, result.terminated | result.truncated
        finished += [(returns[i], lengths[i]) for i in np.flatnonzero(ended)]
        returns[ended] = lengths[ended] = 0
        obs = twin.reset(ended)
    assert len({length for _, length in finished}) > 3
    own_returns, own_lengths = collector.pop_finished()
    assert own_lengths.tolist() == [length for _, length in finished]
    np.testing.assert_allclose(own_returns, [value for value, _ in finished], rtol=1e-6)
    assert not len(collector.pop_finished()[0])


def test_a_film_shows_one_episode_at_about_thirty_pictures_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "FRAME_DT", 0.01)
    datamodule = ReplayDataModule(Navigation2D(max_episode_steps=8), video_size=(32, 24))
    module = attach(SAC(2, 2, TanhGaussianMLP([4]), EnsembleCriticMLP([4])))
    datamodule.trainer = module.trainer
    film = datamodule.film()
    assert film.frames.shape == (3, 24, 32, 3)  # steps 0, 3 and 6
    assert film.frames_per_second == pytest.approx(100 / 3)
    assert film.lengths.tolist() == [8]
    datamodule.teardown("predict")
    assert datamodule._eval_env is None


def test_an_episode_that_does_not_end_is_given_up_at_its_limit() -> None:
    env: Any = Endless()
    with pytest.raises(EnvError, match="did not end within its 3 steps"):
        run_episodes(env, env.counted)
    assert env.steps == 3
    hopper = MuJoCo("hopper", max_episode_steps=50, threads=1).make(2, seed=3)
    hopper.spec = replace(hopper.spec, max_episode_steps=None)  # it ends by falling
    assert 1 < run_episodes(hopper, lambda obs: torch.zeros(2, 3)).lengths.min() <= 50


def test_every_simulator_is_closed() -> None:
    module, datamodule = train(env=Watched("half_cheetah", max_episode_steps=20, threads=1))
    assert not Watched.opened
    del datamodule.collector
    module.trainer.validate(module, datamodule, verbose=False)
    assert not hasattr(datamodule, "collector")  # which only training needs
    assert not Watched.opened


def test_a_value_that_is_not_finite_names_environment_and_step() -> None:
    env = CHEETAH.make(3, seed=0)
    collector = Collector(env)
    zero = lambda obs: torch.zeros(len(obs), 6)  # noqa: E731
    collector.step(zero)
    good_step = env.step

    def broken(action: Any) -> Any:
        result = good_step(action)
        result.reward[1] = float("nan")
        return result

    env.step = broken  # type: ignore[method-assign]
    with pytest.raises(
        EnvError, match="half_cheetah: environment 1, step 2 of its episode: the reward is not finite: nan"
    ):
        collector.step(zero)
    with pytest.raises(EnvError, match="evaluation environment 1, step 1 of its episode: the reward is not"):
        run_episodes(env, zero)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "data.num_envs = 0"),
        ({"batch_size": 0}, "data.batch_size = 0"),
        ({"warmup_steps": 0}, "data.warmup_steps = 0"),
        ({"updates_per_block": 0}, "data.updates_per_block = 0"),
        ({"steps_per_block": 0}, "data.steps_per_block = 0"),
        ({"warmup_updates": -1}, "data.warmup_updates = -1"),
        ({"batch_size": 201, "capacity": 200}, "data.capacity = 200 .* lower batch_size"),
        ({"num_envs": 101, "steps_per_block": 2, "capacity": 201, "batch_size": 1}, "data.capacity = 201 .*202 steps"),
        ({"num_envs": 3, "epoch_steps": 10}, "data.epoch_steps = 10 .* whole number of blocks"),
        ({"epoch_steps": 0}, "data.epoch_steps = 0 .* whole number of blocks"),
        ({"eval_episodes": 0}, "data.eval_episodes = 0"),
        ({"seed": -1}, "data.seed = -1"),
    ],
)
def test_impossible_values_name_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReplayDataModule(CHEETAH, **settings)


def test_the_least_of_everything_is_enough() -> None:
    least = dict.fromkeys(("num_envs", "batch_size", "warmup_steps", "updates_per_block", "steps_per_block"), 1)
    least |= {"capacity": 1, "epoch_steps": 1, "eval_episodes": 1, "test_episodes": 1, "warmup_updates": 0}
    datamodule = ReplayDataModule(CHEETAH, **least, seed=0)
    assert datamodule.split_counts == {"eval_episodes": 1, "test_episodes": 1}
    assert (datamodule.num_envs, datamodule.batch_size, datamodule.steps_per_block) == (1, 1, 1)


def test_discrete_actions_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="CartPole-v1 has 2 discrete actions"):
        _ = ReplayDataModule(Gymnasium("CartPole-v1")).action_dim


def test_the_x_axis_counts_environment_steps_under_action_repeat() -> None:
    module = Counting()
    data = {"num_envs": 1, "batch_size": 4, "capacity": 200, "warmup_steps": 5, "epoch_steps": 10, "eval_episodes": 2}
    datamodule = ReplayDataModule(DMControl("cheetah/run", action_repeat=4), **data)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    trainer.fit(module, datamodule)
    assert module.blocks[-1].env_steps == 4 * 15
