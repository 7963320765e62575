"""The linear world: its values in closed form against sums of rewards, gradients against differences."""

from __future__ import annotations

import numpy as np

from lit_metarl.envs.linear_quadratic import LinearQuadratic, action_gradient, action_value, value_matrix

GAMMA = 0.9
GAIN = np.array([[1.0, 0.2, 0.8, 0.0], [0.0, 0.7, 0.1, 1.0]])


def test_the_action_value_is_the_sum_of_rewards() -> None:
    env = LinearQuadratic(max_episode_steps=1000).make(5, 0)
    state = env.reset()
    action = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    expected, total = action_value(state, action, GAIN, GAMMA), np.zeros(5)
    for step in range(200):
        result = env.step(action)
        total += GAMMA**step * result.reward
        action = -result.obs @ GAIN.T
    np.testing.assert_allclose(total, expected, rtol=1e-8)
    assert np.all(np.linalg.eigvalsh(value_matrix(GAIN, GAMMA)) > 0)


def test_the_gradient_is_that_of_the_value() -> None:
    generator = np.random.default_rng(1)
    state, action = generator.normal(size=(6, 4)), generator.normal(size=(6, 2))
    gradient = action_gradient(state, action, GAIN, GAMMA)
    for dim in range(2):
        shift = 1e-4 * np.eye(2)[dim]
        difference = action_value(state, action + shift, GAIN, GAMMA) - action_value(state, action - shift, GAIN, GAMMA)
        np.testing.assert_allclose(gradient[:, dim], difference / 2e-4, rtol=1e-6)
