"""Trajectories: what is collected, with which policy, on which tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from meta_cases import attach

from lit_metarl.algorithms import MAML
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.data.collector import Collector
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.envs import points
from lit_metarl.envs.base import EnvError, EnvSpec, StepResult, load_streams, make_streams, streams_state
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.points import PointEnv
from lit_metarl.envs.tabular import TabularTasks
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.nn import GaussianMLP
from lit_metarl.types import ConfigError, MetaBatch


class CountdownEnv:
    """Environment i ends after i + 2 steps; reward 1; the observation counts the steps. Written out, no physics."""

    resumes_exactly, resume_note = True, ""

    def __init__(self, num_envs: int, seed: int, broken_at: int) -> None:
        self.spec = EnvSpec("test/countdown", 1, 1, 6)
        self.num_envs, self.broken_at = num_envs, broken_at
        self.steps, self.streams = np.zeros(num_envs), make_streams(seed, num_envs)
        self.actions: list[np.ndarray] = []

    def reset(self, mask=None):
        self.steps[slice(None) if mask is None else mask] = 0
        return self.steps[:, None].copy()

    def step(self, action):
        self.actions.append(action.copy())
        self.steps += 1
        reward = np.where(self.steps == self.broken_at, np.nan, 1.0)
        ended = self.steps >= np.arange(self.num_envs) + 2
        return StepResult(self.steps[:, None].copy(), reward, ended, self.steps >= 6)

    def set_tasks(self, tasks):
        self.tasks = dict(tasks)

    def state_dict(self):
        return {"steps": torch.from_numpy(self.steps.copy()), "streams": streams_state(self.streams)}

    def load_state_dict(self, state):
        self.steps = state["steps"].numpy().copy()
        load_streams(self.streams, state["streams"])

    def render(self, index=0, width=320, height=240):
        return np.zeros((height, width, 3), dtype=np.uint8)

    def close(self):
        pass


@dataclass(frozen=True)
class Countdown(TaskFamily):
    broken_at: int = -1

    def make(self, num_envs: int, seed: int) -> Any:
        return CountdownEnv(num_envs, seed, self.broken_at)

    def sample(self, num_tasks, generator, split="train"):
        return {"name": generator.uniform(size=num_tasks)}


def constant(value: float):
    return lambda obs: (torch.full((*obs.shape[:2], 1), value), torch.full(obs.shape[:2], -0.5))


def test_padding_follows_the_end_of_each_episode() -> None:
    simulator = TaskSimulator(Countdown(), 2, 3, seed=0, action_scale=0.1, oracle_context=False)
    data = simulator.run(constant(4.0))
    lengths = torch.tensor([[2.0, 3.0, 4.0], [5.0, 6.0, 6.0]])  # environment i: i + 2, at most 6
    assert torch.equal(data.mask.sum(-1), lengths)
    assert torch.equal(data.returns, lengths)
    assert torch.equal(data.obs[1, 1, :, 0], torch.arange(6.0))
    for field in (data.obs[..., 0], data.action[..., 0], data.reward, data.log_prob):
        assert torch.equal(field[data.mask == 0], torch.zeros_like(field[data.mask == 0]))
    assert torch.equal(data.log_prob[data.mask > 0], torch.full((26,), -0.5))


def test_the_end_of_an_episode_is_kept_apart_from_its_cut() -> None:
    data = TaskSimulator(Countdown(), 2, 3, seed=0, action_scale=0.1, oracle_context=False).run(constant(4.0))
    assert torch.equal(data.final_obs[..., 0], data.mask.sum(-1))  # the observation counts the steps
    assert data.terminated.tolist() == [[True, True, True], [True, True, False]]  # the last one is cut at 6 of 7 steps
    steps = torch.arange(1.0, 7.0).expand(2, 3, 6)
    assert torch.equal(data.next_obs[..., 0][data.mask > 0], steps[data.mask > 0])


class EndlessEnv(CountdownEnv):
    """Says that it is cut after 6 steps, and is not."""

    def step(self, action):
        return super().step(action)._replace(terminated=np.zeros(self.num_envs, bool), truncated=self.steps > 99)


@dataclass(frozen=True)
class Endless(Countdown):
    def make(self, num_envs: int, seed: int) -> Any:
        return EndlessEnv(num_envs, seed, self.broken_at)


def test_an_episode_that_goes_on_beyond_its_limit_is_refused() -> None:
    with pytest.raises(EnvError, match="test/countdown: an episode did not end within its 6 steps"):
        TaskSimulator(Endless(), 1, 2, seed=0, action_scale=1.0, oracle_context=False).run(constant(0.0))


def test_trajectories_have_no_graph() -> None:
    weight = torch.ones(1, requires_grad=True)
    simulator = TaskSimulator(Countdown(), 1, 2, seed=0, action_scale=0.1, oracle_context=False)
    data = simulator.run(lambda obs: ((obs * weight).detach(), (obs * weight)[..., 0]))
    assert not any(field.requires_grad for field in data)


def test_the_simulator_gets_scaled_and_clipped_actions_and_the_batch_keeps_the_policys() -> None:
    simulator = TaskSimulator(Countdown(), 1, 2, seed=0, action_scale=0.1, oracle_context=False)
    data = simulator.run(constant(4.0))
    np.testing.assert_allclose(simulator.env.actions[0], 0.4)
    assert float(data.action[0, 0, 0]) == 4.0
    simulator.run(constant(-40.0))
    np.testing.assert_allclose(simulator.env.actions[-1], -1.0)


def test_every_trajectory_of_a_task_gets_its_task_and_context() -> None:
    simulator = TaskSimulator(Countdown(), 2, 3, seed=0, action_scale=1.0, oracle_context=True)
    simulator.set_tasks({"name": np.array([0.25, 0.75])})
    np.testing.assert_allclose(simulator.env.tasks["name"], [0.25] * 3 + [0.75] * 3)
    trajectories = simulator.run(constant(0.0))
    assert trajectories.obs.shape == (2, 3, 6, 1)
    assert torch.equal(trajectories.context, torch.tensor([[0.25], [0.75]]))
    hidden = TaskSimulator(Countdown(), 2, 3, seed=0, action_scale=1.0, oracle_context=False)
    hidden.set_tasks({"name": np.array([0.25, 0.75])})
    assert hidden.run(constant(0.0)).context.shape == (2, 0)


def test_a_value_that_is_not_finite_is_named() -> None:
    simulator = TaskSimulator(Countdown(broken_at=2), 2, 1, 0, 1.0, False)
    with pytest.raises(EnvError, match="test/countdown: task 0, trajectory 0, step 2 of its episode: the reward"):
        simulator.run(constant(0.0))


class FarEnv(CountdownEnv):
    """Of environment 3, one value is beyond float32: at ``reset``, in a later reset, or in a step's ``part``."""

    part = ""

    def reset(self, mask=None):
        obs = super().reset(mask)
        if self.part == ("reset" if mask is None else "later reset" if mask[3] else None):
            obs[3] = -1e39
        return obs

    def step(self, action):
        result = super().step(action)
        if self.part in result._fields:
            getattr(result, self.part)[3] = 1e39
        return result


