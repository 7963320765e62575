"""Returns of perturbed actions, from saved simulator states and with common random numbers.

Axes: ``S`` states, ``K`` actions at each, ``A`` action. Roll-out (s, k) is row s of environment object k: all objects
load the same saved state, streams included, so that they restore whatever an adapter can save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_metarl.data.stepping import Stepper
from lit_metarl.envs.base import BatchedEnv, EnvError, EnvFactory

Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Observations ``[..., O]`` and noise ``[..., A]`` → actions ``[..., A]`` and a bonus ``[...]`` that they are paid."""


class SavedStates(NamedTuple):
    """Simulator states of S environments, each within an episode, and what is observed there."""

    state: dict[str, Any]
    obs: Tensor  # [S, O]


@torch.no_grad()
def collect_states(env: BatchedEnv, choose: Callable[[Tensor], Tensor], steps: np.ndarray) -> SavedStates:
    """States after ``steps`` ``[S]`` steps of the policy ``choose`` since a reset; episodes that end start anew.

    Args:
        env: S environments.
        choose: observations ``[S, O]`` → actions ``[S, A]`` on the CPU.
        steps: how many, per environment. Each is reset that many steps before the end.

    Raises:
        EnvError: the environment's state cannot be saved within an episode.
    """
    stepper = Stepper(env, lambda index: f"environment {index}")
    obs, last = stepper.reset(), int(steps.max())
    for step in range(last + 1):
        begins = steps == last - step
        if begins.any() and step:
            obs = stepper.reset(begins)
        if step < last:
            stepper.step(choose(obs).numpy())
            obs = stepper.observe()
    state = env.state_dict()
    if not env.resumes_exactly:
        raise EnvError(f"{env.spec.name} cannot go on from a saved state: {env.resume_note}")
    return SavedStates(state, obs)


def replayed_states(env: BatchedEnv, obs: Tensor, generator: torch.Generator) -> SavedStates:
    """States of S observations that are drawn uniformly, with replacement, from those of a replay.

    Those that do not tell the state are left out, such as a hopper's with a clipped velocity.

    Args:
        env: S environments, whose episodes begin there: a time limit counts from there on.
        obs: of the replay, ``[n, O]``.
        generator: of the draw.

    Raises:
        EnvError: too few tell the state, of most environments none.
    """
    drawn = obs[torch.randint(len(obs), (100 * env.num_envs,), generator=generator)]
    told = drawn[torch.from_numpy(env.tells_state(drawn.numpy()))]
    if len(told) < env.num_envs:
        raise EnvError(
            f"{env.spec.name} cannot go on from a replay: {len(told)} of {len(drawn)} observations drawn from it tell "
            "the simulator's state. Take states of the policy, or of exploration."
        )
    env.begin_at(told[: env.num_envs].numpy())
    return SavedStates(env.state_dict(), told[: env.num_envs])


@torch.no_grad()
def perturbed_returns(
    factory: EnvFactory,
    states: SavedStates,
    action: Tensor,
    act: Act,
    value: Callable[[Tensor, Tensor], Tensor],
    gamma: float,
    repeats: int,
    horizon: int,
    generator: torch.Generator,
) -> Tensor:
    """Σ_t γ^t (r_t + bonus_t) of every action ``[S, K, A]``, taken for ``repeats`` steps before the policy acts.

    Until the episode terminates, or its time limit or ``horizon`` cuts it: then γ^T (value + bonus) of the policy's
    action there is added. The policy's noise at a step is the same for all actions at a state, and so are the
    environments' random numbers: differences of returns are the actions' doing.

    Args:
        factory: of environments like those that were saved.
        states: S of them.
        action: ``[S, K, A]``.
        act: the policy that goes on, and what it is paid besides the reward.
        value: observations ``[S, K, O]`` and actions → values ``[S, K]``, for what is cut.
        gamma: γ.
        repeats: n ≥ 1.
        horizon: most steps, at least n.
        generator: of the policy's noise, on the CPU.

    Returns:
        ``[S, K]`` float64.
    """
    count, width = action.shape[:2]
    batch = _Batch(factory, states, width)
    returns = torch.zeros(count, width, dtype=torch.float64)
    alive = torch.ones(count, width, dtype=torch.bool)
    obs = states.obs.unsqueeze(1).expand(-1, width, -1)
    for step in range(horizon):
        noise = torch.randn(count, 1, action.shape[-1], generator=generator).expand(-1, width, -1)
        chosen, bonus = (action, torch.zeros(count, width)) if step < repeats else act(obs, noise)
        obs, reward, terminated, truncated = batch.step(chosen)
        returns += gamma**step * alive * (reward + bonus).double()
        cut = alive & ~terminated & (truncated | (step == horizon - 1))
        if cut.any():
            noise = torch.randn(count, 1, action.shape[-1], generator=generator).expand(-1, width, -1)
            last, bonus = act(obs, noise)
            returns += gamma ** (step + 1) * cut * (value(obs, last) + bonus).double()
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
        obs = batch.observe()
    batch.close()
    return returns


class _Batch:
    """K environment objects of S rows each, stepped as one of ``[S, K]``."""

    def __init__(self, factory: EnvFactory, states: SavedStates, width: int) -> None:
        self.steppers = []
        for _ in range(width):
            env = factory.make(len(states.obs), 0)
            env.load_state_dict(states.state)
            self.steppers.append(Stepper(env, lambda index: f"roll-out {index}"))

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Successors ``[S, K, O]``, rewards, and whether an episode terminated or was truncated, ``[S, K]``."""
        results = [stepper.step(action[:, k].numpy()) for k, stepper in enumerate(self.steppers)]
        obs, reward, terminated, truncated = (torch.stack(field, 1) for field in zip(*results, strict=True))
        return obs, reward, terminated, truncated

    def observe(self) -> Tensor:
        """Observations ``[S, K, O]`` to act on; what ended starts anew, so that it can be stepped on."""
        return torch.stack([stepper.observe() for stepper in self.steppers], 1)

    def close(self) -> None:
        for stepper in self.steppers:
            stepper.env.close()
