"""Families of navigation tasks: a point has to find a goal that it does not see.

Actions a lie in [-1, 1]; ``clip`` bounds each coordinate. Sources: Fallah et al. 2021, https://arxiv.org/abs/2002.05135
(SG-MRL); Tang et al. 2021, https://arxiv.org/abs/2106.13125 (unified estimators), whose navigation is that of
Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784 (ProMP); Liu et al. 2019, http://proceedings.mlr.press/v97/liu19g.html
(TMAML); Rakelly et al. 2019, https://arxiv.org/abs/1903.08254 (PEARL), whose point robots are its released code's.

Where a paper's text and its released code differ:

| what | text | released code | default |
|---|---|---|---|
| reward of SG-MRL's navigation | −‖x − g‖² | −‖x − g‖ | the text; ``distance: euclidean`` |
| TMAML's 1-D goal | U(−1, 1) | none released; ProMP's study: −1 or 1 | the text; ``goals: two`` |
| TMAML's 1-D dynamics, reward, horizon | not stated | none released | those of ProMP's study |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_metarl.envs.base import Array, Tasks
from lit_metarl.envs.points import PointWorld
from lit_metarl.envs.sampling import bounds, check_sizes, check_split, interval, square

CORNERS = np.array([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])


@dataclass(frozen=True)
class _GoalsInSquare(PointWorld):
    """Goals anywhere in a square around the origin."""

    goal_size: float = 0.5
    out_of_distribution_size: float = 0.75

    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self.goal_size, self.out_of_distribution_size)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Goals ``[B, 2]``."""
        low, high = bounds(self, split, self.goal_size, self.out_of_distribution_size)
        return {"goal": square(generator, num_tasks, low, high)}

    def context(self, tasks: Tasks) -> Array:
        """The goal over ``goal_size``, ``[B, 2]``."""
        return (tasks["goal"] / self.goal_size).astype(np.float32)


@dataclass(frozen=True)
class Navigation2D(_GoalsInSquare):
    """SG-MRL's 2-D navigation: from the origin to a goal in a unit square (lengths in sides of it, time in steps).

    ``x ← clip(x + 0.1 clip(a, ±1), ±0.5)``; the reward is minus the (squared) distance of the new position to the
    goal; the episode terminates when both coordinates are within 0.01 of it. The observation is the position.
    Doing nothing earns −100/6 = −16.7 on average over tasks, −38.3 with the Euclidean distance.

    Training goals already fill the room, so goals out of distribution lie *outside* it: they can be approached up to
    the wall, never reached. With ``goal_size: 0.4`` and ``out_of_distribution_size: 0.5`` unseen goals are reachable,
    but the training distribution is no longer the paper's.

    Args:
        distance: ``squared`` or ``euclidean``.
        goal_size: training goals are uniform on ‖g‖∞ ≤ goal_size.
        out_of_distribution_size: goals out of distribution are uniform on goal_size < ‖g‖∞ ≤ this.
    """

    distance: Literal["squared", "euclidean"] = "squared"

    name = "navigation_2d"
    default_goal = (0.3, 0.3)
    view = 0.8
    room = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("distance", self.distance, ("squared", "euclidean"))

    def start(self, stream: np.random.Generator) -> Array:
        """The origin ``[2]``."""
        return np.zeros(2)

    def move(self, state: Array, action: Array) -> Array:
        """``clip(x + 0.1 clip(a, ±1), ±0.5)``, ``[E, 2]``."""
        return np.clip(state + 0.1 * np.clip(action, -1.0, 1.0), -self.room, self.room)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """``−‖x' − g‖²`` or ``−‖x' − g‖``, ``[E]``."""
        return _penalty(after - goal, squared=self.distance == "squared")

    def reached(self, after: Array, goal: Array) -> Array:
        """``‖x' − g‖∞ < 0.01``, ``[E]`` bool."""
        return np.abs(after - goal).max(axis=1) < 0.01


