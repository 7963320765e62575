"""Stopwatches of the benchmark: the parts of a training step, and the simulator alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from statistics import median
from typing import Any

OTHER = "Lightning"
PARTS = ("simulator", "acting", "replay", "collector", "updates", "logging", OTHER)
SIMULATOR_STEPS = 20_000  # environment steps in one round of the simulator alone; fewer steps would be all noise


class Clock:
    """Wall time by part; a call within another counts for its own part only, so the parts add up to the whole.

    Args:
        synchronise: wait for the GPU at every switch: what a part launched is its own.
    """

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._synchronise = synchronise
        self._wrapped: list[tuple[Any, str]] = []
        self._part, self._since = OTHER, time.perf_counter()

    def switch(self, part: str) -> str:
        """Time from now on is that of ``part``; returns the part before."""
        self._synchronise()
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        previous, self._part, self._since = self._part, part, now
        return previous

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of ``owner.name`` for ``part`` until :meth:`unwrap`."""
        method = getattr(owner, name)

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            previous = self.switch(part)
            try:
                return method(*args, **kwargs)
            finally:
                self.switch(previous)

        setattr(owner, name, timed)
        self._wrapped.append((owner, name))

    def unwrap(self) -> None:
        """Leave every object as it was."""
        self.switch(OTHER)
        while self._wrapped:
            delattr(*self._wrapped.pop())


def time_simulator(factory: Any, num_envs: int, rounds: int) -> dict[str, Any]:
    """Whole steps (observation, reward, checks) against bare physics, from the same states under the same actions.

    Times in µs per environment step; the ratio is the median over rounds of whole to bare.
    """
    import numpy as np
    from mujoco.batch import Batch

    env = factory.make(num_envs, 0)
    bare = Batch(env._sim.model, num_envs, env._sim.threads)
    ctrl, frame_skip = bare.bind("ctrl"), env.robot.frame_skip
    low, high = env._sim.model.actuator_ctrlrange.T
    steps = min(2000, max(10, SIMULATOR_STEPS // num_envs))
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, num_envs, env.spec.action_dim))
    native = (high + low) / 2 + (high - low) / 2 * actions

    def step_env() -> None:
        for action in actions:
            env.step(action)

    def step_bare() -> None:
        for action in native:
            ctrl[...] = action
            bare.step(nstep=frame_skip)

    times: dict[Any, list[float]] = {step_env: [], step_bare: []}
    for number in range(rounds + 1):
        env.reset()
        bare.state[...] = env._sim.state().numpy()
        for run in (step_env, step_bare) if number % 2 else (step_bare, step_env):
            began = time.perf_counter()
            run()
            times[run].append(1e6 * (time.perf_counter() - began) / (steps * num_envs))
    whole, physics = times[step_env][1:], times[step_bare][1:]  # the first round warms up
    env.close()
    return {
        "num_envs": num_envs,
        "threads": env._sim.threads,
        "us_per_env_step": median(whole),
        "us_per_env_step_bare": median(physics),
        "ratio": median(a / b for a, b in zip(whole, physics, strict=True)),
    }
