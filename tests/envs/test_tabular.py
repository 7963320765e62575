"""Finite MDPs as environments: steps, tasks, and their statistics against the exact value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.tabular import TabularMDP, TabularTasks, random_mdp
from lit_metarl.envs.tabular_exact import exact_value
from lit_metarl.types import ConfigError

ENDS = TabularTasks(num_states=5, num_actions=3, horizon=7, concentration=0.5, num_terminal=1)


def actions(steps, num_envs, num_actions=3, seed=0):
    return np.random.default_rng(seed).integers(num_actions, size=(steps, num_envs))


def test_a_step_is_the_mdps():
    """State, action and successor agree with the tables, and an episode ends where they say."""
    env, mdp = ENDS.make(50, seed=1), ENDS.mdp()
    obs, ends = env.reset(), np.zeros(2, dtype=int)
    for t, action in enumerate(actions(7, 50)):
        state = obs.argmax(1)
        result = env.step(action)
        successor = result.obs.argmax(1)
        np.testing.assert_array_equal(result.obs, np.eye(5)[successor])
        np.testing.assert_array_equal(result.reward, mdp.reward[state, action])
        assert (mdp.transition[state, action, successor] > 0).all()
        np.testing.assert_array_equal(result.terminated, mdp.ends[successor])
        ended = result.terminated | result.truncated
        ends += result.terminated.sum(), result.truncated.sum()
        obs = env.reset(ended)
        assert (obs[ended].argmax(1) == 0).all()
        np.testing.assert_array_equal(obs[~ended], result.obs[~ended])
        assert result.truncated.any() == (t == 6)
    assert (ends > 0).all()


def test_mean_return_is_the_exact_value():
    """20,000 episodes of a random policy against J(θ), within four standard errors."""
    family = TabularTasks(num_states=4, num_actions=2, horizon=5, concentration=1.0, num_terminal=1)
    env, rng = family.make(20_000, seed=0), np.random.default_rng(1)
    logits = rng.normal(size=(4, 2))
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    obs, total, running = env.reset(), np.zeros(20_000), np.ones(20_000, dtype=bool)
    for t in range(5):
        result = env.step((rng.random(20_000) > policy[obs.argmax(1), 0]).astype(int))
        total += 0.9**t * running * result.reward
        running &= ~result.terminated
        obs = env.reset(result.terminated)  # goes on, but is not counted any more
    exact = float(exact_value(family.mdp(), torch.as_tensor(logits), 0.9, 5))
    assert abs(total.mean() - exact) < 4 * total.std() / np.sqrt(20_000)
    assert 0 < running.mean() < 1


def test_tasks_are_in_force_from_the_next_reset():
    env, mdp = ENDS.make(2, seed=0), ENDS.mdp()
    env.reset()
    reward, start = np.stack([np.full((5, 3), 7.0), np.full((5, 3), 8.0)]), np.eye(5)[[1, 2]]
    env.set_tasks({"reward": reward, "start": start})
    first = env.step(np.array([0, 1]))
    np.testing.assert_array_equal(first.reward, mdp.reward[0, [0, 1]])
    obs = env.reset(np.array([False, True]))
    assert obs[1].argmax() == 2
    second = env.step(np.array([0, 0]))  # the other environment goes on with its old task
    np.testing.assert_array_equal(second.reward, [mdp.reward[first.obs[0].argmax(), 0], 8.0])
    np.testing.assert_array_equal(env.reset().argmax(1), [1, 2])
    np.testing.assert_array_equal(env.step(np.array([2, 2])).reward, [7.0, 8.0])


def test_family_draws_reward_tables():
    generator = np.random.default_rng(0)
    tasks = ENDS.sample(6, generator, "test")
    assert tasks["reward"].shape == (6, 5, 3)
    assert len(np.unique(tasks["reward"])) == 90
    assert ENDS.context(tasks).shape == (6, 15)
    ENDS.make(6, 0).set_tasks(tasks)
    with pytest.raises(ValueError, match="out_of_distribution"):
        ENDS.sample(1, generator, "out_of_distribution")


def test_random_mdps_of_the_paper():
    """Dirichlet(0.001): rows nearly one-hot, and never NaN, which NumPy's legacy generator makes of 3 % of the MDPs."""
    largest = []
    for seed in range(200):
        mdp = random_mdp(10, 5, seed, concentration=0.001)
        assert np.isfinite(mdp.transition).all()
        largest.append(mdp.transition.max(-1).mean())
    assert np.mean(largest) == pytest.approx(0.995, abs=0.003)
    assert (random_mdp(10, 5, 3).transition != random_mdp(10, 5, 4).transition).all()
    np.testing.assert_array_equal(random_mdp(10, 5, 3).reward, random_mdp(10, 5, 3).reward)


def test_render_shows_the_state():
    env = ENDS.make(1, seed=0)
    env.reset()
    picture = env.render(0, 50, 20)
    assert picture.shape == (20, 50, 3)
    assert (picture[:, :10] == 255).all()
    assert (picture[:, 10:] == 64).all()


def test_errors_say_what_is_wrong():
    env, ones = ENDS.make(2, seed=0), np.ones(2)
    for tasks, message in (
        ({"goal": ones}, "no task parameter"),
        ({"reward": ones}, "shape"),
        ({"start": np.eye(5)[[4, 4]]}, "do not end"),
        ({"start": np.full((2, 5), 0.3)}, "probabilities"),
        ({"start": np.array([[1.5, -0.5, 0, 0, 0], [1, 0, 0, 0, 0]])}, "probabilities"),
    ):
        with pytest.raises(EnvError, match=message):
            env.set_tasks(tasks)
    with pytest.raises(EnvError, match="another horizon"):
        replace(ENDS, horizon=3).make(2, 0).load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="has transition"):
        TabularMDP(np.ones((2, 1, 3)), np.ones((2, 1)), np.ones(2))
    with pytest.raises(EnvError, match="transition"):
        TabularMDP(np.ones((2, 1, 2)), np.ones((2, 1)), np.array([1.0, 0.0]))
    with pytest.raises(EnvError, match="terminal"):
        TabularMDP(np.full((2, 1, 2), 0.5), np.ones((2, 1)), np.array([1.0, 0.0]), np.array([True, False]))
    for settings in (
        {"horizon": 0},
        {"concentration": 0.0},
        {"num_terminal": 10},
        {"num_terminal": -1},
        {"mdp_seed": -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            TabularTasks(**settings)
    assert TabularTasks(horizon=1, concentration=1e-3, num_terminal=9).mdp().ends.sum() == 9
