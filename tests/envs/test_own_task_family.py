"""A task family of one's own is one short class: of a MuJoCo robot, of a point world, and of any Gymnasium class."""

from __future__ import annotations

import numpy as np
import pytest
from own_families import CartGoal, ReachTasks, Ring


@pytest.mark.parametrize("family", [CartGoal(), ReachTasks(), Ring()])
def test_it_is_a_family_like_ours(family):
    num_envs, rng = 4, np.random.default_rng(0)
    tasks = family.sample(num_envs, rng)
    assert family.context(tasks).shape == (num_envs, 2 if family == Ring() else 1)
    env, other = family.make(num_envs, seed=1), family.make(num_envs, seed=1)
    env.set_tasks(tasks)
    other.set_tasks(family.sample(num_envs, rng))
    np.testing.assert_array_equal(env.reset(), other.reset())
    action = rng.uniform(-0.1, 0.1, (num_envs, env.spec.action_dim))
    result, twin = env.step(action), other.step(action)
    np.testing.assert_array_equal(result.obs, twin.obs)  # the task is not to be seen,
    assert (result.reward != twin.reward).all()  # but paid


def test_the_cart_is_paid_for_its_place():
    env = CartGoal().make(2, seed=0)
    env.set_tasks({"goal": np.array([0.5, -0.5])})
    env.reset()
    result = env.step(np.zeros((2, 1)))
    # the pole still stands, which Gymnasium pays with 1; the observation starts with the cart's position
    np.testing.assert_allclose(result.reward, 1 - np.abs(result.obs[:, 0] - [0.5, -0.5]))


def test_the_gymnasium_class_is_paid_for_its_target():
    env = ReachTasks().make(2, seed=0)
    env.set_tasks({"target": np.array([0.5, -0.5])})
    env.reset()
    result = env.step(np.full((2, 1), 0.1, dtype=np.float32))
    np.testing.assert_allclose(result.reward, -np.abs(result.obs[:, 0] - [0.5, -0.5]), rtol=1e-6)
