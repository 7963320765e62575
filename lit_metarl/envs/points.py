"""Points that move in the plane or on a line: the simulator behind :mod:`lit_metarl.envs.navigation`.

Axes: ``E`` environments, ``S`` numbers of a point's state, ``A`` numbers of its action and of its goal.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lit_metarl.envs.base import Array, BatchedEnv, EnvError, EnvSpec, StepResult, Tasks
from lit_metarl.envs.task_table import TaskTable
from lit_metarl.envs.tasks import TaskFamily

FRAME_DT = 0.05  # a point has no clock; this is the pace of its film
GREY, GREEN, BLUE = (190, 190, 190), (60, 160, 75), (40, 80, 200)


@dataclass(frozen=True)
class PointWorld(TaskFamily):
    """A world of one point: where it starts, how it moves and what it is paid, the goal being the hidden task.

    Arrays are float64; ``state [E, S]`` starts with the position ``[A]`` and is the observation. A world of one's own
    is a subclass with the abstract methods below and ``sample``, which draws ``{"goal": [B, A]}``.

    Args:
        max_episode_steps: agent steps after which an episode is truncated.
    """

    max_episode_steps: int = 100

    name: ClassVar[str]
    default_goal: ClassVar[tuple[float, ...]]
    """Goal of an environment that was given no task; its length is A."""
    obs_dim: ClassVar[int] = 2
    """S."""
    view: ClassVar[float]
    """Half-width of the picture, in the units of the position."""
    room: ClassVar[float | None] = None
    """Half-width of the box drawn into the picture; None for no box."""

    def __post_init__(self) -> None:
        if self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps ({self.max_episode_steps}) must be at least 1.")

    def make(self, num_envs: int, seed: int) -> PointEnv:
        """Build ``num_envs`` environments whose streams are the children of ``SeedSequence(seed)``."""
        if num_envs < 1:
            raise ValueError(f"num_envs ({num_envs}) must be at least 1.")
        return PointEnv(self, num_envs, seed)

    @abstractmethod
    def start(self, stream: np.random.Generator) -> Array:
        """Initial state ``[S]`` of one episode, drawn from its environment's stream."""

    @abstractmethod
    def move(self, state: Array, action: Array) -> Array:
        """State ``[E, S]`` after ``action`` ``[E, A]`` in [-1, 1]."""

    @abstractmethod
    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """Reward ``[E]`` of a step from ``before`` to ``after``, states ``[E, S]``, towards ``goal`` ``[E, A]``."""

    def reached(self, after: Array, goal: Array) -> Array:
        """Whether the episode terminates, ``[E]`` bool; by default it never does."""
        return np.zeros(len(after), dtype=bool)


class PointEnv(BatchedEnv):
    """``E`` copies of a :class:`PointWorld`, stepped together. The task is ``goal`` ``[E, A]``."""

    def __init__(self, world: PointWorld, num_envs: int, seed: int) -> None:
        self.world = world
        name, dim = f"points/{world.name}", len(world.default_goal)
        spec = EnvSpec(name, world.obs_dim, dim, world.max_episode_steps, frame_dt=FRAME_DT)
        super().__init__(spec, num_envs, seed)
        self._state = np.zeros((num_envs, world.obs_dim))
        self._steps = np.full(num_envs, -1)  # -1: no running episode
        self._tasks = TaskTable(name, num_envs, {"goal": world.default_goal})

    def reset(self, mask: Array | None = None) -> Array:
        ids = self.selected(mask)
        self._tasks.begin(ids)
        for i in ids.tolist():
            self._state[i] = self.world.start(self.streams[i])
        self._steps[ids] = 0
        return self._state.copy()

    def tells_state(self, obs: Array) -> Array:
        """Always: the observation is the state."""
        return np.ones(len(obs), dtype=bool)

    def begin_at(self, obs: Array) -> None:
        """Start a new episode in every environment where ``obs`` ``[E, O]`` is observed; see the base."""
        self.reset()
        self._state[...] = obs

    def step(self, action: Array) -> StepResult:
        """Move every point by one step; ``EnvError`` for an ended episode and a bad action."""
        action = np.asarray(action, dtype=np.float64)
        self.check_step(action, self._steps < 0)
        before, self._state = self._state, self.world.move(self._state, action)
        goal = self._tasks.in_force["goal"]
        reward = self.world.reward(before, self._state, goal)
        terminated = self.world.reached(self._state, goal)
        self._steps += 1
        truncated = (self._steps >= self.world.max_episode_steps) & ~terminated
        self._steps[terminated | truncated] = -1
        return StepResult(self._state.copy(), reward, terminated, truncated)

    def set_tasks(self, tasks: Tasks) -> None:
        """Goals ``{"goal": [E, A]}``, in force from the next reset; ``EnvError`` on anything else."""
        self._tasks.give(self._tasks.checked(tasks))

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.common_state(),
            "state": torch.from_numpy(self._state.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
            **self._tasks.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. Raises ``EnvError`` if the state is of another world or number."""
        self.load_common_state(state)
        self._state[...], self._steps[...] = state["state"].numpy(), state["steps"].numpy()
        self._tasks.load(state)

    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """Picture ``[height, width, 3]`` uint8: the box in grey, the goal in green, the point in blue."""
        if not 0 <= index < self.num_envs:
            raise EnvError(f"There is no environment {index} to render, only 0 to {self.num_envs - 1}.")
        picture = np.full((height, width, 3), 255, dtype=np.uint8)
        pixel = 2 * self.world.view / min(width, height)
        x = (np.arange(width) + 0.5 - width / 2)[None, :] * pixel
        y = (height / 2 - np.arange(height) - 0.5)[:, None] * pixel
        if self.world.room is not None:
            picture[np.abs(np.maximum(np.abs(x), np.abs(y)) - self.world.room) < pixel] = GREY
        dim = self.spec.action_dim
        for colour, centre in ((GREEN, self._tasks.in_force["goal"][index]), (BLUE, self._state[index, :dim])):
            at = (*centre, 0.0)  # on a line the height is 0
            picture[np.hypot(x - at[0], y - at[1]) < self.world.view / 25] = colour
        return picture
