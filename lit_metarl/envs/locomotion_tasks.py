"""Families of locomotion tasks: robots that have to find out where, how fast or with which body to run.

Sources: Fallah et al. 2021, https://arxiv.org/abs/2002.05135 (SG-MRL); Tang et al. 2021,
https://arxiv.org/abs/2106.13125 (unified); Liu et al. 2019, http://proceedings.mlr.press/v97/liu19g.html (TMAML);
Sarafian et al. 2021, https://arxiv.org/abs/2106.06842 (HypeRL); Rothfuss et al. 2019,
https://arxiv.org/abs/1810.06784 (ProMP), whose released environments the first three use. What the texts leave open
is as released. Where text and code differ:

| what | text | released code | default, and how to have the other |
|---|---|---|---|
| half-cheetah's speed | U(0, 2) TMAML; U(0, 3) HypeRL | U(0, 3) | U(0, 3); ``velocity_range: [0, 2]`` |
| walker's speed | U(0, 2) TMAML | U(0, 10) | the text; ``velocity_range: [0, 10]`` |
| swimmer's speed | U(0, 2) TMAML, though it swims 0.4 m/s at best | U(0.1, 0.2) | the text; \
``velocity_range: [0.1, 0.2]`` |
| swimmer's speed, reward | penalty −abs(v − v*) | +abs(v − v*) | the text; ``reversed_penalty: true`` |
| survival, speed and direction | not named by TMAML | ant 1, humanoid 5, walker 1 (speed 15) | the code, for without \
it falling at once is the best answer to a penalty; ``survival_reward: 0`` |
| survival, ant to a goal | paid, amount not stated | 0 | 1, as for the ant's other tasks; ``survival_reward: 0`` |
| ant's goal | U([−3, 3]²) TMAML | disc of radius 3 | the text; ``goal_distribution: disc`` |
| reward of a direction in the plane | difference of directions (TMAML), running there (unified) | velocity along it | \
velocity along it; ``reward: heading`` |
| walker's frame skip | not stated | 8; 5 with random parameters; Gymnasium 4 | the code; ``frame_skip: 4`` |
| HypeRL's ant forward/backward | forward or backward | ±1 used as an angle in radians, ±57° | the text; \
``as_angle: true`` |
| steps of an episode | 100 (unified) | 100 or 200 (ProMP), 200 (SG-MRL, HypeRL) | 100; ``max_episode_steps: 200`` |
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from lit_metarl.envs.base import Array, BatchedEnv, Tasks
from lit_metarl.envs.locomotion import Locomotion, load_model
from lit_metarl.envs.robots import Motion, Robot
from lit_metarl.envs.sampling import bounds, check_sizes, check_split, directions, disc, interval, square
from lit_metarl.envs.task_robots import (
    PLANAR,
    PROMP,
    SETUPS,
    ant_with_coordinates,
    goal_penalty,
    heading_penalty,
    speed_error,
    speed_penalty,
)
from lit_metarl.envs.tasks import TaskFamily


@dataclass(frozen=True)
class LocomotionFamily(TaskFamily):
    """The base of the families: a robot in one of two setups.

    Args:
        robot: half_cheetah, ant, walker2d, hopper, humanoid or swimmer; families and setups may know fewer.
        setup: observations, weights and ends of the released code of ``promp`` or ``hyperl``
            (:mod:`~lit_metarl.envs.task_robots`).
        survival_reward: paid at every step; None for the setup's.
        frame_skip: physics steps per agent step; None for the setup's.
        max_episode_steps: agent steps after which an episode is truncated.
        threads: threads of the simulator, 0 for all CPUs.
    """

    robot: str = "half_cheetah"
    setup: Literal["promp", "hyperl"] = "promp"
    survival_reward: float | None = None
    frame_skip: int | None = None
    max_episode_steps: int = 100
    threads: int = 0

    name: ClassVar[str]
    robots: ClassVar[tuple[str, ...]] = tuple(PROMP)
    """Robots of the family; a setup may have fewer."""

    def __post_init__(self) -> None:
        if self.setup not in SETUPS:
            raise ValueError(f"unknown setup {self.setup!r}; known: {', '.join(SETUPS)}.")
        known = [robot for robot in self.robots if robot in SETUPS[self.setup]]
        if self.robot not in known:
            family = f"{type(self).__name__} in setup {self.setup}"
            raise ValueError(f"unknown robot {self.robot!r} for {family}; known: {', '.join(known)}.")
        if self.max_episode_steps < 1 or self.threads < 0 or (self.frame_skip is not None and self.frame_skip < 1):
            raise ValueError(f"max_episode_steps and frame_skip must be positive and threads not negative: {self}.")

    @abstractmethod
    def paid_robot(self, base: Robot) -> Robot:
        """The setup's robot ``base``, paid for this family's tasks."""

    def built_robot(self) -> Robot:
        """The robot of the environments, all settings applied."""
        robot = self.paid_robot(SETUPS[self.setup][self.robot])
        if self.survival_reward is not None:
            robot = replace(robot, survival_reward=self.survival_reward)
        return robot if self.frame_skip is None else replace(robot, frame_skip=self.frame_skip)

    def make(self, num_envs: int, seed: int) -> BatchedEnv:
        """Build ``num_envs`` environments whose streams are the children of ``SeedSequence(seed)``."""
        name = f"{self.robot}_{self.name}" + ("" if self.setup == "promp" else f"_{self.setup}")
        return Locomotion(name, self.built_robot(), num_envs, seed, self.max_episode_steps, self.threads)


@dataclass(frozen=True)
class Direction(LocomotionFamily):
    """Run forward or backward: ``d · v`` is paid, d = ±1 with equal probability. Nothing is out of distribution.

    Args:
        as_angle: use d as an angle in radians, so that the two directions are (cos 1, ± sin 1), as HypeRL's ant does.
    """

    as_angle: bool = False

    name = "direction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_angle and self.robot not in PLANAR:
            raise ValueError(f"as_angle needs a robot that moves in the plane, {' or '.join(PLANAR)}: {self.robot}.")

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Directions ``[B]``, or ``[B, 2]`` if ``as_angle``."""
        check_split(self, split)
        sign = generator.choice((-1.0, 1.0), num_tasks)
        return {"direction": np.stack([np.cos(sign), np.sin(sign)], axis=1) if self.as_angle else sign}

    def paid_robot(self, base: Robot) -> Robot:
        """The robot as it is, or with its velocity in the plane if ``as_angle``."""
        return replace(base, position=PLANAR[self.robot], motion=Motion(default=(1.0, 0.0))) if self.as_angle else base


