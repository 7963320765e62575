"""Returns of perturbed actions: each roll-out against a plain loop, common random numbers, every kind of end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lit_metarl.data.collector import Collector
from lit_metarl.data.perturbation import SavedStates, collect_states, perturbed_returns, replayed_states
from lit_metarl.data.replay import Replay
from lit_metarl.envs.base import EnvError, EnvFactory
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.linear_quadratic import LinearQuadratic, action_value
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.locomotion_tasks import Velocity
from lit_metarl.envs.suite import DMControl

GAMMA = 0.9


def choose(obs: Tensor) -> Tensor:
    return torch.sin(obs.sum(-1, keepdim=True) + torch.arange(50.0))[:, : WIDTH[0]]


WIDTH = [6]  # of an action


def saved(factory: EnvFactory, steps: list[int]) -> SavedStates:
    env = factory.make(len(steps), 3)
    WIDTH[0] = env.spec.action_dim
    return collect_states(env, choose, np.array(steps))


def act(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A policy with noise, paid for the first number of it."""
    mode = torch.sin(obs.sum(-1, keepdim=True) + torch.arange(float(noise.shape[-1])))
    return (mode + 0.3 * noise).clamp(-1, 1), 0.1 * noise[..., 0]


def value(obs: Tensor, action: Tensor) -> Tensor:
    return 2.0 + obs.sum(-1) * action.sum(-1)


def actions(states: SavedStates, count: int) -> Tensor:
    return torch.rand(len(states.obs), count, WIDTH[0], generator=torch.Generator().manual_seed(1)) * 2 - 1


def returns(factory: EnvFactory, states: SavedStates, action: Tensor, **settings: Any) -> Tensor:
    rest = {"gamma": GAMMA, "repeats": 2, "horizon": 12, "generator": torch.Generator().manual_seed(4)} | settings
    return perturbed_returns(factory, states, action, act, value, **rest)


def test_states_are_as_many_steps_from_a_reset() -> None:
    states = saved(MuJoCo("half_cheetah", threads=1), [0, 5, 2])
    assert states.state["steps"].tolist() == [0, 5, 2]
    assert torch.equal(states.obs, states.state["obs"].float())


