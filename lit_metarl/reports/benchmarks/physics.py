"""The simulator alone: bare ``mujoco.batch`` beside the environments that are made of it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
from mujoco.batch import Batch

STEPS = 20_000  # environment steps in one round of the simulator alone; fewer would be all noise


class BarePhysics:
    """``mujoco.batch`` alone, with the model and the threads of an environment.

    Args:
        env: a :class:`~lit_metarl.envs.locomotion.Locomotion` of E robots.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.threads = env.simulation.threads
        self._batch = Batch(env.simulation.model, env.num_envs, self.threads)
        self._ctrl = self._batch.bind("ctrl")

    def native(self, actions: np.ndarray) -> np.ndarray:
        """Controls ``[..., A]`` for ``actions`` ``[..., A]`` in [-1, 1]."""
        low, high = self.env.simulation.model.actuator_ctrlrange.T
        return (high + low) / 2 + (high - low) / 2 * actions

    def begin(self) -> None:
        """Begin episodes of the environment, and take its states over."""
        self.env.reset()
        self._batch.state[...] = self.env.simulation.state().numpy()

    def run(self, controls: np.ndarray) -> float:
        """Seconds of one agent step for every row of ``controls`` ``[T, E, A]``."""
        batch, ctrl, frame_skip = self._batch, self._ctrl, self.env.robot.frame_skip
        began = time.perf_counter()
        for row in controls:
            ctrl[...] = row
            batch.step(nstep=frame_skip)
        return time.perf_counter() - began


def time_simulator(factory: Any, num_envs: int, rounds: int) -> dict[str, Any]:
    """Whole steps (observation, reward, checks) against bare physics, from the same states under the same actions.

    Times in µs per environment step; the ratio is the median over rounds of whole to bare.
    """
    env = factory.make(num_envs, 0)
    bare = BarePhysics(env)
    steps = min(2000, max(10, STEPS // num_envs))
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, num_envs, env.spec.action_dim))
    controls = bare.native(actions)

    def step_env() -> float:
        began = time.perf_counter()
        for action in actions:
            env.step(action)
        return time.perf_counter() - began

    def step_bare() -> float:
        return bare.run(controls)

    times: dict[Any, list[float]] = {step_env: [], step_bare: []}
    for number in range(rounds + 1):
        bare.begin()
        for run in (step_env, step_bare) if number % 2 else (step_bare, step_env):
            times[run].append(1e6 * run() / (steps * num_envs))
    whole, physics = times[step_env][1:], times[step_bare][1:]  # the first round warms up
    env.close()
    return {
        "num_envs": num_envs,
        "threads": bare.threads,
        "us_per_env_step": median(whole),
        "us_per_env_step_bare": median(physics),
        "ratio": median(a / b for a, b in zip(whole, physics, strict=True)),
    }
