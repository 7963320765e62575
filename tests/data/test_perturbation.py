"""Returns of perturbed actions: each roll-out against a plain loop, common random numbers, every kind of end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lit_metarl.data.perturbation import SavedStates, collect_states, perturbed_returns
from lit_metarl.envs.base import EnvError, EnvFactory
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.linear_quadratic import LinearQuadratic, action_value
from lit_metarl.envs.locomotion import MuJoCo
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