@dataclass(frozen=True)
class Far(Countdown):
    part: str = ""

    def make(self, num_envs, seed):
        env = FarEnv(num_envs, seed, -1)
        env.part = self.part
        return env


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("reset", r"step 0.*: the observation does not fit into float32: \[-1e\+39\]"),
        ("later reset", r"step 0.*: the observation does not fit into float32: \[-1e\+39\]"),
        ("obs", r"step 1.*: the observation does not fit into float32: \[1e\+39\]"),
        ("reward", r"step 1.*: the reward does not fit into float32: 1e\+39"),
    ],
)
def test_what_does_not_fit_into_float32_is_named(part: str, message: str) -> None:
    with pytest.raises(EnvError, match=rf"test/countdown: task 1, trajectory 1, {message}"):
        TaskSimulator(Far(part=part), 3, 2, 0, 1.0, False).run(constant(0.0))
    collector = Collector(Far(part=part).make(6, 0))
    with pytest.raises(EnvError, match=rf"test/countdown: environment 3, {message}"):
        [collector.step(lambda obs: torch.zeros(len(obs), 1)) for _ in range(5)]


class LargeEnv(CountdownEnv):
    """Observes numbers that fit into float32, whose sum does not."""

    def reset(self, mask=None):
        return np.full((self.num_envs, 1), 3e38)


