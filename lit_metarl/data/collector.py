"""Stepping environments with a policy, and whole evaluation episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_metarl.envs.base import BatchedEnv, EnvError, StepResult
from lit_metarl.types import Episodes, Transition


def as_float(array: np.ndarray) -> Tensor:
    """Float32 copy: simulators hand out views of live memory."""
    return torch.tensor(array, dtype=torch.float32)


def checked(name: str, where: Callable[[int], str], what: str, array: np.ndarray) -> Tensor:
    """Float32 copy of what a simulator returned, ``[E, ...]``.

    Args:
        name: the simulator.
        where: environment's index → which environment it is, and at what step.
        what: ``observation`` or ``reward``.
        array: its values.

    Raises:
        EnvError: a value is not finite, or not as float32.
    """
    values = as_float(array)
    if not math.isfinite(float(values.sum())):
        bad = ~torch.isfinite(values.view(len(values), -1)).all(dim=1)
        if bad.any():  # a sum of huge finite numbers may overflow: that is not the environment's fault
            index = int(torch.nonzero(bad)[0])
            value = np.asarray(array)[index]
            problem = "does not fit into float32" if np.isfinite(value).all() else "is not finite"
            raise EnvError(f"{name}: {where(index)}: the {what} {problem}: {value.tolist()}.")
    return values


EPISODE_CAP = 10_000  # agent steps of an evaluation episode where the environment has no time limit
NOTHING = torch.zeros(0), torch.zeros(0, dtype=torch.long)


class Collector:
    """Steps ``E`` environments, resets those that end, and counts.

    Args:
        env: the environments; owned by the collector.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.env = env
        self.obs: Tensor | None = None  # [E, O]; None until the first reset
        self.running_return = torch.zeros(env.num_envs, dtype=torch.float64)
        self.running_length = torch.zeros(env.num_envs, dtype=torch.long)
        self.finished: list[tuple[float, int]] = []

    def step(self, choose_action: Callable[[Tensor], Tensor]) -> Transition:
        """One step of every environment.

        Args:
            choose_action: observations ``[E, O]`` → actions ``[E, A]`` in [-1, 1], on the CPU.

        Returns:
            Transitions, fields ``[E, ...]``.

        Raises:
            EnvError: an observation or a reward is not finite as float32; names the environment and its step.
        """
        obs = self._checked("observation", self.env.reset(), 0) if self.obs is None else self.obs
        action = choose_action(obs)
        result = self.env.step(action.numpy())
        next_obs = self._checked("observation", result.obs, 1)
        reward = self._checked("reward", result.reward, 1)
        self.obs = self._count_and_reset(result, next_obs)
        # The flags are copied by whoever stores the transition; observations outlive the simulator's next step.
        ends = torch.from_numpy(result.terminated), torch.from_numpy(result.truncated)
        return Transition(obs, action, reward, next_obs, *ends)

    def pop_finished(self) -> tuple[Tensor, Tensor]:
        """Returns ``[n]`` and lengths ``[n]`` of the episodes that ended since the last call."""
        if not self.finished:
            return NOTHING
        returns = torch.tensor([episode[0] for episode in self.finished])
        lengths = torch.tensor([episode[1] for episode in self.finished], dtype=torch.long)
        self.finished.clear()
        return returns, lengths

    def _count_and_reset(self, result: StepResult, next_obs: Tensor) -> Tensor:
        self.running_return += torch.from_numpy(np.asarray(result.reward, dtype=np.float64))
        self.running_length += 1
        ended = result.terminated | result.truncated
        if not ended.any():
            return next_obs
        mask = torch.from_numpy(ended)
        self.finished += zip(self.running_return[mask].tolist(), self.running_length[mask].tolist(), strict=True)
        self.running_return[mask] = 0.0
        self.running_length[mask] = 0
        return self._checked("observation", self.env.reset(ended), 0)

    def _checked(self, what: str, array: np.ndarray, ahead: int) -> Tensor:
        def where(index: int) -> str:
            return f"environment {index}, step {int(self.running_length[index]) + ahead} of its episode"

        return checked(self.env.spec.name, where, what, array)

    def state_dict(self) -> dict[str, Any]:
        """Environment states and the counts of the running episodes."""
        return {
            "env": self.env.state_dict(),
            "obs": self.obs,
            "running_return": self.running_return.clone(),
            "running_length": self.running_length.clone(),
            "finished": list(self.finished),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; starts new episodes where the simulator cannot resume within one."""
        self.env.load_state_dict(state["env"])
        self.finished = [tuple(episode) for episode in state["finished"]]
        if self.env.resumes_exactly:
            self.obs = state["obs"]
            self.running_return.copy_(state["running_return"])
            self.running_length.copy_(state["running_length"])


@torch.no_grad()
def run_episodes(
    env: BatchedEnv, act: Callable[[Tensor], Tensor], frame_period: int = 0, frame_size: tuple[int, int] = (320, 240)
) -> Episodes:
    """One whole episode in each of ``N = env.num_envs`` environments; the first 10,000 steps of one without time limit.

    Args:
        env: the environments; every one is reset first.
        act: observations ``[N, O]`` → actions ``[N, A]``, on the CPU.
        frame_period: if positive, environment 0 is rendered every that many steps.
        frame_size: width and height of a picture, in pixels.

    Raises:
        EnvError: an episode runs beyond the environment's own time limit, or an observation or a reward is not finite.
    """
    returns = torch.zeros(env.num_envs, dtype=torch.float64)
    lengths = torch.zeros(env.num_envs, dtype=torch.long)
    alive = np.ones(env.num_envs, dtype=bool)
    frames: list[Tensor] = []

    def read(what: str, array: np.ndarray, step: int) -> Tensor:
        return checked(env.spec.name, lambda index: f"evaluation environment {index}, step {step}", what, array)

    obs = read("observation", env.reset(), 0)
    limit = env.spec.max_episode_steps or EPISODE_CAP
    for step in range(limit):
        if frame_period and alive[0] and step % frame_period == 0:
            frames.append(torch.from_numpy(env.render(0, *frame_size).copy()))
        result = env.step(act(obs).numpy())
        next_obs = read("observation", result.obs, step + 1)
        read("reward", result.reward, step + 1)
        running = torch.from_numpy(alive)
        returns += torch.from_numpy(np.asarray(result.reward, dtype=np.float64)) * running
        lengths += running
        ended = result.terminated | result.truncated
        alive &= ~ended
        capped = env.spec.max_episode_steps is None and step + 1 == limit
        if not alive.any() or capped:
            fps = 1.0 / (env.spec.frame_dt * frame_period) if frame_period else 0.0
            return Episodes(returns.float(), lengths, torch.stack(frames) if frames else None, fps)
        obs = read("observation", env.reset(ended), 0) if ended.any() else next_obs
    raise EnvError(f"{env.spec.name}: an evaluation episode did not end within its {limit} steps.")
