"""A point with linear dynamics and a quadratic reward, whose action values are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lit_metarl.envs.base import Array, Tasks
from lit_metarl.envs.points import PointWorld

SECONDS = 0.1  # of a step
DRAG = 0.05  # share of the velocity that is lost in a step


@dataclass(frozen=True)
class LinearQuadratic(PointWorld):
    """A mass in the plane, pushed by its action: s' = s Aᵀ + a Bᵀ, paid −|s' − goal|², the goal being at rest.

    With the goal at the origin, where it is without a task, and a policy a = −s Kᵀ, values are quadratic: see
    :func:`action_gradient`.

    Args:
        max_episode_steps: agent steps after which an episode is truncated.
    """

    name: ClassVar[str] = "linear_quadratic"
    default_goal: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    obs_dim: ClassVar[int] = 4
    view: ClassVar[float] = 0.5

    def start(self, stream: np.random.Generator) -> Array:
        """Position and velocity uniform in ±0.3."""
        return stream.uniform(-0.3, 0.3, 4)

    def move(self, state: Array, action: Array) -> Array:
        """s Aᵀ + a Bᵀ."""
        a, b = dynamics()
        return state @ a.T + action @ b.T

    def reward(self, before: Array, after: Array, goal: Array) -> Array:
        """−|s' − goal|², of position and velocity."""
        away = after - np.pad(goal, ((0, 0), (0, 2)))
        return -np.vecdot(away, away)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Goals uniform in ±0.2, ``{"goal": [B, 2]}``."""
        return {"goal": generator.uniform(-0.2, 0.2, (num_tasks, 2))}


def dynamics() -> tuple[Array, Array]:
    """A ``[4, 4]`` and B ``[4, 2]``."""
    a = np.array([[1.0, SECONDS], [0.0, 1.0 - DRAG]])
    b = np.array([[SECONDS**2 / 2], [SECONDS]])
    return np.kron(a, np.eye(2)), np.kron(b, np.eye(2))


def value_matrix(gain: Array, gamma: float) -> Array:
    """P of V(s) = −s P sᵀ for the policy a = −s Kᵀ, ``[4, 4]``: P = Cᵀ (I + γP) C with C = A − B K.

    Args:
        gain: K, ``[2, 4]``.
        gamma: γ, below 1/ρ(C)².
    """
    a, b = dynamics()
    closed = a - b @ gain
    # vec(P) of the linear equation P − γ CᵀPC = CᵀC
    system = np.eye(16) - gamma * np.kron(closed.T, closed.T)
    return np.linalg.solve(system, (closed.T @ closed).ravel()).reshape(4, 4)


def action_value(state: Array, action: Array, gain: Array, gamma: float) -> Array:
    """Q(s, a) = −s' (I + γP) s'ᵀ at ``state [..., 4]`` and ``action [..., 2]``: ``[...]``."""
    a, b = dynamics()
    after = state @ a.T + action @ b.T
    return -np.vecdot(after @ (np.eye(4) + gamma * value_matrix(gain, gamma)), after)


def action_gradient(state: Array, action: Array, gain: Array, gamma: float) -> Array:
    """∇_a Q = −2 s' (I + γP) B, ``[..., 2]``; arguments of :func:`action_value`."""
    a, b = dynamics()
    after = state @ a.T + action @ b.T
    return -2.0 * after @ (np.eye(4) + gamma * value_matrix(gain, gamma)) @ b
