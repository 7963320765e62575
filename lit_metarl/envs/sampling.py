"""Draws that task families share: areas with a hole, so that training and out-of-distribution tasks never meet.

A training area is ``[0, size]`` in some norm, its out-of-distribution counterpart ``[size, larger]`` in the same norm.
"""

from __future__ import annotations

import numpy as np

from lit_metarl.envs.base import Array
from lit_metarl.envs.tasks import TaskFamily


def check_split(family: TaskFamily, split: str) -> None:
    """Raise ``ValueError`` unless ``family`` draws tasks of ``split``."""
    known = ("train", *family.splits)
    if split not in known:
        raise ValueError(f"{type(family).__name__} has no tasks of split {split!r}, only of {', '.join(known)}.")


def bounds(family: TaskFamily, split: str, size: float, larger: float) -> tuple[float, float]:
    """Smallest and largest norm of a task of ``split``: (0, size), or (size, larger) out of distribution."""
    check_split(family, split)
    return (size, larger) if split == "out_of_distribution" else (0.0, size)


def check_sizes(size: float, larger: float) -> None:
    """Raise ``ValueError`` unless 0 < size < larger < ∞."""
    if not 0 < size < larger < np.inf:
        raise ValueError(f"the size of training tasks and the larger one out of distribution: {size} and {larger}.")


def interval(generator: np.random.Generator, shape: int | tuple[int, ...], low: float, high: float) -> Array:
    """Draws uniform on low ≤ |x| ≤ high, of both signs; ``shape``."""
    return generator.uniform(low, high, shape) * generator.choice((-1.0, 1.0), shape)


def square(generator: np.random.Generator, num: int, low: float, high: float) -> Array:
    """Draws uniform on the square (ring) low ≤ ‖x‖∞ ≤ high; ``[num, 2]``."""
    # The area within ‖x‖∞ ≤ r grows as r². Given r, one coordinate is ±r and the other uniform between.
    radius = np.sqrt(generator.uniform(low**2, high**2, num))
    point = np.stack([interval(generator, num, 1.0, 1.0), generator.uniform(-1.0, 1.0, num)], axis=1)
    swapped = generator.random(num) < 0.5
    point[swapped] = point[swapped, ::-1]
    return radius[:, None] * point


def disc(generator: np.random.Generator, num: int, low: float, high: float) -> Array:
    """Draws uniform on the disc (ring) low ≤ ‖x‖₂ ≤ high; ``[num, 2]``."""
    radius = np.sqrt(generator.uniform(low**2, high**2, num))
    return radius[:, None] * directions(generator, num)


def directions(generator: np.random.Generator, num: int) -> Array:
    """Unit vectors, uniform on the circle; ``[num, 2]``."""
    angle = generator.uniform(0.0, 2 * np.pi, num)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