def test_a_sum_beyond_float32_of_numbers_that_are_not_is_accepted() -> None:
    seen = Collector(LargeEnv(4, 0, -1)).step(lambda obs: torch.zeros(len(obs), 1)).obs
    assert torch.equal(seen, torch.full((4, 1), 3e38))


def test_discrete_actions_reach_the_simulator_as_they_are() -> None:
    simulator = TaskSimulator(TabularTasks(horizon=3), 2, 2, 0, 0.1, False)
    data = simulator.run(lambda obs: (torch.full(obs.shape[:2], 4), torch.zeros(obs.shape[:2])))
    assert data.action.dtype == torch.int64
    assert data.action.shape == (2, 2, 3)
    assert torch.equal(data.action, torch.full((2, 2, 3), 4))


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_random_actions_fill_the_simulators_bounds(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    simulator = TaskSimulator(Navigation2D(), 30, 40, 0, scale, False)
    action, log_prob = simulator.random_policy(generator)(torch.zeros(30, 40, 3))
    assert action.shape == (30, 40, 2)
    again = simulator.random_policy(generator.manual_seed(0))(torch.zeros(30, 40, 3))[0]
    assert torch.equal(again, action)
    assert torch.equal(log_prob, torch.zeros(30, 40))
    share = (scale * action.flatten()).histc(4, -1.0, 1.0) / action.numel()
    torch.testing.assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.05)  # none beyond, none preferred
    finite = TaskSimulator(TabularTasks(num_actions=3), 30, 40, 0, scale, False)
    discrete, _ = finite.random_policy(generator)(torch.zeros(30, 40, 3))
    assert discrete.dtype == torch.int64
    share = discrete.flatten().bincount() / discrete.numel()
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.05)


class Spy(Callback):
    """Checks every batch against the module as it stands when the batch arrives."""

    def __init__(self) -> None:
        self.batches: list[MetaBatch] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        adaptation = pl_module.before_adaptation(batch.rounds[0].context)
        for k, trajectories in enumerate(batch.rounds):
            distribution = pl_module._distributions(adaptation, trajectories.obs)
            seen = distribution.log_prob(trajectories.action) * trajectories.mask
            torch.testing.assert_close(seen, trajectories.log_prob, rtol=1e-4, atol=1e-4)
            if k < len(batch.rounds) - 1:
                adaptation = pl_module.adapt(adaptation, trajectories)


SMALL = {"num_tasks": 3, "trajectories": 4, "epoch_iterations": 2, "eval_tasks": 2, "test_tasks": 2}


def fit(datamodule: TrajectoryDataModule, epochs: int = 2, **kwargs: Any) -> tuple[MAML, Spy]:
    seed_everything(0)
    spy = Spy()
    sizes = datamodule.obs_dim, datamodule.action_dim, datamodule.num_actions
    module = MAML(*sizes, GaussianMLP((8,)), context_dim=datamodule.context_dim, **kwargs)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[spy],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        inference_mode=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=datamodule)
    return module, spy


def test_rounds_are_sampled_with_the_current_parameters_adapted_so_far() -> None:
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=8), adaptation_steps=2, **SMALL)
    module, spy = fit(datamodule)  # Spy asserts: lag 0 for every round
    assert [len(batch.rounds) for batch in spy.batches] == [3] * 4
    assert spy.batches[0].rounds[0].obs.shape == (3, 4, 8, 2)
    assert spy.batches[-1].env_steps == sum(int(r.mask.sum()) for b in spy.batches for r in b.rounds)
    assert module.env_steps == spy.batches[-1].env_steps


given: list[np.ndarray] = []
"""Goals ``[E, 2]`` that the simulators of :class:`Recorded` were given."""


open_simulators: list[PointEnv] = []


