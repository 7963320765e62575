"""The simulator contract: arrays in, arrays out, the leading axis is the environment.

Axes: ``E`` environments, ``O`` observation, ``A`` action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_metarl.types import Sizes

Array = np.ndarray
Tasks = Mapping[str, Array]
"""Task parameters by name, each ``[E, ...]``: one row per environment."""


class EnvError(RuntimeError):
    """An environment broke its contract; the message names the environment's index and the step."""


@dataclass(frozen=True)
class EnvSpec:
    """The sizes and clocks of an environment, by which modules are built and curves are counted.

    Attributes:
        name: ``suite/task``, unique among simulators; used as the environment's tag.
        obs_dim: O, length of the flat observation.
        action_dim: A, length of a continuous action (1 for a discrete one).
        max_episode_steps: agent steps after which an episode is truncated; None if never.
        num_actions: number of discrete actions; None if the action is continuous.
        frame_dt: seconds of simulated time in one agent step (sets the frame rate of a video).
        action_repeat: environment steps in one agent step; the x-axis of every curve counts environment steps.
    """

    name: str
    obs_dim: int
    action_dim: int
    max_episode_steps: int | None
    num_actions: int | None = None
    frame_dt: float = 0.02
    action_repeat: int = 1

    @property
    def sizes(self) -> Sizes:
        """Sizes that networks for this environment are built for, without a context."""
        return Sizes(self.obs_dim, self.action_dim, self.num_actions)


class StepResult(NamedTuple):
    """One step of all environments. ``obs`` is the true successor, also at the end of an episode."""

    obs: Array  # [E, O]
    reward: Array  # [E] float64
    terminated: Array  # [E] bool: the MDP ended, nothing follows
    truncated: Array  # [E] bool: the time limit cut the episode, the value goes on


