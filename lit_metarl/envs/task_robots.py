"""Robots and motion rewards of the meta-RL papers, as data for :mod:`lit_metarl.envs.locomotion_tasks`.

Two released code bases, two setups of observation, weights and ends over the same models: ``promp`` (Rothfuss et al.
2019, on which SG-MRL, TMAML and the unified estimators build) and ``hyperl`` (Sarafian et al. 2021, after PEARL).
Observations that contain bodies count the world as one of them, all zeros, to have the released sizes; HypeRL's
half-cheetah and the ant with a goal see where they are, nobody sees the task. Robots that no paper uses in a family
have the weights of Gymnasium; walker2d has the feet of Gymnasium's ``-v5`` model, which have equal friction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np

from lit_metarl.envs.base import Array
from lit_metarl.envs.mujoco_batch import BatchSimulation
from lit_metarl.envs.robots import (
    ROBOTS,
    Robot,
    Term,
    actuator_forces,
    body_inertias,
    body_velocities,
    contact_forces,
    inside,
    joint_state,
    planar_body_position,
    planar_mass_center,
)


def speed_penalty(position: Array, velocity: Array, target: Array) -> Array:
    """``−|v − v*|``, ``[E]``; v and v* are ``[E]`` in m/s."""
    return -np.abs(velocity - target)


def speed_error(position: Array, velocity: Array, target: Array) -> Array:
    """``+|v − v*|``, ``[E]``: the released swimmer's sign, which pays for *missing* the target."""
    return np.abs(velocity - target)


def heading_penalty(position: Array, velocity: Array, direction: Array) -> Array:
    """``−‖v/‖v‖ − d‖``, ``[E]``, between −2 and 0; −1 at rest. v and the unit vector d are ``[E, 2]``."""
    speed = np.linalg.norm(velocity, axis=1, keepdims=True)
    return -np.linalg.norm(velocity / np.where(speed > 0.0, speed, 1.0) - direction, axis=1)


def goal_penalty(position: Array, velocity: Array, goal: Array) -> Array:
    """``−‖x − g‖₁``, ``[E]``; x and g are ``[E, 2]`` in m."""
    return -np.abs(position - goal).sum(axis=1)


def torso_position(sim: BatchSimulation) -> Array:
    """Coordinates of the first body, m; ``[E, 3]``."""
    return sim.field("xpos")[:, 1]


_clipped_forces = partial(contact_forces, limit=1.0, first_body=0)

PROMP: Mapping[str, Robot] = MappingProxyType(
    {
        "half_cheetah": replace(ROBOTS["half_cheetah"], control_weight=0.05),
        "ant": replace(
            ROBOTS["ant"],
            observation=(partial(joint_state, skip=2), _clipped_forces),
            healthy=(partial(inside, low=0.0, high=1.0, index=2, closed=True),),
            healthy_reward=0.0,
            survival_reward=1.0,
        ),
        "walker2d": replace(ROBOTS["walker2d"], frame_skip=8, healthy_reward=0.0, survival_reward=1.0),
        "hopper": replace(ROBOTS["hopper"], healthy_reward=0.0, survival_reward=1.0),
        "humanoid": replace(
            ROBOTS["humanoid"],
            observation=(
                partial(joint_state, skip=2),
                partial(body_inertias, first_body=0),
                partial(body_velocities, first_body=0),
                partial(actuator_forces, skip=0),
                partial(contact_forces, first_body=0),
            ),
            healthy=(partial(inside, low=1.0, high=2.0, index=2, closed=True),),
            healthy_reward=0.0,
            survival_reward=5.0,
        ),
        "swimmer": ROBOTS["swimmer"],
    }
)

HYPERL: Mapping[str, Robot] = MappingProxyType(
    {
        "half_cheetah": replace(
            PROMP["half_cheetah"],
            observation=(partial(joint_state, skip=1), torso_position),
            inverse=None,  # it observes where it is
        ),
        "ant": replace(
            PROMP["ant"],
            observation=(partial(joint_state, skip=2),),
            healthy=(partial(inside, low=0.2, high=1.0, index=2, closed=True),),
            control_weight=0.005,
            survival_reward=0.05,
        ),
    }
)

SETUPS: Mapping[str, Mapping[str, Robot]] = MappingProxyType({"promp": PROMP, "hyperl": HYPERL})

PLANAR: Mapping[str, Term] = MappingProxyType(
    {"ant": partial(planar_body_position, body=1), "humanoid": planar_mass_center}
)
"""Paid coordinates ``[E, 2]`` of the robots that move in the plane."""


def ant_with_coordinates(robot: Robot) -> Robot:
    """The ant that sees its x and y and never falls, for tasks with a place to go to."""
    return replace(robot, observation=(joint_state, _clipped_forces), healthy=())
