"""Gymnasium: any registered id, or a user's own ``gymnasium.Env`` by class path.

The environments are stepped one after the other; measured on two cores, Gymnasium's vector API is not faster.
Gymnasium: Towers et al. 2024, https://arxiv.org/abs/2407.17032.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lit_metarl.envs.base import ActionMap, Array, BatchedEnv, EnvError, EnvFactory, EnvSpec, StepResult, Tasks
from lit_metarl.envs.gym_state import env_state, load_env, obstacles, shown
from lit_metarl.envs.rendering import choose_backend, fit_frame, picture_kwargs
from lit_metarl.envs.saved_state import pack, packable, unpack
from lit_metarl.envs.task_table import PendingTasks

_WARNED_OUTSIDE: set[str] = set()  # environments, by name, whose observations were reported


@dataclass(frozen=True)
class Gymnasium(EnvFactory):
    """A Gymnasium environment.

    Args:
        env: a registered id (``Pendulum-v1``, ``HalfCheetah-v5``) or the path of a class (``my_package.envs.MyEnv``).
            A class may state its time limit, which it enforces itself, in an attribute ``max_episode_steps``, and
            take tasks by a method ``set_task(task: dict)``, called before the ``reset`` that starts to use them.
        kwargs: arguments of the environment.
    """

    env: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def make(self, num_envs: int, seed: int) -> GymEnv:
        """Build the environments.

        Raises:
            ValueError: the id or class is unknown, or ``num_envs`` is not positive.
            EnvError: a space that no algorithm here can use.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs ({num_envs}) must be at least 1.")
        choose_backend()
        return GymEnv(self.env, [self._build() for _ in range(num_envs)], seed)

    def _build(self) -> Any:
        import gymnasium
        from gymnasium.envs.registration import load_env_creator

        if "." not in self.env or ":" in self.env or self.env in gymnasium.registry:
            try:
                creator = load_env_creator(gymnasium.spec(self.env).entry_point)
            except gymnasium.error.UnregisteredEnv as error:
                close = difflib.get_close_matches(self.env, list(gymnasium.registry), n=5, cutoff=0.4)
                hint = f"Did you mean {' or '.join(close)}?" if close else "A class is named by package.module.Class."
                raise ValueError(f"Gymnasium knows no environment {self.env!r}. {hint}") from error
            pictures = picture_kwargs(creator, self.kwargs)
            return gymnasium.make(self.env, disable_env_checker=True, **pictures, **self.kwargs)
        module, _, name = self.env.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"Cannot import the environment class {self.env!r}: {error}.") from error
        if not (isinstance(cls, type) and issubclass(cls, gymnasium.Env)):
            raise ValueError(f"{self.env} is not a subclass of gymnasium.Env, but {cls!r}.")
        return cls(**picture_kwargs(cls, self.kwargs), **self.kwargs)


