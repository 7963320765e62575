"""DeepMind Control Suite: every task of ``dm_control.suite``, stepped one environment after the other.

The adapter follows dmc2gym, with which SAC's results on the suite were measured: the observation is the concatenation
of all proprioceptive arrays in the suite's order as float32, actions are rescaled to [-1, 1], rewards are summed over
the action repeat. Tassa et al. 2018, https://arxiv.org/abs/1801.00690.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_metarl.envs.base import ActionMap, Array, BatchedEnv, EnvError, EnvFactory, EnvSpec, StepResult
from lit_metarl.envs.rendering import choose_backend
from lit_metarl.envs.saved_state import load_physics, pack, packable, save_physics, unpack


@dataclass(frozen=True)
class DMControl(EnvFactory):
    """A task of the DeepMind Control Suite.

    Args:
        task: ``domain/task``, for example ``cheetah/run``.
        action_repeat: control steps in one agent step; rewards are summed, an episode's end cuts it short.
    """

    task: str = "cheetah/run"
    action_repeat: int = 1

    def make(self, num_envs: int, seed: int) -> SuiteEnv:
        """Build the environments. Raises ``ValueError`` on an unknown task or a non-positive count."""
        if num_envs < 1 or self.action_repeat < 1:
            raise ValueError(f"num_envs ({num_envs}) and action_repeat ({self.action_repeat}) must be at least 1.")
        choose_backend()
        from dm_control import suite

        known = ["/".join(names) for names in suite.ALL_TASKS]
        if self.task not in known:
            close = difflib.get_close_matches(self.task, known, n=5, cutoff=0.4)
            hint = f"Did you mean {' or '.join(close)}?" if close else "Nothing is close to it."
            raise ValueError(f"dm_control has no task {self.task!r}. {hint} Available: {', '.join(known)}.")
        return SuiteEnv(self.task, self.action_repeat, num_envs, seed)


class SuiteEnv(BatchedEnv):
    """``E`` copies of a suite task; build it with :class:`DMControl`.

    A step's ``truncated`` is the suite's time limit (last step, discount 1), ``terminated`` a last step of discount 0.
    An actuator without limits (the lqr tasks) receives the action as it is, in [-1, 1].

    Attributes:
        needs_reset: ``[E]`` bool, environments whose next call has to be ``reset``.
    """

    def __init__(self, task: str, action_repeat: int, num_envs: int, seed: int) -> None:
        from dm_control import suite
        from dm_control.rl.control import PhysicsError

        self._physics_error = PhysicsError
        domain, name = task.split("/")
        children = np.random.SeedSequence(seed).spawn(num_envs)
        self._randoms = [np.random.RandomState(np.random.MT19937(child)) for child in children]
        self._envs = [suite.load(domain, name, task_kwargs={"random": random}) for random in self._randoms]
        self._action_repeat = action_repeat
        self.needs_reset = np.ones(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        first = self._envs[0]
        bounds = first.action_spec()
        limited = first.physics.model.actuator_ctrllimited.astype(bool)
        self._to_native = ActionMap(np.where(limited, bounds.minimum, -1.0), np.where(limited, bounds.maximum, 1.0))
        limit = first._step_limit  # no public reading; an episode ends at the first count that is not below it
        spec = EnvSpec(
            name=f"dm_control/{domain}_{name}",
            obs_dim=sum(math.prod(part.shape) for part in first.observation_spec().values()),
            action_dim=bounds.shape[0],
            max_episode_steps=None if limit == math.inf else math.ceil(math.ceil(limit) / action_repeat),
            frame_dt=first.control_timestep() * action_repeat,
            action_repeat=action_repeat,
        )
        super().__init__(spec, num_envs, seed=None)
        self._obs = np.zeros((num_envs, self.spec.obs_dim), dtype=np.float32)
        problems = [name for name, value in self._task_attributes(0).items() if not packable(value)]
        self.resumes_exactly = not problems
        self.resume_note = f"{task} keeps state that cannot be saved: {problems}." if problems else ""

    def reset(self, mask: Array | None = None) -> Array:
        ids = self.selected(mask)
        for i in ids.tolist():
            _flatten(self._envs[i].reset().observation, self._obs[i])
        self.needs_reset[ids] = False
        self._elapsed[ids] = 0
        return self._obs.copy()

    def step(self, action: Array) -> StepResult:
        """Advance every environment by one agent step; ``EnvError`` for an ended episode and diverging physics."""
        self.check_step(action, self.needs_reset)
        native = self._to_native(action)
        reward = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=bool)
        for i in range(self.num_envs):
            last = self._step_one(i, native[i], reward)
            terminated[i] = last.last() and last.discount == 0.0
            self.needs_reset[i] = last.last()
            _flatten(last.observation, self._obs[i])
        self._elapsed += 1
        return StepResult(self._obs.copy(), reward, terminated, self.needs_reset & ~terminated)

    def _step_one(self, index: int, native: Array, reward: Array) -> Any:
        """``action_repeat`` control steps; adds to ``reward[index]`` and returns the last dm_env time step."""
        env = self._envs[index]
        try:
            for _ in range(self._action_repeat):
                time_step = env.step(native)
                reward[index] += time_step.reward
                if time_step.last():
                    break
        except self._physics_error as error:
            where = f"environment {index}, step {self._elapsed[index]} of its episode"
            raise EnvError(f"{self.spec.name}: the physics diverged in {where}: {error}") from error
        return time_step

    def state_dict(self) -> dict[str, Any]:
        """The whole state: physics, model arrays, task attributes, random streams and counters."""
        return {**self.common_state(), "envs": [self._state_of(i) for i in range(self.num_envs)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. Raises ``EnvError`` if the state is of another task or number."""
        self.load_common_state(state)
        for i, saved in enumerate(state["envs"]):
            env = self._envs[i]
            load_physics(env.physics.model.ptr, env.physics.data.ptr, saved["physics"])
            for name, value in saved["task"].items():
                setattr(env.task, name, unpack(value))
            self._randoms[i].set_state(unpack(saved["random"]))
            env._step_count, env._reset_next_step = saved["control_steps"], saved["needs_reset"]
            self.needs_reset[i], self._elapsed[i] = saved["needs_reset"], saved["elapsed"]
            self._obs[i] = unpack(saved["obs"])

    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """Picture of one environment by the task's first camera, ``[height, width, 3]`` uint8."""
        return self._envs[index].physics.render(height=height, width=width, camera_id=0)

    def close(self) -> None:
        for env in self._envs:
            env.physics.free()

    def _state_of(self, index: int) -> dict[str, Any]:
        env = self._envs[index]
        attributes = self._task_attributes(index)
        return {
            "physics": save_physics(env.physics.model.ptr, env.physics.data.ptr),
            "task": {name: pack(value) for name, value in attributes.items() if packable(value)},
            "random": pack(self._randoms[index].get_state(legacy=False)),
            "control_steps": env._step_count,
            "needs_reset": bool(self.needs_reset[index]),
            "elapsed": int(self._elapsed[index]),
            "obs": pack(self._obs[index]),
        }

    def _task_attributes(self, index: int) -> dict[str, Any]:
        """What a task keeps in Python, such as the standing height that dog measures at the start of an episode."""
        return {name: value for name, value in vars(self._envs[index].task).items() if name != "_random"}


def _flatten(observation: Mapping[str, Any], out: Array) -> None:
    start = 0
    for part in observation.values():  # half the time of np.concatenate over np.ravel
        end = start + np.size(part)
        out[start:end] = part if np.ndim(part) < 2 else part.ravel()
        start = end
