"""The robots of Gymnasium's MuJoCo suite as data: observation, reward and termination terms, and their weights.

Every term is a pure function of a :class:`~lit_metarl.envs.mujoco_batch.BatchSimulation`, vectorised over ``E``.
Source: Gymnasium's ``-v5`` environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from lit_metarl.envs.base import Array
from lit_metarl.envs.mujoco_batch import BatchSimulation

Term = Callable[[BatchSimulation], Array]
"""A quantity of every simulation, ``[E]`` or ``[E, k]``."""
Inverse = Callable[[BatchSimulation, Array], Array]
"""Observations ``[n, O]`` → their :func:`joint_state`, ``[n, nq + nv]``, NaN where it is not told."""


def joint_state(sim: BatchSimulation, skip: int = 0) -> Array:
    """Joint positions after the first ``skip``, then all velocities; ``[E, nq - skip + nv]``."""
    return sim.motion[:, skip:]


def joint_positions(sim: BatchSimulation, skip: int = 0) -> Array:
    """Joint positions after the first ``skip``, m and rad; ``[E, nq - skip]``."""
    return sim.field("qpos")[:, skip:]


def clipped_joint_velocities(sim: BatchSimulation, limit: float) -> Array:
    """Joint velocities clipped to ``±limit``, m/s and rad/s; ``[E, nv]``."""
    return np.clip(sim.field("qvel"), -limit, limit)


def observed_joint_state(sim: BatchSimulation, obs: Array, skip: int = 0, limit: float = np.inf) -> Array:
    """:func:`joint_state` of observations that begin with it, ``[n, O]`` → ``[n, nq + nv]``.

    The first ``skip`` positions, which are not observed, are 0; a velocity that was clipped to ``±limit`` is NaN.
    """
    size = sim.motion.shape[1]
    motion = np.zeros((len(obs), size))
    motion[:, skip:] = obs[:, : size - skip]
    velocities = motion[:, sim.model.nq :]
    velocities[np.abs(velocities) >= limit] = np.nan
    return motion


def body_inertias(sim: BatchSimulation, first_body: int = 1) -> Array:
    """Inertia and mass of each body from ``first_body`` (0 the world), about the centre of mass; ``[E, 10 n]``."""
    return sim.field("cinert")[:, first_body:].reshape(sim.num_sims, -1)


def body_velocities(sim: BatchSimulation, first_body: int = 1) -> Array:
    """Angular and linear velocity of each body, about the centre of mass; ``[E, 6 n]``."""
    return sim.field("cvel")[:, first_body:].reshape(sim.num_sims, -1)


def actuator_forces(sim: BatchSimulation, skip: int = 6) -> Array:
    """Generalised actuator forces after the free joint's ``skip``, N m; ``[E, nv - skip]``."""
    return sim.field("qfrc_actuator")[:, skip:]


def contact_forces(sim: BatchSimulation, limit: float = np.inf, first_body: int = 1) -> Array:
    """Contact torques and forces on each body, clipped to ``±limit``; ``[E, 6 n]``."""
    assert sim.contact_forces is not None
    forces = sim.contact_forces[:, first_body:].reshape(sim.num_sims, -1)
    return forces if np.isinf(limit) else np.clip(forces, -limit, limit)


def contact_cost(sim: BatchSimulation, weight: float, limit: float = np.inf, ceiling: float = np.inf) -> Array:
    """``min(weight · Σ clip(f, ±limit)², ceiling)`` over all contact torques and forces f; ``[E]``."""
    forces = contact_forces(sim, limit)
    return np.minimum(weight * np.vecdot(forces, forces), ceiling)


def root_position(sim: BatchSimulation) -> Array:
    """First joint coordinate, the x of planar robots, m; ``[E]``."""
    return sim.field("qpos")[:, 0]


def body_position(sim: BatchSimulation, body: int) -> Array:
    """x of a body's frame, m; ``[E]``."""
    return sim.field("xpos")[:, body, 0]


def planar_body_position(sim: BatchSimulation, body: int) -> Array:
    """x and y of a body's frame, m; ``[E, 2]``."""
    return sim.field("xpos")[:, body, :2]


def mass_center(sim: BatchSimulation) -> Array:
    """x of the centre of mass, ``Σ m_b x_b / Σ m_b`` over bodies b, m; ``[E]``."""
    mass = sim.model_field("body_mass")
    return np.vecdot(sim.field("xipos")[:, :, 0], mass) / mass.sum(axis=-1)


def planar_mass_center(sim: BatchSimulation) -> Array:
    """x and y of the centre of mass, m; ``[E, 2]``."""
    mass = sim.model_field("body_mass")[..., None, :]
    return np.vecdot(sim.field("xipos")[:, :, :2].swapaxes(1, 2), mass) / mass.sum(axis=-1)


def along(position: Array, velocity: Array, direction: Array) -> Array:
    """``d · v``: velocity along a direction; ``[E]``, from ``[E]`` (a line) or ``[E, 2]`` (the plane)."""
    return direction * velocity if velocity.ndim == 1 else np.vecdot(direction, velocity)


def inside(sim: BatchSimulation, low: float, high: float, index: int, closed: bool = False) -> Array:
    """Whether joint position ``index`` lies in (low, high), or in [low, high] if ``closed``; ``[E]`` bool."""
    value = sim.motion[:, index]
    return (low <= value) & (value <= high) if closed else (low < value) & (value < high)


def all_inside(sim: BatchSimulation, low: float, high: float, skip: int) -> Array:
    """Whether all of :func:`joint_state` after ``skip`` lies in (low, high); ``[E]`` bool."""
    values = sim.motion[:, skip:]
    return np.all((low < values) & (values < high), axis=1, keepdims=True)[:, 0]


