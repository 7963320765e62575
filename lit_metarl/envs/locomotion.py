"""Gymnasium's MuJoCo robots, vectorised: observation and reward as terms over the environment axis ``E``.

Models, observations, rewards, reset noise and terminations are those of Gymnasium's ``-v5`` environments (to the last
bit of the physics); :data:`~lit_metarl.envs.robots.ROBOTS` is the table of their differences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import SimulationError

from lit_metarl.envs.base import ActionMap, Array, BatchedEnv, EnvError, EnvFactory, EnvSpec, StepResult, Tasks
from lit_metarl.envs.mujoco_batch import BatchSimulation, model_value, settable_model_fields
from lit_metarl.envs.robots import ROBOTS, Robot
from lit_metarl.envs.task_table import TaskTable


class Locomotion(BatchedEnv):
    """``E`` copies of one robot.

    An action in [-1, 1]^A becomes a native one in the model's ``ctrlrange`` (:class:`~lit_metarl.envs.base.ActionMap`),
    and the control cost is on the native action.

    Tasks, in force from the next reset of an environment; parameters that are not named keep their values:
        ``direction`` ``[E]``: factor of the forward velocity in the reward, 1 by default; a robot whose motion is paid
        otherwise (:class:`~lit_metarl.envs.robots.Motion`) has that parameter instead.
        ``model.<field>`` ``[E, ...]``: a float field of the model per environment, such as ``model.body_mass``
        ``[E, nbody]`` (kg); constants that MuJoCo derives from it follow. The action bounds stay those of the model.
    """

    def __init__(
        self, name: str, robot: Robot, num_envs: int, seed: int, max_episode_steps: int = 1000, threads: int = 0
    ) -> None:
        model = load_model(robot)
        low, high = model.actuator_ctrlrange.T
        if not (low < high).all():
            names = [model.actuator(index).name or index for index in np.flatnonzero(low >= high).tolist()]
            raise EnvError(f"mujoco/{name}: actuators {names} have no ctrlrange to map [-1, 1] to; give them one.")
        self.robot = robot
        self._sim = BatchSimulation(model, num_envs, threads, contact_forces=robot.contact_cost is not None)
        self._to_native = ActionMap(low, high)
        self._ctrl = self._sim.field("ctrl")
        self._obs = self._observe()
        # Before the first reset: derived fields have to be bound to be filled by it.
        self._position = self._measure_position()
        frame_dt = model.opt.timestep * robot.frame_skip
        spec = EnvSpec(f"mujoco/{name}", self._obs.shape[1], model.nu, max_episode_steps, frame_dt=frame_dt)
        super().__init__(spec, num_envs, seed)
        self._max_steps = max_episode_steps
        self._steps = np.full(num_envs, -1)  # -1: never reset
        paid = {} if robot.position is None else {robot.motion.parameter: robot.motion.default}
        fields = {f"model.{field}": model_value(model, field) for field in settable_model_fields(model)}
        self._tasks = TaskTable(self.spec.name, num_envs, paid | fields, present=paid)

    @property
    def simulation(self) -> BatchSimulation:
        """The physics of all environments."""
        return self._sim

    def reset(self, mask: Array | None = None) -> Array:
        """Start a new episode where ``mask`` ``[E]`` is True (everywhere if None); returns observations ``[E, O]``."""
        ids = self.selected(mask)
        if ids.size:
            self._begin(ids, *self._initial_state(ids))
        return self._obs.copy()

    def tells_state(self, obs: Array) -> Array:
        """True of robots with an :attr:`~lit_metarl.envs.robots.Robot.inverse`, unless a velocity was clipped."""
        return np.isfinite(self._joint_state(obs)).all(axis=1)

    def begin_at(self, obs: Array) -> None:
        """Start a new episode in every environment where ``obs`` ``[E, O]`` is observed; see the base."""
        motion = self._joint_state(obs)
        if not np.isfinite(motion).all():
            super().begin_at(obs)
        self._begin(np.arange(self.num_envs), *np.split(motion, [self._sim.model.nq], axis=1))

    def step(self, action: Array) -> StepResult:
        """Advance every environment by one agent step; ``action`` is ``[E, A]`` in [-1, 1]."""
        action = np.asarray(action, dtype=np.float64)
        self.check_step(action, self._steps < 0)
        native = self._to_native(action)
        self._ctrl[...] = native
        self._advance()
        obs = self._observe()
        self._check_finite(obs)
        self._obs[...] = obs
        healthy = self._healthy()
        return StepResult(obs, self._reward(native, healthy), ~healthy, self._steps >= self._max_steps)

    def set_tasks(self, tasks: Tasks) -> None:
        """Give every environment its own task (see the class); ``EnvError`` on an unknown or ill-shaped parameter."""
        self._tasks.give(self._tasks.checked(tasks))

    def state_dict(self) -> dict[str, Any]:
        """Physics, streams, tasks, episode steps and what the next step needs of the last one."""
        return {
            **self.common_state(),
            "physics": self._sim.state(),
            "obs": torch.from_numpy(self._obs.copy()),
            "position": torch.from_numpy(self._position.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
            **self._tasks.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the next steps are bit-identical."""
        self.load_common_state(state)
        self._sim.load_state(state["physics"])
        self._tasks.load(state)
        self._sim.set_model_fields(_model_fields(self._tasks.in_force))
        self._obs[...] = state["obs"].numpy()
        self._position[...] = state["position"].numpy()
        self._steps[...] = state["steps"].numpy()

    def render(self, index: int = 0, width: int = 320, height: int = 240) -> Array:
        """Picture of one environment, ``[height, width, 3]`` uint8."""
        return self._sim.render(index, width, height)

    def close(self) -> None:
        """Release the renderer."""
        self._sim.close()

    def _joint_state(self, obs: Array) -> Array:
        """``qpos`` and ``qvel`` ``[n, nq + nv]`` of observations, NaN where they are not told."""
        if self.robot.inverse is None:
            return np.full((len(obs), 1), np.nan)
        return self.robot.inverse(self._sim, obs)

    def _begin(self, ids: Array, qpos: Array, qvel: Array) -> None:
        """Start episodes of environments ``ids`` ``[n]`` at ``qpos`` ``[n, nq]`` and ``qvel`` ``[n, nv]``."""
        changed = self._tasks.begin(ids)
        if changed.size:
            fields = _model_fields(self._tasks.in_force)
            self._sim.set_model_fields({key: rows[changed] for key, rows in fields.items()}, changed)
        self._sim.reset(qpos, qvel, ids)
        self._steps[ids] = 0
        self._position[ids] = self._measure_position()[ids]
        self._obs[ids] = self._observe()[ids]

    def _initial_state(self, ids: Array) -> tuple[Array, Array]:
        """``qpos`` ``[n, nq]`` and ``qvel`` ``[n, nv]``: the model's with noise, drawn in the order of Gymnasium."""
        model, noise = self._sim.model, self.robot.reset_noise
        qpos, qvel = np.empty((ids.size, model.nq)), np.empty((ids.size, model.nv))
        for row, i in enumerate(ids.tolist()):
            stream = self.streams[i]
            qpos[row] = model.qpos0 + stream.uniform(-noise, noise, model.nq)
            if self.robot.normal_velocity_noise:
                qvel[row] = noise * stream.standard_normal(model.nv)
            else:
                qvel[row] = stream.uniform(-noise, noise, model.nv)
        return qpos, qvel

    def _advance(self) -> None:
        """One agent step of the physics; raises ``EnvError`` with the environment and its step if it fails."""
        self._steps += 1
        try:
            self._sim.step(self.robot.frame_skip)
        except SimulationError as error:
            index = int(error.ids[0])
            raise EnvError(
                f"{self.spec.name}: environment {index} failed at its step {self._steps[index]}: {error}"
            ) from error

    def _check_finite(self, obs: Array) -> None:
        bad = self._sim.diverged()
        if not bad.size and not np.isfinite(obs).all():
            bad = np.flatnonzero(~np.isfinite(obs).all(axis=1))
        if bad.size:
            index = int(bad[0])
            raise EnvError(
                f"{self.spec.name}: the simulation of environment {index} diverged at its step {self._steps[index]} "
                f"({bad.size} of {self.num_envs} did); its state is lost until it is reset."
            )

    def _observe(self) -> Array:
        return np.concatenate([term(self._sim) for term in self.robot.observation], axis=1)

    def _measure_position(self) -> Array:
        """Paid coordinate of every environment, a copy ``[E]`` or ``[E, 2]``."""
        return np.zeros(self._sim.num_sims) if self.robot.position is None else self.robot.position(self._sim).copy()

    def _healthy(self) -> Array:
        """``[E]`` bool: all conditions hold."""
        healthy = np.ones(self.num_envs, dtype=bool)
        for condition in self.robot.healthy:
            healthy &= condition(self._sim)
        return healthy

    def _reward(self, native: Array, healthy: Array) -> Array:
        """Reward ``[E]`` (formula in :class:`Robot`) of the step that ends now; ``native`` is ``[E, A]``."""
        robot = self.robot
        reward = robot.healthy_reward * healthy - robot.control_weight * np.vecdot(native, native)
        reward += robot.survival_reward
        if robot.position is not None:
            position, motion = robot.position(self._sim), robot.motion
            velocity = (position - self._position) / self.spec.frame_dt
            reward += robot.forward_weight * motion.reward(position, velocity, self._tasks.in_force[motion.parameter])
            self._position[...] = position
        if robot.contact_cost is not None:
            reward -= robot.contact_cost(self._sim)
        return reward


