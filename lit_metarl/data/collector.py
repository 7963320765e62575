"""Stepping environments with a policy, and whole evaluation episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_metarl.data.stepping import Stepper
from lit_metarl.envs.base import BatchedEnv, EnvError
from lit_metarl.types import Episodes, Transition

EPISODE_CAP = 10_000  # agent steps of an evaluation episode where the environment has no time limit


class Collector:
    """Steps ``E`` environments, resets those that end, and counts.

    Args:
        env: the environments; owned by the collector.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.env = env
        self.obs: Tensor | None = None  # [E, O]; None until the first reset
        self.stepper = Stepper(env, lambda index: f"environment {index}")
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
        obs = self.stepper.reset() if self.obs is None else self.obs
        action = choose_action(obs)
        step, stepper = self.stepper.step(action.numpy()), self.stepper
        if stepper.ended.any():
            returns, lengths = stepper.returns[stepper.ended], stepper.lengths[stepper.ended]
            self.finished += zip(returns.tolist(), lengths.tolist(), strict=True)
        self.obs = stepper.observe()
        return Transition(obs, action, step.reward, step.next_obs, step.terminated, step.truncated)

    def pop_finished(self) -> tuple[Tensor, Tensor]:
        """Returns ``[n]`` and lengths ``[n]`` of the episodes that ended since the last call."""
        returns = torch.tensor([episode[0] for episode in self.finished])
        lengths = torch.tensor([episode[1] for episode in self.finished], dtype=torch.long)
        self.finished.clear()
        return returns, lengths

    def state_dict(self) -> dict[str, Any]:
        """Environment states and the counts of the running episodes."""
        return {
            "env": self.env.state_dict(),
            "obs": self.obs,
            "running_return": torch.from_numpy(self.stepper.returns.copy()),
            "running_length": torch.from_numpy(self.stepper.lengths.copy()),
            "finished": list(self.finished),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; starts new episodes where the simulator cannot resume within one."""
        self.env.load_state_dict(state["env"])
        self.finished = [tuple(episode) for episode in state["finished"]]
        if self.env.resumes_exactly:
            self.obs = state["obs"]
            self.stepper.returns[:] = state["running_return"].numpy()
            self.stepper.lengths[:] = state["running_length"].numpy()


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
    stepper = Stepper(env, lambda index: f"evaluation environment {index}")
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    alive = np.ones(env.num_envs, dtype=bool)
    frames: list[Tensor] = []
    obs = stepper.reset()
    limit = env.spec.max_episode_steps or EPISODE_CAP
    for step in range(limit):
        if frame_period and alive[0] and step % frame_period == 0:
            frames.append(torch.from_numpy(env.render(0, *frame_size).copy()))
        stepper.step(act(obs).numpy())
        returns[alive], lengths[alive] = stepper.returns[alive], stepper.lengths[alive]
        alive &= ~stepper.ended
        capped = env.spec.max_episode_steps is None and step + 1 == limit
        if not alive.any() or capped:
            fps = 1.0 / (env.spec.frame_dt * frame_period) if frame_period else 0.0
            film = torch.stack(frames) if frames else None
            return Episodes(torch.from_numpy(returns).float(), torch.from_numpy(lengths), film, fps)
        obs = stepper.observe()
    raise EnvError(f"{env.spec.name}: an evaluation episode did not end within its {limit} steps.")
