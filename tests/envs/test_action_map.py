"""Actions in [-1, 1] become native ones inside the bounds, of whatever box."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lit_metarl.envs.base import ActionMap
from lit_metarl.envs.gym import Gymnasium

BOXES = 20_000


def two_decimal_bounds(seed=0):
    """``low`` and ``high``, ``[BOXES]``: what people write, such as [-0.37, 1.12]."""
    rng = np.random.default_rng(seed)
    low = rng.integers(-1000, 1000, BOXES)
    return low / 100, (low + rng.integers(1, 1000, BOXES)) / 100


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_action_leaves_a_box_and_the_ends_are_its_bounds(dtype):
    low, high = (bound.astype(dtype) for bound in two_decimal_bounds())
    to_native = ActionMap(low, high)
    below_one = np.nextafter(np.float32(1), np.float32(0))
    inner = np.random.default_rng(1).uniform(-1, 1, (20, BOXES)).astype(np.float32)
    for action in [*inner, np.full(BOXES, below_one), np.full(BOXES, np.nextafter(1.0, 0.0)), np.full(BOXES, 1.5)]:
        for signed in (action, -action):
            native = to_native(signed).astype(dtype)
            assert (low <= native).all()
            assert (native <= high).all()
    np.testing.assert_array_equal(to_native(np.ones(BOXES, dtype=np.float32)).astype(dtype), high)
    np.testing.assert_array_equal(to_native(-np.ones(BOXES, dtype=np.float32)).astype(dtype), low)


def test_inside_the_box_nothing_but_the_affine_map_happens():
    low, high = two_decimal_bounds()
    action = np.random.default_rng(2).uniform(-0.999, 0.999, (20, BOXES)).astype(np.float32)
    np.testing.assert_array_equal(ActionMap(low, high)(action), (low + high) / 2 + (high - low) / 2 * action)


class Narrow(gymnasium.Env):
    """Middle ± half-width rounds to above the first box, below the second, and to less than the third's upper bound."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(np.array([-9.19, 0.22, -3.85]), np.array([-1.53, 5.04, 0.44]), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action} is outside")
        return np.zeros(1, dtype=np.float32), float((action == self.action_space.high).sum()), False, False, {}


def test_a_strict_environment_accepts_every_action():
    env = Gymnasium(f"{__name__}.Narrow").make(2, seed=0)
    env.reset()
    assert env.step(np.stack([np.ones(3), -np.ones(3)])).reward.tolist() == [3.0, 0.0]