@dataclass(frozen=True)
class MuJoCo(EnvFactory):
    """A robot of :data:`ROBOTS`, as it is written in a config.

    Args:
        robot: half_cheetah, ant, walker2d, hopper, humanoid, swimmer or inverted_pendulum.
        max_episode_steps: agent steps after which an episode is truncated.
        threads: threads of the simulator, 0 for all CPUs; never more than environments.
    """

    robot: str
    max_episode_steps: int = 1000
    threads: int = 0

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise ValueError(f"unknown robot {self.robot!r}; known: {', '.join(ROBOTS)}.")
        if self.max_episode_steps < 1 or self.threads < 0:
            raise ValueError(f"max_episode_steps must be positive and threads not negative: {self}.")

    def make(self, num_envs: int, seed: int) -> BatchedEnv:
        """Build ``num_envs`` environments whose streams are the children of ``SeedSequence(seed)``."""
        return Locomotion(self.robot, ROBOTS[self.robot], num_envs, seed, self.max_episode_steps, self.threads)


def load_model(robot: Robot) -> Any:
    """The robot's compiled ``mujoco.MjModel``, a new one."""
    return mujoco.MjModel.from_xml_path(str(_assets() / robot.model_file))


def _assets() -> Path:
    """Folder of Gymnasium's model files, found without importing Gymnasium."""
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or not spec.submodule_search_locations:
        raise EnvError("Gymnasium's model files are missing: install gymnasium[mujoco].")
    return Path(spec.submodule_search_locations[0]) / "envs" / "mujoco" / "assets"


def _model_fields(tasks: Tasks) -> dict[str, Array]:
    """The task parameters that are model fields, by the field's name."""
    return {key.removeprefix("model."): value for key, value in tasks.items() if key.startswith("model.")}