class BatchedEnv(ABC):
    """``E`` environments stepped together.

    Continuous actions lie in [-1, 1] and are mapped affinely to the simulator's own bounds; discrete ones are
    integers ``[E]``. Nothing resets by itself: after a step the caller resets the environments that ended. Arrays that
    are given or returned are the caller's: neither side sees what the other does to them later. Environment ``i`` draws
    from its own stream, child ``i`` of ``SeedSequence(seed)``, so its episodes do not depend on how many others run
    beside it.

    Args:
        spec: what a module has to know of them.
        num_envs: E.
        seed: of the streams; None for a simulator with streams of its own kind.
    """

    resumes_exactly: bool = True
    """False where the simulator's state cannot be read out: a resumed run starts at the next episode."""
    resume_note: str = ""
    """Why not, and what to do about it."""

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int | None) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self.streams = [] if seed is None else make_streams(seed, num_envs)

    @abstractmethod
    def reset(self, mask: Array | None = None) -> Array:
        """Start a new episode where ``mask`` ``[E]`` is True (everywhere if None); returns observations ``[E, O]``."""

    @abstractmethod
    def step(self, action: Array) -> StepResult:
        """Advance every environment by one agent step; ``action`` is ``[E, A]`` in [-1, 1] or integers ``[E]``."""

    def tells_state(self, obs: Array) -> Array:
        """Whether an episode can begin where ``obs`` ``[n, O]`` are observed, ``[n]`` bool: see :meth:`begin_at`."""
        return np.zeros(len(obs), dtype=bool)

    def begin_at(self, obs: Array) -> None:
        """Start a new episode in every environment where ``obs`` ``[E, O]`` is observed.

        What follows is what followed that observation, to its rounding, but for the time limit, which counts from here.

        Raises:
            EnvError: the observations do not tell the state (:meth:`tells_state`).
        """
        raise EnvError(f"{self.spec.name}: an observation does not tell the state, so no episode can begin there.")

    def set_tasks(self, tasks: Tasks) -> None:
        """Give every environment its own task, from its next ``reset``. Raises ``EnvError`` on an unknown parameter."""
        if tasks:
            raise EnvError(f"{self.spec.name} has no task parameters, but was given {sorted(tasks)}.")

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The whole state, random streams and tasks included, as tensors and Python scalars."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the next steps are bit-identical if ``resumes_exactly``."""

    @abstractmethod
    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """Picture of one environment, ``[height, width, 3]`` uint8."""

    def selected(self, mask: Array | None) -> Array:
        """Indices ``[n]`` of the environments that a reset with ``mask`` is for."""
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise EnvError(f"{self.spec.name}: a reset mask is bool [{self.num_envs}], got {mask.dtype} {mask.shape}.")
        return np.flatnonzero(mask)

    def check_step(self, action: Array, ended: Array) -> None:
        """Raise ``EnvError`` unless ``action`` is what the spec asks for and no environment is in ``ended`` ``[E]``."""
        name, discrete = self.spec.name, self.spec.num_actions
        shape = (self.num_envs,) if discrete is not None else (self.num_envs, self.spec.action_dim)
        if action.shape != shape:
            raise EnvError(f"{name} takes actions of shape {shape}, but was given {action.shape}.")
        if discrete is not None:
            if action.dtype.kind not in "iu" or action.min() < 0 or action.max() >= discrete:
                raise EnvError(f"{name} takes integers in [0, {discrete}), but was given {action} ({action.dtype}).")
        elif not np.isfinite(action).all():
            bad = int(np.flatnonzero(~np.isfinite(action).all(axis=1))[0])
            raise EnvError(f"{name}: the action for environment {bad} is not finite: {action[bad]}.")
        if ended.any():
            ids = np.flatnonzero(ended).tolist()
            raise EnvError(f"{name}: environments {ids} have no running episode; reset them first.")

    def common_state(self) -> dict[str, Any]:
        """Name of the simulator, number of environments and their streams, which every saved state begins with."""
        return {"name": self.spec.name, "num_envs": self.num_envs, "streams": streams_state(self.streams)}

    def load_common_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`common_state`; ``EnvError`` if it is of another simulator or number of environments."""
        saved, own = (state["num_envs"], state["name"]), (self.num_envs, self.spec.name)
        if saved != own:
            raise EnvError("The saved state is of {} x {}, but this is {} x {}.".format(*saved, *own))
        load_streams(self.streams, state["streams"])

    def close(self) -> None:  # noqa: B027 - most simulators have nothing to release
        """Release the simulator; the environment is not used afterwards."""


class EnvFactory(ABC):
    """A simulator as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def make(self, num_envs: int, seed: int) -> BatchedEnv:
        """Build ``num_envs`` environments whose streams are the children of ``SeedSequence(seed)``."""


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch's own threads out of the way of a simulator's.

    Between two parallel operations they spin, waiting for the next, on cores that the simulator steps its environments
    on; and a policy's operations on one step's observations are too small to gain from them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_streams(seed: int, num_envs: int) -> list[np.random.Generator]:
    """One PCG64 stream per environment, the children of ``SeedSequence(seed)``."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(num_envs)]


def streams_state(streams: list[np.random.Generator]) -> list[dict[str, Any]]:
    """State of each stream as Python scalars, loadable with ``weights_only=True``."""
    return [dict(stream.bit_generator.state) for stream in streams]


def load_streams(streams: list[np.random.Generator], state: list[dict[str, Any]]) -> None:
    """Inverse of :func:`streams_state`, in place."""
    for stream, saved in zip(streams, state, strict=True):
        stream.bit_generator.state = saved


class ActionMap:
    """The affine map of [-1, 1] to an actuator's bounds, ±1 going to the bounds themselves.

    Args:
        low, high: native bounds, arrays of one shape ``[...]``, finite and low < high.
    """

    def __init__(self, low: Array, high: Array) -> None:
        self._low, self._high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self._middle, self._half = (self._low + self._high) / 2, (self._high - self._low) / 2
        ends = self._middle - self._half, self._middle + self._half
        self._falls_short = bool((ends[0] > self._low).any() or (ends[1] < self._high).any())

    def __call__(self, action: Array) -> Array:
        """Native actions ``[E, ...]``, float64 and never outside the bounds, of ``action`` of that shape."""
        native = self._middle + self._half * action
        # The sum at ±1 rounds to either side of a bound; for every third box with two decimals it lies outside.
        native = np.minimum(np.maximum(native, self._low), self._high)
        if self._falls_short:
            np.copyto(native, self._high, where=action >= 1.0)
            np.copyto(native, self._low, where=action <= -1.0)
        return native