@dataclass(frozen=True)
class _CornerWorld(PointWorld):
    """Four tasks: the corners (±2, ±2), equally likely."""

    reward_kind: Literal["sparse", "dense", "dense_squared"] = "sparse"

    default_goal = (2.0, 2.0)
    view = 3.0
    room = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("reward_kind", self.reward_kind, ("sparse", "dense", "dense_squared"))

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Corners ``[B, 2]``, equally likely."""
        check_split(self, split)
        return {"goal": CORNERS[generator.integers(len(CORNERS), size=num_tasks)]}

    def context(self, tasks: Tasks) -> Array:
        """The signs of the corner, ``[B, 2]``."""
        return (tasks["goal"] / 2.0).astype(np.float32)


@dataclass(frozen=True)
class Corners(_CornerWorld):
    """ProMP's navigation to one of the four corners (±2, ±2), the 2-D task of the unified estimators.

    Start U([−0.2, 0.2]²), ``x ← x + 0.2 clip(a, ±1)``, no termination. The observation is the position. The reward is

    - ``sparse``: ``‖x − g‖ − ‖x' − g‖`` where g is the corner nearest to x' and ‖x'‖₁ ≥ 0.5, else 0. The dead zone
      lies around the *origin*. A straight run earns about 2.5; leaving another corner's quadrant costs nothing, so a
      point that circles can earn its progress again.
    - ``dense``: ``−‖x' − g‖``;  ``dense_squared``: ``−‖x' − g‖²``.

    There are four tasks, hence none out of distribution. Lengths are in a quarter of the square's side, time in steps.
    """

    name = "corners"

    def start(self, stream: np.random.Generator) -> Array:
        """U([−0.2, 0.2]²), ``[2]``."""
        return stream.uniform(-0.2, 0.2, 2)

    def move(self, state: Array, action: Array) -> Array:
        """``x + 0.2 clip(a, ±1)``, ``[E, 2]``."""
        return state + 0.2 * np.clip(action, -1.0, 1.0)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """Progress to the goal near its corner, or a penalty on the distance, as ``reward_kind`` says; ``[E]``."""
        if self.reward_kind != "sparse":
            return _penalty(after - goal, squared=self.reward_kind == "dense_squared")
        progress = np.linalg.norm(before - goal, axis=1) - np.linalg.norm(after - goal, axis=1)
        # Of all corners that one is nearest whose signs the position shares; on an axis two are, and both count.
        nearest = (after * goal >= 0.0).all(axis=1)
        return np.where(nearest & (np.abs(after).sum(axis=1) >= 0.5), progress, 0.0)


@dataclass(frozen=True)
class Momentum(_CornerWorld):
    """ProMP's navigation to a corner (±2, ±2) by forces instead of velocities.

    Start x ~ U([−0.2, 0.2]²), v ~ U([−0.1, 0.1]²); ``v ← v + 0.1 clip(a, ±1)``, then ``x ← x + v``; no termination.
    The observation is (x, v). The reward is ``max(2 − ‖x' − g‖, 0)`` (``sparse``), ``−‖x' − g‖`` (``dense``) or
    ``−‖x' − g‖²`` (``dense_squared``). There are four tasks, hence none out of distribution.
    """

    name = "momentum"
    obs_dim = 4

    def start(self, stream: np.random.Generator) -> Array:
        """Position U([−0.2, 0.2]²) and velocity U([−0.1, 0.1]²), ``[4]``."""
        return np.concatenate([stream.uniform(-0.2, 0.2, 2), stream.uniform(-0.1, 0.1, 2)])

    def move(self, state: Array, action: Array) -> Array:
        """``v' = v + 0.1 clip(a, ±1)`` and ``x' = x + v'``, ``[E, 4]``."""
        velocity = state[:, 2:] + 0.1 * np.clip(action, -1.0, 1.0)
        return np.concatenate([state[:, :2] + velocity, velocity], axis=1)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """Closeness to the goal, or a penalty on the distance, as ``reward_kind`` says; ``[E]``."""
        offset = after[:, :2] - goal
        if self.reward_kind == "sparse":
            return np.maximum(2.0 - np.linalg.norm(offset, axis=1), 0.0)
        return _penalty(offset, squared=self.reward_kind == "dense_squared")


@dataclass(frozen=True)
class Point1D(PointWorld):
    """A point on a line with a world so small that gradients can be had to any accuracy (TMAML, Fig. 4).

    TMAML states the start U(−2, 2) and the goal U(−1, 1). Its dynamics, reward and horizon are not stated and not
    released; here they are those of ProMP's one-dimensional study: the action *is* the next position,
    ``x ← 2 clip(a, ±1)``, the reward ``exp(−0.1 (x' − g)²)``, the horizon 5, and nothing terminates. The observation
    is the position.

    Args:
        goals: training goals, ``uniform`` on [−1, 1] (TMAML) or ``two``, −1 and 1 (ProMP). Out of distribution both
            are uniform on 1 < |g| ≤ 1.5.
    """

    max_episode_steps: int = 5
    goals: Literal["uniform", "two"] = "uniform"

    name = "point_1d"
    default_goal = (1.0,)
    obs_dim = 1
    view = 2.2
    room = 2.0
    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("goals", self.goals, ("uniform", "two"))

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Goals ``[B, 1]``."""
        low, high = bounds(self, split, 1.0, 1.5)
        if self.goals == "two" and split != "out_of_distribution":
            low = high
        return {"goal": interval(generator, (num_tasks, 1), low, high)}

    def start(self, stream: np.random.Generator) -> Array:
        """U(−2, 2), ``[1]``."""
        return stream.uniform(-2.0, 2.0, 1)

    def move(self, state: Array, action: Array) -> Array:
        """``2 clip(a, ±1)``, ``[E, 1]``."""
        return 2.0 * np.clip(action, -1.0, 1.0)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """``exp(−0.1 (x' − g)²)``, ``[E]``."""
        return np.exp(-0.1 * (after - goal)[:, 0] ** 2)


@dataclass(frozen=True)
class PointRobot(_GoalsInSquare):
    """PEARL's point robot: from anywhere in a square to a goal in it, paid minus the distance.

    Start U([−1, 1]²), ``x ← x + 0.1 clip(a, ±1)`` without walls, reward ``−‖x' − g‖``, horizon 20, no termination. The
    observation is the position. Doing nothing earns −20.9 on average.

    Args:
        goal_size: training goals are uniform on ‖g‖∞ ≤ goal_size.
        out_of_distribution_size: goals out of distribution are uniform on goal_size < ‖g‖∞ ≤ this.
    """

    max_episode_steps: int = 20
    goal_size: float = 1.0
    out_of_distribution_size: float = 1.5

    name = "point_robot"
    default_goal = (0.5, 0.5)
    view = 2.0

    def start(self, stream: np.random.Generator) -> Array:
        """U([−1, 1]²), ``[2]``."""
        return stream.uniform(-1.0, 1.0, 2)

    def move(self, state: Array, action: Array) -> Array:
        """``x + 0.1 clip(a, ±1)``, ``[E, 2]``."""
        return state + 0.1 * np.clip(action, -1.0, 1.0)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """``−‖x' − g‖``, ``[E]``."""
        return _penalty(after - goal, squared=False)


@dataclass(frozen=True)
class SparsePointRobot(PointWorld):
    """PEARL's sparse point robot: to a goal on a half circle, which is paid for nearby only.

    Start at the origin, ``x ← x + 0.1 clip(a, ±1)``, reward ``1 − ‖x' − g‖`` where that distance is at most
    ``goal_radius`` and 0 elsewhere, horizon 20, no termination. Goals lie on the unit circle, training goals at angles
    U(0, π) (released: 100 evenly spaced ones), those out of distribution at U(π, 2π). Released training is on
    :meth:`shaped_reward`, inference and reports on the sparse reward: ``data.shaped_rewards``.

    Args:
        goal_radius: distance to the goal within which it is paid.
    """

    max_episode_steps: int = 20
    goal_radius: float = 0.2

    name = "sparse_point_robot"
    default_goal = (0.0, 1.0)
    view = 1.5
    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.goal_radius < 1:
            raise ValueError(f"goal_radius ({self.goal_radius}) must lie between 0 and the distance to goals, 1.")

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Goals ``[B, 2]``."""
        check_split(self, split)
        angle = generator.uniform(0.0, np.pi, num_tasks) + (np.pi if split == "out_of_distribution" else 0.0)
        return {"goal": np.stack([np.cos(angle), np.sin(angle)], axis=1)}

    def start(self, stream: np.random.Generator) -> Array:
        """The origin ``[2]``."""
        return np.zeros(2)

    def move(self, state: Array, action: Array) -> Array:
        """``x + 0.1 clip(a, ±1)``, ``[E, 2]``."""
        return state + 0.1 * np.clip(action, -1.0, 1.0)

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """``1 − ‖x' − g‖`` within ``goal_radius``, else 0; ``[E]``."""
        distance = np.linalg.norm(after - goal, axis=1)
        return np.where(distance <= self.goal_radius, 1.0 - distance, 0.0)

    def shaped_reward(self, tasks: Tasks, before: Array, after: Array) -> Array:
        """``−‖x' − g‖``, ``[n]``."""
        return _penalty(after - tasks["goal"], squared=False)


def _penalty(offset: Array, squared: bool) -> Array:
    squares = np.vecdot(offset, offset)
    return -squares if squared else -np.sqrt(squares)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {' or '.join(known)}, not {value!r}.")