@dataclass(frozen=True)
class Direction2D(LocomotionFamily):
    """Run in a direction of the plane, uniform on the circle: no direction is out of distribution.

    Args:
        robot: ant or humanoid.
        reward: ``projection`` pays the velocity along the direction, ``d · v``; ``heading`` takes ``‖v/‖v‖ − d‖``.
    """

    robot: str = "ant"
    reward: Literal["projection", "heading"] = "projection"

    name = "direction_2d"
    robots = tuple(PLANAR)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in ("projection", "heading"):
            raise ValueError(f"reward is projection or heading, not {self.reward!r}.")

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Unit vectors ``[B, 2]``."""
        check_split(self, split)
        return {"direction": directions(generator, num_tasks)}

    def paid_robot(self, base: Robot) -> Robot:
        """The robot with its velocity in the plane, paid as ``reward`` says."""
        robot = replace(base, position=PLANAR[self.robot], motion=Motion(default=(1.0, 0.0)))
        if self.reward == "projection":
            return robot
        return replace(robot, motion=replace(robot.motion, reward=heading_penalty), forward_weight=1.0)


@dataclass(frozen=True)
class Velocity(LocomotionFamily):
    """Run forward at a target speed v*, m/s: ``−|v − v*|`` is paid.

    Args:
        velocity_range: training speeds are uniform on it; None for [0, 3] (half_cheetah, ant) or [0, 2] (others).
        out_of_distribution_range: None for the fifth of the training range's width that lies above it. HypeRL's
            HalfCheetah-Vel-Medium is ``setup: hyperl`` with ``velocity_range: [0, 2.5]``, hence [2.5, 3] here.
        reversed_penalty: pay ``+|v − v*|``, as the released swimmer does.
    """

    velocity_range: tuple[float, float] | None = None
    out_of_distribution_range: tuple[float, float] | None = None
    reversed_penalty: bool = False

    name = "velocity"
    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        (low, high), (ood_low, ood_high) = ranges = self.ranges()
        if not np.isfinite(ranges).all() or low >= high or ood_low >= ood_high:
            raise ValueError(f"velocity ranges are [low, high] with low < high, but are {ranges}.")
        if ood_low < high and low < ood_high:
            raise ValueError(f"out_of_distribution_range overlaps velocity_range: {ranges}.")

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Training speeds and those out of distribution, each (low, high) in m/s."""
        low, high = self.velocity_range or (0.0, 3.0 if self.robot in ("half_cheetah", "ant") else 2.0)
        return (low, high), self.out_of_distribution_range or (high, high + (high - low) / 5)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Speeds ``[B]``, m/s."""
        check_split(self, split)
        training, out_of_distribution = self.ranges()
        low, high = out_of_distribution if split == "out_of_distribution" else training
        return {"velocity": generator.uniform(low, high, num_tasks)}

    def context(self, tasks: Tasks) -> Array:
        """The speed, with the training range mapped to [-1, 1]; ``[B, 1]``."""
        (low, high), _ = self.ranges()
        return (2 * (tasks["velocity"] - low) / (high - low) - 1).astype(np.float32)[:, None]

    def paid_robot(self, base: Robot) -> Robot:
        """The robot paid for its speed, and for survival, so that falling is no way out of a penalty."""
        # Falling must not end a penalty: 15 covers ProMP's 10 m/s, and the hopper, whom nobody released, likewise.
        # HypeRL's ant is paid 1 − |v − v*| beside survival.
        survival = {
            ("promp", "walker2d"): 15.0,
            ("promp", "hopper"): 15.0,
            ("hyperl", "ant"): 1.0 + base.survival_reward,
        }
        return replace(
            base,
            motion=Motion(speed_error if self.reversed_penalty else speed_penalty, "velocity", 1.0),
            forward_weight=1.0,
            survival_reward=survival.get((self.setup, self.robot), base.survival_reward),
        )


@dataclass(frozen=True)
class Goal(LocomotionFamily):
    """Walk to a place of the plane: ``−‖x − g‖₁`` of the torso is paid, m. The ant sees its x and y and never falls.

    Args:
        robot: ant.
        goal_distribution: ``square``, uniform on ‖g‖∞ ≤ size, or ``disc``, uniform on ‖g‖₂ ≤ size.
        size: half-width or radius of the training goals, m.
        out_of_distribution_size: goals out of distribution are uniform between ``size`` and this, m.
    """

    robot: str = "ant"
    goal_distribution: Literal["square", "disc"] = "square"
    size: float = 3.0
    out_of_distribution_size: float = 4.0

    name = "goal"
    robots = ("ant",)
    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self.size, self.out_of_distribution_size)
        if self.goal_distribution not in ("square", "disc"):
            raise ValueError(f"goal_distribution is square or disc, not {self.goal_distribution!r}.")

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Goals ``[B, 2]``, m."""
        low, high = bounds(self, split, self.size, self.out_of_distribution_size)
        return {"goal": (square if self.goal_distribution == "square" else disc)(generator, num_tasks, low, high)}

    def context(self, tasks: Tasks) -> Array:
        """The goal over ``size``, ``[B, 2]``."""
        return (tasks["goal"] / self.size).astype(np.float32)

    def paid_robot(self, base: Robot) -> Robot:
        """The ant that sees its coordinates, paid for its distance from the goal."""
        weight = 0.1 if self.setup == "promp" else base.control_weight
        motion = Motion(goal_penalty, "goal", (0.0, 0.0))
        return replace(ant_with_coordinates(base), position=PLANAR["ant"], motion=motion, control_weight=weight)


