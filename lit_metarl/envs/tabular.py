"""Finite MDPs: as a value, at random, and as environments whose tasks are reward tables.

Axes: ``S`` states, ``A`` actions, ``E`` environments, ``B`` tasks. What is known exactly about them (value, gradient,
Hessian, all trajectories) is in :mod:`lit_metarl.envs.tabular_exact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_metarl.envs.base import Array, BatchedEnv, EnvError, EnvSpec, StepResult, Tasks
from lit_metarl.envs.sampling import check_split
from lit_metarl.envs.task_table import TaskTable
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.types import require


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite MDP.

    Attributes:
        transition: P(s'|s, a), ``[S, A, S]``.
        reward: r(s, a), ``[S, A]``, paid for the action and deterministic.
        start: probability of the first state, ``[S]``.
        terminal: states that end the episode when they are entered, ``[S]`` bool; none if None.
    """

    transition: Array
    reward: Array
    start: Array
    terminal: Array | None = None

    def __post_init__(self) -> None:
        shape = self.transition.shape
        if len(shape) != 3 or shape[0] != shape[2] or self.reward.shape != shape[:2] or self.start.shape != shape[:1]:
            raise EnvError(
                f"A tabular MDP has transition [S, A, S], reward [S, A] and start [S], but was given {shape}, "
                f"{self.reward.shape} and {self.start.shape}."
            )
        for name, rows in (("transition", self.transition), ("start", self.start)):
            if (rows < 0).any() or not np.allclose(rows.sum(-1), 1):
                raise EnvError(f"The rows of {name} of a tabular MDP are probabilities: not negative, with sum 1.")
        if self.start[self.ends].any():
            raise EnvError("No episode of a tabular MDP starts in a terminal state.")

    @property
    def num_states(self) -> int:
        """S, the number of states."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the number of actions."""
        return self.transition.shape[1]

    @property
    def ends(self) -> Array:
        """Mask of the states that end the episode, ``[S]`` bool."""
        return np.zeros(self.num_states, dtype=bool) if self.terminal is None else self.terminal


def random_mdp(
    num_states: int, num_actions: int, seed: int, concentration: float = 1.0, num_terminal: int = 0
) -> TabularMDP:
    """Draw P(·|s, a) ~ Dirichlet(concentration, …) and r ~ U(0, 1); episodes start in state 0.

    With 10 states, 5 actions and ``concentration`` 0.001 (nearly deterministic) these are the MDPs of Tang et al. 2021,
    section 5.1.

    Args:
        num_states: S.
        num_actions: A.
        seed: of everything that is drawn.
        concentration: of the symmetric Dirichlet distribution, above 0.
        num_terminal: how many states, the last ones, end the episode.
    """
    require(concentration > 0, "concentration", concentration, "a Dirichlet parameter is above 0")
    require(0 <= num_terminal < num_states, "num_terminal", num_terminal, "state 0 starts the episode, so below S")
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(num_states, concentration), size=(num_states, num_actions))
    reward = rng.uniform(size=(num_states, num_actions))
    index = np.arange(num_states)
    return TabularMDP(transition, reward, (index == 0).astype(float), index >= num_states - num_terminal)