class GymEnv(BatchedEnv):
    """``E`` Gymnasium environments; build it with :class:`Gymnasium`.

    A resumed run is bit-identical where everything that an environment keeps can be saved: MuJoCo physics, numbers,
    arrays and random generators in its attributes and those of its wrappers. An environment that keeps anything else
    can define ``state_dict() -> dict`` (numbers, strings, arrays, containers) and ``load_state_dict(dict)``. Otherwise
    ``resumes_exactly`` is False, ``resume_note`` says why, and after ``load_state_dict`` every environment
    ``needs_reset``: the run goes on with a new episode, seeded from the restored stream. State outside the object
    (``random``, ``np.random.seed``, a server) cannot be seen and is not restored.

    An observation outside the bounds of its Box is used as it is; the first one of each environment's name is reported
    by a ``UserWarning``.

    Attributes:
        needs_reset: ``[E]`` bool, environments whose next call has to be ``reset``.
        resume_note: why a resumed run is not exact; empty if it is. Attributes that appear only with the first
            ``reset`` are judged then.
    """

    def __init__(self, name: str, envs: list[Any], seed: int) -> None:
        self._envs = envs
        self._seeded = np.zeros(len(envs), dtype=bool)
        self._elapsed = np.zeros(len(envs), dtype=np.int64)
        self._tasks: list[dict[str, Any]] = [{} for _ in envs]  # in force
        self._pending = PendingTasks(len(envs))
        self.needs_reset = np.ones(len(envs), dtype=bool)
        first = envs[0]
        self._read_obs, self._low, self._high = _obs_reader(name, first.observation_space)
        obs_dim = self._low.size
        self._native_action, action_dim, num_actions = _action_writer(name, first.action_space)
        limit = first.spec.max_episode_steps if first.spec is not None else None
        if limit is None:
            limit = _own_limit(name, getattr(first.unwrapped, "max_episode_steps", None))
        spec = EnvSpec(
            name="gym/" + name.replace("/", "_"),
            obs_dim=obs_dim,
            action_dim=action_dim,
            max_episode_steps=limit,
            num_actions=num_actions,
            frame_dt=_frame_dt(first),
        )
        super().__init__(spec, len(envs), seed)
        self._obs = np.zeros((self.num_envs, obs_dim), dtype=np.float32)
        self._judge_resume()

    def reset(self, mask: Array | None = None) -> Array:
        """Start new episodes where ``mask`` ``[E]`` is True; ``EnvError`` if what one returns is not in its space."""
        ids = self.selected(mask)
        self._elapsed[ids] = 0
        for i in self._pending.begin(ids).tolist():
            self._give_task(i, {name: rows[i] for name, rows in self._pending.rows.items()})
        raw = np.empty((len(ids), self.spec.obs_dim))
        for row, i in enumerate(ids.tolist()):
            # Gymnasium's protocol: one seed at the first reset, the environment's own generator afterwards.
            seed = None if self._seeded[i] else int(self.streams[i].integers(2**31))
            result = self._guarded(i, "reset", seed=seed)
            if not (isinstance(result, tuple) and len(result) == 2):
                raise self._broken(i, f"reset returned {shown(result)} instead of (observation, info)")
            raw[row] = self._flat_obs(i, result[0])
        self._obs[ids] = self._as_float32(raw, ids)
        self.needs_reset[ids] = False
        if not self._seeded.all():
            self._seeded |= ~self.needs_reset
            self._judge_resume()
        return self._obs.copy()

    def step(self, action: Array) -> StepResult:
        """Advance every environment by one step, one after the other; ``action`` is ``[E, A]`` or integers ``[E]``.

        Raises:
            EnvError: an ended episode, a bad action, or a broken environment: one that raises, returns something else
                than its spaces say, or goes on beyond its own time limit.
        """
        self.check_step(action, self.needs_reset)
        native = self._native_action(action)
        raw, reward = np.empty((self.num_envs, self.spec.obs_dim)), np.zeros(self.num_envs)
        ends = np.zeros((2, self.num_envs), dtype=bool)
        for i in range(self.num_envs):
            self._elapsed[i] += 1
            result = self._guarded(i, "step", native[i])
            if not (isinstance(result, tuple) and len(result) == 5):
                expected = "(observation, reward, terminated, truncated, info)"
                raise self._broken(i, f"step returned {shown(result)} instead of {expected}")
            raw[i] = self._flat_obs(i, result[0])
            reward[i] = self._checked_reward(i, result[1])
            for end, name, value in zip(ends, ("terminated", "truncated"), result[2:4], strict=True):
                if not isinstance(value, bool | np.bool_):
                    raise self._broken(i, f"{name} must be a bool, but is {shown(value)}")
                end[i] = value
            limit = self.spec.max_episode_steps
            if self._elapsed[i] == limit and not ends[:, i].any():
                missed = f"but did not end its episode at step {limit}: return truncated = True there"
                raise self._broken(i, f"it declares max_episode_steps = {limit} {missed}")
        self._obs = self._as_float32(raw, np.arange(self.num_envs))
        terminated, truncated = ends
        truncated &= ~terminated  # an episode that ends in its last step has ended: nothing follows it
        self.needs_reset = terminated | truncated
        return StepResult(self._obs.copy(), reward, terminated, truncated)

    def set_tasks(self, tasks: Tasks) -> None:
        """Row ``i`` of every parameter goes to ``set_task`` of environment ``i`` just before its next ``reset``.

        Raises ``EnvError`` if the environment has no such method or a parameter is not one row of numbers for each.
        """
        if not tasks:
            return
        if not self._envs[0].has_wrapper_attr("set_task"):
            raise EnvError(
                f"{self.spec.name} has no task parameters, but was given {sorted(tasks)}: "
                "the environment has to define set_task(task), which takes a dict with its parameters."
            )
        rows = {name: np.array(value) for name, value in tasks.items()}
        for name, value in rows.items():
            if value.shape[:1] != (self.num_envs,) or not packable(value):
                raise EnvError(f"{self.spec.name}: task {name!r} has to be {self.num_envs} rows, got {shown(value)}.")
        self._pending.give(rows)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, but without that of environments which cannot be saved."""
        self._judge_resume()
        return {
            **self.common_state(),
            "envs": [env_state(env) for env in self._envs] if self.resumes_exactly else None,
            "seeded": self._seeded.tolist(),
            "elapsed": self._elapsed.tolist(),
            "needs_reset": self.needs_reset.tolist(),
            "tasks": pack(self._tasks),
            "next_tasks": pack(self._pending.rows),
            "task_changed": self._pending.waiting.tolist(),
            "obs": pack(self._obs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. Raises ``EnvError`` if the state is of another environment or number."""
        self.load_common_state(state)
        exact = state["envs"] is not None
        if not exact:
            self.resumes_exactly = False  # a fresh environment may not know this before its first episode
        self._seeded[:] = state["seeded"] if exact else False
        self._elapsed[:] = state["elapsed"] if exact else 0
        self.needs_reset[:] = state["needs_reset"] if exact else True
        self._pending.rows = unpack(state["next_tasks"])
        # A fresh environment has to be told its task again: now, or before its next episode if that comes first.
        self._pending.waiting[:] = state["task_changed"] if exact else bool(self._pending.rows)
        self._obs[:] = unpack(state["obs"])
        for i, saved in enumerate(state["envs"] or []):
            if task := unpack(state["tasks"][i]):
                self._give_task(i, task)
            load_env(self._envs[i], saved)

    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """Picture of one environment, scaled and padded to ``[height, width, 3]``; ``EnvError`` if it draws none."""
        env = self._envs[index]
        if env.render_mode != "rgb_array":
            raise EnvError(f"{self.spec.name} draws no pictures: it has no render_mode 'rgb_array'.")
        frame = env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
            raise self._broken(index, f"render returned {shown(frame)} instead of [height, width, 3] uint8")
        return fit_frame(frame, width, height)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _judge_resume(self) -> None:
        obstacle = next((obstacle for env in self._envs for obstacle in obstacles(env)), None)
        self.resumes_exactly = obstacle is None
        self.resume_note = "" if obstacle is None else (
            f"{self.spec.name} resumes at the next episode: {obstacle}. "
            "To resume exactly, define state_dict() and load_state_dict(state) in the environment."
        )  # fmt: skip

    def _give_task(self, index: int, task: dict[str, Any]) -> None:
        self._tasks[index] = copy.deepcopy(task)
        self._guarded(index, "set_task", copy.deepcopy(task))

    def _guarded(self, index: int, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._envs[index].get_wrapper_attr(method)(*args, **kwargs)
        except Exception as error:
            raise self._broken(index, f"{method} raised {type(error).__name__}: {error}") from error

    def _broken(self, index: int, what: str) -> EnvError:
        return EnvError(f"{self.spec.name}: environment {index}, step {self._elapsed[index]} of its episode: {what}.")

    def _flat_obs(self, index: int, obs: Any) -> Array:
        try:
            return self._read_obs(obs)
        except ValueError as error:
            raise self._broken(index, str(error)) from error

    def _as_float32(self, raw: Array, ids: Array) -> Array:
        """Observations ``[n, O]`` of the environments ``ids`` as float32, all finite."""
        with np.errstate(over="ignore"):  # what does not fit is named instead
            obs = raw.astype(np.float32)
        if ((self._low <= obs) & (obs <= self._high)).all():  # nan lies in no interval
            return obs
        fits = np.isfinite(obs).all(axis=1)
        if not fits.all():
            row = int(fits.argmin())
            problem = "does not fit into float32" if np.isfinite(raw[row]).all() else "is not finite"
            raise self._broken(ids[row], f"the observation {problem}: {raw[row]}")
        if self.spec.name not in _WARNED_OUTSIDE:
            _WARNED_OUTSIDE.add(self.spec.name)
            row, entry = np.argwhere((obs < self._low) | (obs > self._high))[0].tolist()
            space = self._envs[ids[row]].observation_space
            bounds = f"[{space.low.flat[entry]}, {space.high.flat[entry]}]"
            what = f"entry {entry} of the observation is {raw[row, entry]}, outside the bounds {bounds} of its Box"
            advice = "It is used as it is, and later ones are not reported; widen the Box or clip the observation."
            warnings.warn(f"{self._broken(ids[row], what)} {advice}", stacklevel=3)
        return obs

    def _checked_reward(self, index: int, reward: Any) -> float:
        if isinstance(reward, bool | np.bool_) or np.ndim(reward) != 0 or np.asarray(reward).dtype.kind not in "fiu":
            raise self._broken(index, f"the reward must be one number, but is {shown(reward)}")
        if not np.isfinite(reward):
            raise self._broken(index, f"the reward must be finite, but is {reward}")
        return float(reward)


def _own_limit(name: str, limit: Any) -> int | None:
    if limit is None:
        return None
    if np.ndim(limit) or np.asarray(limit).dtype.kind not in "iu" or limit < 1:
        raise EnvError(f"{name}: max_episode_steps = {limit!r} is no time limit; use a positive whole number of steps.")
    return int(limit)


def _frame_dt(env: Any) -> float:
    dt = getattr(env.unwrapped, "dt", None)
    if isinstance(dt, int | float) and dt > 0:
        return float(dt)
    return 1.0 / (env.metadata.get("render_fps") or 50)


def _obs_reader(name: str, space: Any) -> tuple[Any, Array, Array]:
    """Function from a raw observation to ``[O]`` numbers (raises ``ValueError``), and their finite float32 bounds."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        eye, start, n = np.eye(int(space.n), dtype=np.float32), int(space.start), int(space.n)

        def one_hot(obs: Any) -> Array:
            if np.ndim(obs) != 0 or np.asarray(obs).dtype.kind not in "iu" or not start <= obs < start + n:
                raise ValueError(f"the observation must be an integer in [{start}, {start + n}), but is {shown(obs)}")
            return eye[int(obs) - start]

        return one_hot, np.zeros(n, dtype=np.float32), np.ones(n, dtype=np.float32)
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
    if not isinstance(space, spaces.Box) or image or space.dtype.kind not in "fiu" or 0 in space.shape:
        remedy = "encode the image as a vector" if image else "wrap it (gymnasium.wrappers.FlattenObservation)"
        raise EnvError(f"{name}: observation space {space} is not supported, only Box vectors and Discrete; {remedy}.")
    shape, kinds = space.shape, "f" if space.dtype.kind == "f" else "iu"
    wanted = f"an array of shape {shape} and type {space.dtype}"

    def flat(obs: Any) -> Array:
        array = np.asarray(obs)  # a ragged list raises ValueError itself
        if array.shape != shape or array.dtype.kind not in kinds:
            raise ValueError(f"the observation must be {wanted}, but is {shown(obs)}")
        return array.ravel()

    # Rounded to float32 as the observations are: one inside the bounds of a float64 Box stays inside.
    greatest = np.finfo(np.float32).max
    low, high = (np.clip(bound.ravel(), -greatest, greatest).astype(np.float32) for bound in (space.low, space.high))
    return flat, low, high


def _action_writer(name: str, space: Any) -> tuple[Any, int, int | None]:
    """Function from a batch of actions to native ones, A, and the number of discrete actions (None if continuous)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start, n = int(space.start), int(space.n)

        def integers(action: Array) -> Array:
            return start + action.astype(space.dtype)  # its rows have the type that the space samples

        return integers, 1, n
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f" or 0 in space.shape:
        raise EnvError(
            f"{name}: action space {space} is not supported, only Box of floats and Discrete; write a "
            "gymnasium.ActionWrapper that maps one of these to it and give its class path."
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise EnvError(
            f"{name}: action space {space} has no finite bounds to map [-1, 1] to; give the Box finite low < high "
            "(gymnasium.wrappers.RescaleAction or an own ActionWrapper)."
        )
    to_native = ActionMap(low, high)

    def affine(action: Array) -> Array:
        return to_native(action.reshape(-1, *space.shape)).astype(space.dtype)

    return affine, int(np.prod(space.shape, dtype=int)), None