MULTIPLIER_BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
"""Model field → what its multipliers are powers of."""


@dataclass(frozen=True)
class RandomParameters(LocomotionFamily):
    """Run forward with an unknown body: every mass, inertia, friction and damping is multiplied by base^u.

    u ~ U(−limit, limit) for every entry on its own; the bases are :data:`MULTIPLIER_BASES`. After rand_param_envs,
    https://github.com/dennisl88/rand_param_envs.

    Args:
        limit: of the exponents of training tasks.
        out_of_distribution_limit: exponents out of distribution are uniform on limit < |u| ≤ this.
    """

    robot: str = "walker2d"
    limit: float = 3.0
    out_of_distribution_limit: float = 4.0

    name = "random_parameters"
    robots = ("half_cheetah", "ant", "walker2d", "hopper")  # swimmer and humanoid diverge at some of these masses
    splits = ("test", "out_of_distribution")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self.limit, self.out_of_distribution_limit)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Model fields ``model.<field>`` ``[B, ...]``."""
        low, high = bounds(self, split, self.limit, self.out_of_distribution_limit)
        model, tasks = load_model(self.built_robot()), {}
        for field, base in MULTIPLIER_BASES.items():
            value = getattr(model, field)
            tasks[f"model.{field}"] = value * base ** interval(generator, (num_tasks, *value.shape), low, high)
        return tasks

    def context(self, tasks: Tasks) -> Array:
        """Exponents over ``limit`` of all entries that are not zero in the model, ``[B, C]``."""
        model, columns = load_model(self.built_robot()), []
        for field, base in MULTIPLIER_BASES.items():
            value = getattr(model, field)
            ratio = tasks[f"model.{field}"][:, value != 0] / value[value != 0]
            columns.append(np.log(ratio) / (self.limit * np.log(base)))
        return np.concatenate(columns, axis=1).astype(np.float32)

    def paid_robot(self, base: Robot) -> Robot:
        """The robot as it is; walker2d with the released frame skip of 5."""
        return replace(base, frame_skip=5) if self.robot == "walker2d" else base
