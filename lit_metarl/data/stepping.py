"""One way of stepping: what a simulator returns is checked, counted, and turned into float32 tensors.

Axes: ``E`` environments, ``O`` observation, ``A`` action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_metarl.envs.base import BatchedEnv, EnvError
from lit_metarl.types import MetaPolicy, Policy


class Step(NamedTuple):
    """One step of every environment, before those that ended start anew."""

    next_obs: Tensor  # [E, O] float32, the true successor
    reward: Tensor  # [E] float32
    terminated: Tensor  # [E] bool
    truncated: Tensor  # [E] bool


class Stepper:
    """Steps ``E`` environments; observations and rewards are finite as float32, or an ``EnvError`` names the first.

    Args:
        env: the environments.
        where: environment's index → its name in an error.

    Attributes:
        returns: ``[E]`` float64, sums of the rewards of the running episodes.
        lengths: ``[E]`` int64, their steps.
        ended: ``[E]`` bool, environments whose episode ended with the last step.
    """

    def __init__(self, env: BatchedEnv, where: Callable[[int], str]) -> None:
        self.env = env
        self.where = where
        self.returns = np.zeros(env.num_envs)
        self.lengths = np.zeros(env.num_envs, dtype=np.int64)
        self.ended = np.zeros(env.num_envs, dtype=bool)
        self._next_obs = torch.zeros(0)

    def reset(self, mask: np.ndarray | None = None) -> Tensor:
        """Observations ``[E, O]``; new episodes start where ``mask`` ``[E]`` is True, everywhere if None."""
        chosen = slice(None) if mask is None else mask
        self.returns[chosen] = 0.0
        self.lengths[chosen] = 0
        return self._checked("observation", self.env.reset(mask))

    def step(self, action: np.ndarray) -> Step:
        """Outcome of ``action``, ``[E, A]`` in [-1, 1] or integers ``[E]``; nothing starts anew yet."""
        result = self.env.step(action)
        self.returns += result.reward
        self.lengths += 1
        self.ended = result.terminated | result.truncated
        self._next_obs = self._checked("observation", result.obs)
        reward = self._checked("reward", result.reward)
        return Step(self._next_obs, reward, torch.from_numpy(result.terminated), torch.from_numpy(result.truncated))

    def observe(self) -> Tensor:
        """Observations ``[E, O]`` to act on after a step; environments whose episode ended start a new one."""
        return self.reset(self.ended) if self.ended.any() else self._next_obs

    def _checked(self, what: str, array: np.ndarray) -> Tensor:
        values = torch.tensor(array, dtype=torch.float32)
        if not math.isfinite(float(values.sum())):
            bad = ~torch.isfinite(values.view(len(values), -1)).all(dim=1)
            if bad.any():  # a sum of huge finite numbers may overflow: that is not the environment's fault
                index = int(torch.nonzero(bad)[0])
                value = np.asarray(array)[index]
                problem = "does not fit into float32" if np.isfinite(value).all() else "is not finite"
                where = f"{self.env.spec.name}: {self.where(index)}, step {self.lengths[index]} of its episode"
                raise EnvError(f"{where}: the {what} {problem}: {value.tolist()}.")
        return values


def finite_action(policy: MetaPolicy | Policy, action: Tensor) -> Tensor:
    """``action`` of the policy, of its shape, on the CPU.

    Raises:
        DivergenceError: it is not finite.
    """
    action = action.cpu()
    if action.is_floating_point() and not action.isfinite().all():
        raise policy.diverged("an action of the policy is not finite")
    return action
