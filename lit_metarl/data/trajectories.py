"""Sampling whole trajectories of many tasks at once, each with its own parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_metarl.data.stepping import Stepper
from lit_metarl.envs.base import BatchedEnv, EnvError, EnvSpec, Tasks, one_torch_thread
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.types import Trajectories, require

ChooseActions = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Observations ``[B, N, O]`` → actions ``[B, N, A]`` (int ``[B, N]`` if discrete), log-probabilities ``[B, N]``."""


class TaskSimulator:
    """``B`` tasks × ``N`` trajectories in one batch of ``E = B·N`` environments.

    Args:
        family: the simulator and its tasks.
        num_tasks: B.
        trajectories: N.
        seed: root of the environments' streams.
        action_scale: the simulator gets ``clip(action_scale · action, −1, 1)``; with 0.1 policy actions in [-10, 10]
            span its bounds, so a policy of standard deviation 1 explores a tenth of the half-range.
        oracle_context: tell the policy the task's context.
    """

    def __init__(
        self,
        family: TaskFamily,
        num_tasks: int,
        trajectories: int,
        seed: int,
        action_scale: float,
        oracle_context: bool,
    ) -> None:
        self.family = family
        self.num_tasks = num_tasks
        self.trajectories = trajectories
        self.env: BatchedEnv = family.make(num_tasks * trajectories, seed)
        self.stepper = Stepper(self.env, lambda index: "task {}, trajectory {}".format(*divmod(index, trajectories)))
        self.action_scale = action_scale
        self.oracle_context = oracle_context
        self.horizon = horizon_of(self.env.spec)
        self.context = torch.zeros(num_tasks, 0)  # [B, C] of the tasks in force

    def set_tasks(self, tasks: Tasks) -> None:
        """Give task ``i`` ``[B, ...]`` to all its N environments, from their next reset."""
        self.env.set_tasks({name: np.repeat(rows, self.trajectories, axis=0) for name, rows in tasks.items()})
        if self.oracle_context:
            self.context = torch.from_numpy(np.asarray(self.family.context(tasks), dtype=np.float32))

    def random_policy(self, generator: torch.Generator) -> ChooseActions:
        """The random reference policy: uniform in the simulator's bounds, or over discrete actions."""

        def choose(obs: Tensor) -> tuple[Tensor, Tensor]:
            action = self.env.spec.sizes.uniform_actions(obs, generator)
            continuous = self.env.spec.num_actions is None
            return action / self.action_scale if continuous else action, torch.zeros(obs.shape[:-1])

        return choose

    @torch.no_grad()
    def run(self, choose: ChooseActions, after_step: Callable[[int], None] | None = None) -> Trajectories:
        """One episode of every environment, on the CPU.

        Args:
            choose: the policy of every task.
            after_step: called with the step's number while environment 0 is in its episode.

        Raises:
            EnvError: an observation or a reward is not finite as float32, or an episode goes on after T steps; names
                task, trajectory and step.
        """
        with one_torch_thread():
            return self._run(choose, after_step)

    def _run(self, choose: ChooseActions, after_step: Callable[[int], None] | None) -> Trajectories:
        B, N, T = self.num_tasks, self.trajectories, self.horizon
        obs = self._observe(self.stepper.reset())
        record: dict[str, Tensor] = {}  # time first: every step writes one piece of memory
        alive = torch.ones(B, N)
        final_obs, terminated = torch.zeros_like(obs), torch.zeros(B, N, dtype=torch.bool)
        for t in range(T):
            action, log_prob = choose(obs)
            step = self.stepper.step(self._to_env(action))
            reward = step.reward.view(B, N)
            now = {"obs": obs, "action": action, "reward": reward, "log_prob": log_prob, "mask": alive}
            if t == 0:
                record = {name: torch.zeros(T, *value.shape, dtype=value.dtype) for name, value in now.items()}
            all_alive = bool(alive.all())
            for name, value in now.items():
                record[name][t] = value if all_alive else value * _like(alive, value)
            if after_step is not None and alive[0, 0]:
                after_step(t)
            if self.stepper.ended.any():
                ends = torch.from_numpy(self.stepper.ended).view(B, N) & (alive > 0)
                final_obs[ends] = self._observe(step.next_obs)[ends]
                terminated |= ends & step.terminated.view(B, N)
                alive = alive * ~ends
                if not alive.any():
                    break
            obs = self._observe(self.stepper.observe())
        if alive.any():
            raise EnvError(f"{self.env.spec.name}: an episode did not end within its {T} steps.")
        fields = {name: values.movedim(0, 2).contiguous() for name, values in record.items()}
        return Trajectories(**fields, final_obs=final_obs, terminated=terminated, context=self.context)

    def _observe(self, obs: Tensor) -> Tensor:
        return obs.view(self.num_tasks, self.trajectories, -1)

    def _to_env(self, action: Tensor) -> np.ndarray:
        flat = action.flatten(0, 1).numpy()
        return flat if self.env.spec.num_actions is not None else np.clip(self.action_scale * flat, -1.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The environments; between two rounds only their streams matter."""
        return self.env.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.env.load_state_dict(state)

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()


def horizon_of(spec: EnvSpec) -> int:
    """T, the agent steps of an episode; ``ConfigError`` if the environment has no time limit."""
    require(
        spec.max_episode_steps is not None,
        "data.env",
        spec.name,
        "it has no time limit, so its trajectories have no length; give it one (max_episode_steps)",
    )
    return spec.max_episode_steps or 0


def _like(alive: Tensor, value: Tensor) -> Tensor:
    """``alive [B, N]`` broadcast and cast to multiply ``value [B, N, ...]``."""
    return alive.view(*alive.shape, *([1] * (value.ndim - 2))).to(value.dtype)