@dataclass(frozen=True)
class Recorded(Navigation2D):
    def make(self, num_envs, seed):
        env = super().make(num_envs, seed)
        open_simulators.append(env)
        env.close = lambda: open_simulators.remove(env)
        inner = env.set_tasks
        env.set_tasks = lambda tasks: (given.append(np.asarray(tasks["goal"])), inner(tasks))[1]
        return env


def test_training_tasks_are_new_each_time_unless_they_are_fixed() -> None:
    given.clear()
    fit(TrajectoryDataModule(Recorded(max_episode_steps=3), **SMALL | {"eval_tasks": 3}), epochs=2)
    assert not open_simulators
    given[:] = [goals[::4] for goals in given]
    # The first evaluation has random actions on the tasks of both splits, too.
    train, evaluation = given[0:2] + given[6:8], given[2:6] + given[8:10]
    rows = np.concatenate(train)
    assert len(np.unique(rows, axis=0)) == len(rows) == 12
    for again in (evaluation[2], evaluation[4]):
        np.testing.assert_array_equal(evaluation[0], again)  # held-out tasks are the same each time
    assert not set(map(tuple, rows)) & set(map(tuple, np.concatenate(evaluation)))
    given.clear()
    fit(TrajectoryDataModule(Recorded(max_episode_steps=3), train_tasks=2, **SMALL), epochs=2)
    assert len(np.unique(np.concatenate(given[0:2] + given[6:8]), axis=0)) == 2


def test_every_split_is_evaluated_on_tasks_of_its_own_distribution() -> None:
    family = Recorded(max_episode_steps=3, goal_size=0.1, out_of_distribution_size=0.4)
    settings = SMALL | {"eval_tasks": 20, "test_tasks": 30, "eval_adaptation_steps": 2}
    datamodule = TrajectoryDataModule(family, **settings)
    module = attach(MAML(2, 2, policy=GaussianMLP((4,))))
    datamodule.trainer = module.trainer
    seen = []
    for evaluate, tasks in ((datamodule.evaluate, 20), (datamodule.test, 30)):
        given.clear()
        result = evaluate()
        test, beyond, *random = given  # random actions come after, on the same tasks
        assert list(result.returns) == list(result.tasks) == list(result.random) == ["test", "out_of_distribution"]
        for again, goals, split in zip(random, (test, beyond), result.tasks, strict=True):
            np.testing.assert_array_equal(again, goals)
            np.testing.assert_array_equal(goals, np.repeat(goals[::4], 4, axis=0))
            np.testing.assert_array_equal(result.tasks[split]["goal"], goals[::4].astype(np.float32))
            assert result.returns[split].shape == (3, tasks, 4)
            assert result.random[split].shape == (tasks, 4)
            # Of three steps of at most 0.1 a coordinate from the origin, none pays less.
            assert result.returns[split].min() >= -3 * 2 * (0.3 + np.abs(goals).max()) ** 2
        assert np.abs(test).max() <= 0.1
        assert np.abs(beyond).max(axis=1).min() > 0.1
        assert 0.3 < np.abs(beyond).max() <= 0.4
        seen += [*map(tuple, test[::4]), *map(tuple, beyond[::4])]
    assert len(set(seen)) == 2 * (20 + 30)  # of evaluation and test, none in both


def test_a_film_shows_one_task_before_and_after_adaptation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "FRAME_DT", 0.01)  # a picture every third step makes 33 a second
    family = Recorded(max_episode_steps=8)
    datamodule = TrajectoryDataModule(family, **SMALL, action_scale=0.5, video_size=(32, 24))
    module = attach(MAML(2, 2, policy=GaussianMLP((4,)), inner_lr=5.0))
    datamodule.trainer = module.trainer
    given.clear()
    film = datamodule.film()
    assert [len(goals) for goals in given] == [1, 4]  # filmed, and sampled to adapt
    assert {tuple(goal) for goals in given for goal in goals} == {tuple(given[0][0])}
    assert not open_simulators
    assert {name: tuple(frames.shape) for name, frames in film.frames.items()} == {
        "after_0_steps": (3, 24, 32, 3),
        "after_1_steps": (3, 24, 32, 3),
    }
    assert film.frames_per_second == pytest.approx(100 / 3)
    np.testing.assert_allclose(film.tasks["test"]["goal"], given[0], rtol=1e-6)
    position, total = np.zeros((1, 2)), 0.0
    for _ in range(8):
        with torch.no_grad():  # the most likely action
            mean = module.policy(torch.tensor(position, dtype=torch.float32)).mean.double().numpy()
        position = family.move(position, np.clip(0.5 * mean, -1.0, 1.0))
        total += float(family.reward(position, position, given[0])[0])
    assert film.returns["test"].shape == (2, 1, 1)
    assert float(film.returns["test"][0]) == pytest.approx(total, rel=1e-5)
    assert float(film.returns["test"][1]) != pytest.approx(total, rel=1e-5)