@dataclass(frozen=True)
class Motion:
    """The reward of motion: a function of a coordinate of the robot, its mean velocity over a step, and the task.

    Attributes:
        reward: ``(position, velocity, task) → [E]``; position (m) after the step and velocity (m/s) are ``[E]`` on a
            line or ``[E, 2]`` in the plane.
        parameter: name of the task parameter.
        default: its value where nobody sets it, which also is its shape.
    """

    reward: Callable[[Array, Array, Array], Array] = along
    parameter: str = "direction"
    default: float | tuple[float, ...] = 1.0


@dataclass(frozen=True)
class Robot:
    """One robot: how it observes, is paid, fails and starts.

    reward = forward_weight · motion(position, Δposition/Δt, task) + healthy_reward · healthy + survival_reward
    − control_weight · ‖ctrl‖² − contact_cost

    Attributes:
        model_file: MJCF file, relative to Gymnasium's assets or absolute.
        frame_skip: physics steps per agent step.
        observation: terms concatenated to the observation.
        reset_noise: half-width of the uniform noise on the initial joint positions (and velocities), m and rad.
        position: the coordinate whose motion is paid, ``[E]`` or ``[E, 2]``; None if motion is not.
        motion: how it is paid; by default velocity times ``direction``.
        healthy: conditions that all have to hold or the episode terminates; empty if it never does.
        survival_reward: paid at every step, also at the one that terminates the episode.
        contact_cost: cost of contact forces; a robot with one has its contact forces computed.
        inverse: of the observation, where neither rewards nor later observations depend on what it leaves out; None
            where they do: where the place is observed or paid, or the position is a body's, which lags behind the
            joints. Who replaces ``observation``, ``position`` or ``motion`` sees to it, too.
        normal_velocity_noise: initial velocities are ``reset_noise · N(0, 1)`` rather than uniform.
    """

    model_file: str
    frame_skip: int
    observation: tuple[Term, ...]
    reset_noise: float
    position: Term | None = root_position
    motion: Motion = Motion()
    healthy: tuple[Term, ...] = ()
    forward_weight: float = 1.0
    healthy_reward: float = 0.0
    survival_reward: float = 0.0
    control_weight: float = 0.0
    contact_cost: Term | None = None
    inverse: Inverse | None = None
    normal_velocity_noise: bool = False


ROBOTS: Mapping[str, Robot] = MappingProxyType(
    {
        "half_cheetah": Robot(
            model_file="half_cheetah.xml",
            frame_skip=5,
            observation=(partial(joint_state, skip=1),),
            inverse=partial(observed_joint_state, skip=1),
            reset_noise=0.1,
            control_weight=0.1,
            normal_velocity_noise=True,
        ),
        "ant": Robot(
            model_file="ant.xml",
            frame_skip=5,
            observation=(partial(joint_state, skip=2), partial(contact_forces, limit=1.0)),
            reset_noise=0.1,
            position=partial(body_position, body=1),
            healthy=(partial(inside, low=0.2, high=1.0, index=2, closed=True),),
            healthy_reward=1.0,
            control_weight=0.5,
            contact_cost=partial(contact_cost, weight=5e-4, limit=1.0),
            normal_velocity_noise=True,
        ),
        "walker2d": Robot(
            model_file="walker2d_v5.xml",
            frame_skip=4,
            observation=(partial(joint_positions, skip=1), partial(clipped_joint_velocities, limit=10.0)),
            inverse=partial(observed_joint_state, skip=1, limit=10.0),
            reset_noise=5e-3,
            healthy=(partial(inside, low=0.8, high=2.0, index=1), partial(inside, low=-1.0, high=1.0, index=2)),
            healthy_reward=1.0,
            control_weight=1e-3,
        ),
        "hopper": Robot(
            model_file="hopper.xml",
            frame_skip=4,
            observation=(partial(joint_positions, skip=1), partial(clipped_joint_velocities, limit=10.0)),
            inverse=partial(observed_joint_state, skip=1, limit=10.0),
            reset_noise=5e-3,
            healthy=(
                partial(all_inside, low=-100.0, high=100.0, skip=2),
                partial(inside, low=0.7, high=np.inf, index=1),
                partial(inside, low=-0.2, high=0.2, index=2),
            ),
            healthy_reward=1.0,
            control_weight=1e-3,
        ),
        "humanoid": Robot(
            model_file="humanoid.xml",
            frame_skip=5,
            observation=(
                partial(joint_state, skip=2),
                body_inertias,
                body_velocities,
                actuator_forces,
                contact_forces,
            ),
            reset_noise=1e-2,
            position=mass_center,
            healthy=(partial(inside, low=1.0, high=2.0, index=2),),
            forward_weight=1.25,
            healthy_reward=5.0,
            control_weight=0.1,
            contact_cost=partial(contact_cost, weight=5e-7, ceiling=10.0),
        ),
        "swimmer": Robot(
            model_file="swimmer.xml",
            frame_skip=4,
            observation=(partial(joint_state, skip=2),),
            inverse=partial(observed_joint_state, skip=2),
            reset_noise=0.1,
            control_weight=1e-4,
        ),
        "inverted_pendulum": Robot(
            model_file="inverted_pendulum.xml",
            frame_skip=2,
            observation=(joint_state,),
            inverse=observed_joint_state,
            reset_noise=0.01,
            position=None,
            healthy=(partial(inside, low=-0.2, high=0.2, index=1, closed=True),),
            healthy_reward=1.0,
        ),
    }
)