@pytest.mark.parametrize(
    "factory",
    [MuJoCo("hopper", 9, threads=1), DMControl("reacher/easy"), Gymnasium("Pendulum-v1")],
    ids=["mujoco", "dm_control", "gymnasium"],
)
def test_every_rollout_is_that_of_a_plain_loop(factory: EnvFactory) -> None:
    """Hopper terminates or is cut by its time limit, the others by the horizon."""
    states = saved(factory, [4, 1, 0])
    action = actions(states, 2)
    together = returns(factory, states, action)
    generator, kinds = torch.Generator().manual_seed(4), set()
    noises, env, k = [], factory.make(3, 0), 1
    env.load_state_dict(states.state)
    total, alive, obs = torch.zeros(3).double(), torch.ones(3, dtype=torch.bool), states.obs
    for step in range(12):
        noises.append(torch.randn(3, 1, WIDTH[0], generator=generator)[:, 0])
        chosen, bonus = (action[:, k], torch.zeros(3)) if step < 2 else act(obs, noises[-1])
        result = env.step(chosen.numpy())
        obs = torch.tensor(result.obs, dtype=torch.float32)
        cut = False
        for s in range(3):
            if not alive[s]:
                continue
            total[s] += GAMMA**step * (result.reward[s] + float(bonus[s]))
            if result.terminated[s]:
                kinds.add("terminated")
            elif result.truncated[s] or step == 11:
                kinds.add("truncated" if result.truncated[s] else "horizon")
                cut = True
        if cut:
            noise = torch.randn(3, 1, WIDTH[0], generator=generator)[:, 0]
            last, bonus = act(obs, noise)
            for s in range(3):
                if alive[s] and not result.terminated[s] and (result.truncated[s] or step == 11):
                    total[s] += GAMMA ** (step + 1) * float(value(obs, last)[s] + bonus[s])
        ended = torch.tensor(result.terminated | result.truncated)
        alive &= ~ended
        if ended.any():
            obs = torch.tensor(env.reset(ended.numpy()), dtype=torch.float32)
    torch.testing.assert_close(together[:, k], total, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_the_same_action_has_the_same_return_to_the_last_bit() -> None:
    factory = Gymnasium("Pendulum-v1", {"max_episode_steps": 8})
    states = saved(factory, [3, 5])
    action = actions(states, 1).expand(-1, 3, -1)
    found = returns(factory, states, action)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert not torch.equal(found, returns(factory, states, action, generator=torch.Generator().manual_seed(5)))


def test_with_exact_values_the_horizon_does_not_matter() -> None:
    factory, gain = LinearQuadratic(max_episode_steps=6), np.eye(2, 4)
    states = saved(factory, [0, 3])
    action = actions(states, 4)

    def policy(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return -obs @ torch.tensor(gain.T, dtype=torch.float32), torch.zeros(obs.shape[:-1])

    def exact(obs: Tensor, chosen: Tensor) -> Tensor:
        return torch.from_numpy(action_value(obs.double().numpy(), chosen.double().numpy(), gain, GAMMA))

    expected = exact(states.obs.unsqueeze(1).expand(-1, 4, -1), action)
    for horizon in (1, 2, 50):  # the last is cut by the time limit, after 6 and after 3 steps
        found = perturbed_returns(
            factory, states, action, policy, exact, GAMMA, 1, horizon, torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


class Opaque(gymnasium.Env):
    """An environment with a member that no state can hold."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 9

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.file = iter([1])
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


def test_states_that_cannot_be_saved_are_refused() -> None:
    with pytest.raises(EnvError, match="cannot go on from a saved state"):
        saved(Gymnasium(f"{__name__}.Opaque"), [1, 2])


def replay_of(factory: EnvFactory, steps: int) -> Replay:
    """Transitions of uniform actions in eight environments."""
    env, generator = factory.make(8, 0), torch.Generator().manual_seed(0)
    replay, collector = Replay(8 * steps, env.spec.obs_dim, env.spec.action_dim), Collector(env)
    for _ in range(steps):
        replay.insert(collector.step(lambda obs: env.spec.sizes.uniform_actions(obs, generator)))
    return replay


@pytest.mark.parametrize(
    ("factory", "share"),
    [
        (MuJoCo("half_cheetah", 100, threads=1), 1.0),
        (MuJoCo("hopper", threads=1), 0.9),
        (MuJoCo("walker2d", threads=1), 0.1),
        (MuJoCo("swimmer", 100, threads=1), 1.0),
        (MuJoCo("inverted_pendulum", threads=1), 1.0),
        (LinearQuadratic(max_episode_steps=20), 1.0),
    ],
    ids=lambda value: getattr(value, "robot", None),
)
def test_what_follows_a_replayed_observation_is_what_the_replay_has(factory: EnvFactory, share: float) -> None:
    """One step from every observation that tells the state: reward, successor and end are the stored ones."""
    stored = replay_of(factory, 250).storage
    told = factory.make(1, 0).tells_state(stored.obs.numpy())
    assert told.mean() >= share
    obs, action, reward, next_obs, terminated, _ = (field[torch.from_numpy(told)] for field in stored)
    env = factory.make(len(obs), 1)
    env.begin_at(obs.numpy())
    result = env.step(action.numpy())
    torch.testing.assert_close(torch.from_numpy(result.reward).float(), reward, atol=1e-5, rtol=1e-5)
    # Contacts magnify what float32 rounds away.
    torch.testing.assert_close(torch.from_numpy(result.obs).float(), next_obs, atol=1e-3, rtol=1e-4)
    assert torch.equal(torch.from_numpy(result.terminated), terminated)
    if share < 1:
        assert not told[(stored.obs.abs() >= 10).any(-1).numpy()].any()


def test_states_of_a_replay_are_drawn_uniformly_and_gone_on_from() -> None:
    factory = LinearQuadratic(max_episode_steps=6)
    replay = torch.arange(40.0).reshape(10, 4) / 40
    env = factory.make(3000, 0)
    states = replayed_states(env, replay, torch.Generator().manual_seed(0))
    row = (states.obs[:, 0] * 10).round().long()
    assert torch.equal(replay[row], states.obs)
    assert (torch.bincount(row, minlength=10) - 300).abs().max() < 5 * 270**0.5
    twin = factory.make(3000, 0)
    twin.load_state_dict(states.state)
    still = np.zeros((3000, 2))
    for step in range(6):
        expected, found = env.step(still), twin.step(still)
        np.testing.assert_array_equal(expected.obs, found.obs)
        assert found.truncated.all() == (step == 5)  # counted from the state on


@pytest.mark.parametrize(
    "factory",
    [
        MuJoCo("ant", threads=1),
        Velocity(setup="hyperl", threads=1),  # observes where the torso is
        DMControl("reacher/easy"),
        Gymnasium("Pendulum-v1"),
    ],
    ids=str,
)
def test_observations_that_do_not_tell_the_state_are_refused(factory: EnvFactory) -> None:
    env = factory.make(2, 0)
    obs = torch.tensor(env.reset(), dtype=torch.float32)
    with pytest.raises(EnvError, match=r"cannot go on from a replay: 0 of 200 observations .* Take states of the pol"):
        replayed_states(env, obs, torch.Generator())
    with pytest.raises(EnvError, match="an observation does not tell the state"):
        env.begin_at(obs.numpy())


def test_a_clipped_velocity_is_not_taken_for_the_velocity() -> None:
    env = MuJoCo("hopper", threads=1).make(2, 0)
    obs = env.reset()
    obs[1, -1] = 10.0
    assert env.tells_state(obs).tolist() == [True, False]
    with pytest.raises(EnvError, match="mujoco/hopper: an observation does not tell the state"):
        env.begin_at(obs)