def test_the_task_is_told_beside_the_observations_and_only_if_asked_for() -> None:
    hidden = TrajectoryDataModule(Navigation2D(max_episode_steps=3), **SMALL)
    told = TrajectoryDataModule(Navigation2D(max_episode_steps=3), oracle_context=True, **SMALL)
    assert (hidden.obs_dim, hidden.context_dim, told.obs_dim, told.context_dim) == (2, 0, 2, 2)
    for datamodule in (hidden, told):
        _, spy = fit(datamodule)
        first = spy.batches[0].rounds[0]
        assert not first.obs[:, :, 0].any()  # the start, whatever the task
        assert first.context.shape == (3, datamodule.context_dim)
    assert len(first.context.unique(dim=0)) == 3


def test_evaluation_does_not_disturb_training() -> None:
    def run(period: int) -> torch.Tensor:
        datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=4), **SMALL | {"epoch_iterations": period})
        return fit(datamodule, epochs=4 // period)[1].batches[-1].rounds[-1].obs

    assert torch.equal(run(1), run(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tasks": 0}, "data.num_tasks = 0"),
        ({"trajectories": 0}, "data.trajectories = 0"),
        ({"adaptation_steps": -1}, "data.adaptation_steps = -1"),
        ({"action_scale": 0.0}, r"data.action_scale = 0\.0"),
        ({"train_tasks": 0}, "data.train_tasks = 0"),
        ({"eval_adaptation_steps": -1}, "data.eval_adaptation_steps = -1"),
        ({"epoch_iterations": 0}, "data.epoch_iterations = 0"),
        ({"eval_tasks": 0}, "data.eval_tasks = 0"),
        ({"seed": -1}, "data.seed = -1"),
    ],
)
def test_impossible_settings_are_refused_by_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrajectoryDataModule(Navigation2D(), **settings)


def test_the_least_of_everything_is_enough() -> None:
    least = dict.fromkeys(("num_tasks", "trajectories", "adaptation_steps", "epoch_iterations"), 1)
    least |= {"eval_tasks": 1, "test_tasks": 1, "eval_adaptation_steps": 0, "action_scale": 1e-9, "train_tasks": 1}
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=1), **least, seed=0)
    assert datamodule.split_counts == {"num_tasks": 1, "eval_tasks": 1, "test_tasks": 1}
    assert (datamodule.trajectories, datamodule.adaptation_steps, datamodule.eval_adaptation_steps) == (1, 1, 0)


def test_horizon_zero_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="max_episode_steps"):
        TrajectoryDataModule(Navigation2D(max_episode_steps=0))


def test_an_environment_without_a_time_limit_is_refused() -> None:
    @dataclass(frozen=True)
    class Endless(Navigation2D):
        def make(self, num_envs, seed):
            env = super().make(num_envs, seed)
            assert isinstance(env, PointEnv)
            env.spec = EnvSpec("test/endless", 2, 2, None)
            return env

    with pytest.raises(ConfigError, match="no time limit"):
        TrajectoryDataModule(Endless())


def test_a_single_training_task_is_drawn_every_time() -> None:
    _, spy = fit(TrajectoryDataModule(Navigation2D(max_episode_steps=3), train_tasks=1, oracle_context=True, **SMALL))
    contexts = torch.cat([batch.rounds[0].context for batch in spy.batches])
    assert len(contexts) == 12
    assert len(contexts.unique(dim=0)) == 1