class TabularEnv(BatchedEnv):
    """``E`` copies of a finite MDP; the observation is the one-hot state, the action an integer.

    Tasks, in force from the next reset of an environment; what is not named keeps its value:
        ``reward`` ``[E, S, A]``: reward table.
        ``start`` ``[E, S]``: probability of the first state.
    """

    def __init__(self, mdp: TabularMDP, num_envs: int, seed: int, horizon: int) -> None:
        self.mdp = mdp
        name = f"tabular/{mdp.num_states}x{mdp.num_actions}"
        super().__init__(EnvSpec(name, mdp.num_states, 1, horizon, mdp.num_actions), num_envs, seed)
        self._horizon = horizon
        self._ends = mdp.ends
        self._cumulative = mdp.transition.cumsum(-1)
        self._state = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.full(num_envs, -1)  # -1: never reset
        # All randomness of an episode is drawn at its reset, one number per state, so that a step is array operations.
        self._uniform = np.zeros((num_envs, horizon + 1))
        self._tasks = TaskTable(name, num_envs, {"reward": mdp.reward, "start": mdp.start})

    def reset(self, mask: Array | None = None) -> Array:
        """Start a new episode where ``mask`` ``[E]`` is True (everywhere if None); returns observations ``[E, S]``."""
        ids = self.selected(mask)
        self._tasks.begin(ids)
        for i in ids.tolist():
            self._uniform[i] = self.streams[i].random(self._horizon + 1)
        self._state[ids] = _draw(self._tasks.in_force["start"][ids].cumsum(-1), self._uniform[ids, 0])
        self._steps[ids] = 0
        return self._observe()

    def step(self, action: Array) -> StepResult:
        """Advance every environment by one step; ``action`` is integers ``[E]`` in 0 … A−1."""
        action = np.asarray(action)
        self.check_step(action, (self._steps < 0) | (self._steps >= self._horizon) | self._ends[self._state])
        reward = self._tasks.in_force["reward"][np.arange(self.num_envs), self._state, action]
        self._steps += 1
        uniform = self._uniform[np.arange(self.num_envs), self._steps]
        self._state = _draw(self._cumulative[self._state, action], uniform)
        return StepResult(self._observe(), reward, self._ends[self._state], self._steps >= self._horizon)

    def set_tasks(self, tasks: Tasks) -> None:
        """Give every environment its own task (see the class); ``EnvError`` on an unknown or ill-shaped parameter."""
        rows = self._tasks.checked(tasks)
        start = rows.get("start", self.mdp.start)
        if (start < 0).any() or not np.allclose(start.sum(-1), 1) or start[..., self._ends].any():
            raise EnvError(f"{self.spec.name}: task 'start' has to be probabilities of states that do not end.")
        self._tasks.give(rows)

    def state_dict(self) -> dict[str, Any]:
        """States, steps, what is left of the episodes' random numbers, streams and tasks."""
        arrays = {"state": self._state, "steps": self._steps, "uniform": self._uniform}
        return {
            **self.common_state(),
            **{key: torch.from_numpy(value.copy()) for key, value in arrays.items()},
            **self._tasks.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the next steps are bit-identical."""
        self.load_common_state(state)
        if state["uniform"].shape != self._uniform.shape:
            raise EnvError(f"{self.spec.name}: the saved state is of another horizon than {self._horizon}.")
        self._state, self._steps, self._uniform = (state[key].numpy().copy() for key in ("state", "steps", "uniform"))
        self._tasks.load(state)

    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """One grey bar per state, ``[height, width, 3]`` uint8; the current one is white."""
        bars = np.where(np.arange(self.mdp.num_states) == self._state[index], 255, 64).astype(np.uint8)
        row = bars[np.arange(width) * self.mdp.num_states // width]
        return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()

    def _observe(self) -> Array:
        return np.eye(self.mdp.num_states)[self._state]


def _draw(cumulative: Array, uniform: Array) -> Array:
    """States ``[n]`` from running sums of probabilities ``[n, S]`` and uniform numbers ``[n]``."""
    # The sums end at exactly 1: rounding leaves no gap below it, and a last state of probability 0 is never drawn.
    return (cumulative / cumulative[:, -1:] <= uniform[:, None]).sum(-1)


@dataclass(frozen=True)
class TabularTasks(TaskFamily):
    """One random MDP with rewards that differ by task: r ~ U(0, 1) per state and action.

    Args:
        num_states: S.
        num_actions: A.
        horizon: steps after which an episode is truncated.
        concentration: of the Dirichlet distribution of the transitions, see :func:`random_mdp`.
        num_terminal: how many states end the episode.
        mdp_seed: of the transitions, which all tasks share.
    """

    num_states: int = 10
    num_actions: int = 5
    horizon: int = 20
    concentration: float = 0.001
    num_terminal: int = 0
    mdp_seed: int = 0

    def __post_init__(self) -> None:
        require(self.horizon >= 1, "horizon", self.horizon, "an episode has at least one step")
        require(self.mdp_seed >= 0, "mdp_seed", self.mdp_seed, "seeds are non-negative integers")
        self.mdp()  # refuses the other settings

    def mdp(self) -> TabularMDP:
        """The MDP whose transitions all tasks share."""
        return random_mdp(self.num_states, self.num_actions, self.mdp_seed, self.concentration, self.num_terminal)

    def make(self, num_envs: int, seed: int) -> BatchedEnv:
        """Build ``num_envs`` environments whose streams are the children of ``SeedSequence(seed)``."""
        return TabularEnv(self.mdp(), num_envs, seed, self.horizon)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Reward tables ``reward`` ``[B, S, A]``, the same distribution in training and test."""
        check_split(self, split)
        return {"reward": generator.uniform(size=(num_tasks, self.num_states, self.num_actions))}
