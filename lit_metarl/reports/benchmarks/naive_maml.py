"""A plain MAML with TRPO outside, written as such code usually is: what the benchmark compares with.

A loop over tasks, each with a small vector of Gymnasium's environments, ``torch.distributions``, a functional forward
pass, one graph of all tasks, products with the Hessian of the KL divergence by double backward, an adaptation anew for
every try of the line search (as https://github.com/tristandeleu/pytorch-maml-rl). It computes the same step as
:class:`~lit_metarl.algorithms.TRPOMAML` with a :class:`~lit_metarl.nn.GaussianMLP` and one adaptation step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from lit_metarl.optim import TRPO
from lit_metarl.types import Params


class Point(gymnasium.Env[np.ndarray, np.ndarray]):
    """SG-MRL's 2-D navigation, one point."""

    observation_space = Box(-0.5, 0.5, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (2,), np.float64)
    goal: Any = 0.0  # of the task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.position = np.zeros(2)
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.position = np.clip(self.position + 0.1 * np.clip(action, -1.0, 1.0), -0.5, 0.5)
        offset = self.position - self.goal
        return self.position, -float(np.dot(offset, offset)), bool(np.abs(offset).max() < 0.01), False, {}


class HalfCheetah(HalfCheetahEnv):
    """Gymnasium's half-cheetah, paid for its velocity in a direction."""

    goal: Any = 1.0  # of the task

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
        before = self.data.qpos[0]
        self.do_simulation(action, self.frame_skip)
        velocity = (self.data.qpos[0] - before) / self.dt
        reward = self.goal * velocity - 0.05 * np.square(action).sum()
        return np.concatenate([self.data.qpos[1:], self.data.qvel]), float(reward), False, False, {}


class Episodes(NamedTuple):
    """One task's round of data, time first."""

    obs: Tensor  # [T, N, O]
    action: Tensor  # [T, N, A]
    reward: Tensor  # [T, N]
    mask: Tensor  # [T, N]
    advantage: Tensor  # [T, N]


class Settings(NamedTuple):
    """Everything that the algorithm starts from."""

    params: dict[str, np.ndarray]
    inner_lr: float
    gamma: float
    gae_lambda: float
    action_scale: float
    outer: TRPO

    @classmethod
    def of(cls, module: Any) -> Settings:
        """The settings and the parameters of a :class:`~lit_metarl.algorithms.TRPOMAML`."""
        params = {name: p.detach().numpy().copy() for name, p in module.policy.named_parameters()}
        return cls(params, module.inner_lr, module.inner.gamma, module.gae_lambda, module.action_scale, module.outer)


class PlainMAMLTRPO:
    """MAML-TRPO from the parameters of ``settings``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.params = {name: torch.tensor(p, requires_grad=True) for name, p in settings.params.items()}

    def state(self) -> Settings:
        """The settings to start another one from that has the same parameters."""
        return self.settings._replace(params={name: p.detach().numpy() for name, p in self.params.items()})

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_task(self, envs: SyncVectorEnv, goal: Any, horizon: int) -> tuple[Episodes, Episodes]:
        """A round of every environment before adaptation and one after it, all of the task with this goal."""
        envs.set_attr("goal", goal)
        train = self.sample(envs, self.params, horizon)
        return train, self.sample(envs, self.adapt(self.params, train, create_graph=False), horizon)

    @torch.no_grad()
    def sample(self, envs: SyncVectorEnv, params: Params, horizon: int) -> Episodes:
        """One episode of every environment."""
        obs, alive = envs.reset()[0], np.ones(envs.num_envs, dtype=bool)
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(horizon):
            seen = torch.as_tensor(obs, dtype=torch.float32)
            action = policy(params, seen).sample()
            scaled = np.clip(self.settings.action_scale * action.numpy(), -1.0, 1.0)
            mask = torch.as_tensor(alive, dtype=torch.float32)
            obs, reward, terminated, _, _ = envs.step(scaled)
            steps.append((seen, action, torch.as_tensor(reward, dtype=torch.float32) * mask, mask))
            alive = alive & ~terminated
            if not alive.any():
                break
        return self.episodes(*(torch.stack(values) for values in zip(*steps, strict=True)))

    def episodes(self, obs: Tensor, action: Tensor, reward: Tensor, mask: Tensor) -> Episodes:
        """The data ``[T, N, ...]`` of one task with its advantages: linear baseline, GAE, normalised."""
        returns, running = torch.zeros_like(reward), torch.zeros_like(reward[0])
        for t in reversed(range(len(reward))):
            returns[t] = running = reward[t] * mask[t] + self.settings.gamma * running
        value = linear_baseline(obs, returns, mask)
        advantage, following = torch.zeros_like(reward), torch.zeros_like(value[0])
        running = torch.zeros_like(reward[0])
        for t in reversed(range(len(reward))):
            error = (reward[t] + self.settings.gamma * following - value[t]) * mask[t]
            advantage[t] = running = error + self.settings.gamma * self.settings.gae_lambda * running
            following = value[t] * mask[t]
        mean = (advantage * mask).sum() / mask.sum()
        std = (((advantage - mean) * mask).square().sum() / mask.sum()).sqrt()
        return Episodes(obs, action, reward, mask, (advantage - mean) / std * mask)

    # Optimisation --------------------------------------------------------------------------------------------------

    def adapt(self, params: Params, train: Episodes, create_graph: bool) -> Params:
        """θ + α ∇ of the surrogate of one task."""
        log_prob = policy(params, train.obs).log_prob(train.action)
        value = (log_prob * train.advantage * train.mask).sum() / train.mask.numel()
        gradient = torch.autograd.grad(value, list(params.values()), create_graph=create_graph)
        return {name: p + self.settings.inner_lr * g for (name, p), g in zip(params.items(), gradient, strict=True)}

    def evaluate(
        self, tasks: Sequence[tuple[Episodes, Episodes]], old: Sequence[Any], create_graph: bool
    ) -> tuple[Tensor, Tensor, list[Any]]:
        """Objective, mean KL from the ``old`` distributions (the new ones themselves if there are none), new ones."""
        objective, distance, steps, pis = torch.zeros(()), torch.zeros(()), torch.zeros(()), []
        for number, (train, valid) in enumerate(tasks):
            adapted = self.adapt(self.params, train, create_graph)
            with torch.set_grad_enabled(create_graph):
                pi = policy(adapted, valid.obs)
                before = old[number] if old else detached(pi)
                ratio = (pi.log_prob(valid.action) - before.log_prob(valid.action)).exp()
                objective = objective + (ratio * valid.advantage * valid.mask).sum() / valid.mask.numel() / len(tasks)
                distance = distance + (kl_divergence(before, pi) * valid.mask).sum()
                steps = steps + valid.mask.sum()
            pis.append(detached(pi))
        return objective, distance / steps, pis

    def update(self, tasks: Sequence[tuple[Episodes, Episodes]]) -> None:
        """One step within the trust region."""
        params, outer = list(self.params.values()), self.settings.outer
        objective, distance, old = self.evaluate(tasks, [], create_graph=True)
        gradient = flat(torch.autograd.grad(objective, params, retain_graph=True))
        slope = flat(torch.autograd.grad(distance, params, create_graph=True))

        def product(vector: Tensor, last: bool = False) -> Tensor:
            moved = flat(torch.autograd.grad(slope.dot(vector), params, retain_graph=not last))
            return moved + outer.damping * vector

        direction = conjugate_gradient(product, gradient, outer.cg_iterations)
        step = direction * (2.0 * outer.max_kl / direction.dot(product(direction, last=True))).sqrt()
        start, before, size = flat(params).detach(), float(objective.detach()), 1.0
        for _ in range(outer.backtrack_steps):
            self.assign(start + size * step)
            value, kl, _ = self.evaluate(tasks, old, create_graph=False)
            if float(value) > before and float(kl) <= outer.max_kl:
                return
            size *= outer.backtrack_ratio
        self.assign(start)

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Give the parameters the values of ``vector``, one after the other."""
        torch.nn.utils.vector_to_parameters(vector, list(self.params.values()))


def policy(params: Params, obs: Tensor) -> Independent:
    """π at observations ``[..., O]``."""
    layers = [name.removesuffix("weight") for name in params if name.endswith("weight")]
    for layer in layers[:-1]:
        obs = torch.tanh(F.linear(obs, params[f"{layer}weight"], params[f"{layer}bias"]))
    mean = F.linear(obs, params[f"{layers[-1]}weight"], params[f"{layers[-1]}bias"])
    return Independent(Normal(mean, params["log_std"].exp()), 1)


def detached(pi: Any) -> Independent:
    """``pi`` without a graph."""
    return Independent(Normal(pi.base_dist.loc.detach(), pi.base_dist.scale.detach()), 1)


def linear_baseline(obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Ridge regression of one task's returns on observation and time, ``[T, N]``."""
    x, (steps, number) = obs.double().clamp(-10.0, 10.0), returns.shape
    time = (torch.arange(steps, dtype=torch.float64) / 100.0).view(-1, 1, 1).expand(steps, number, 1)
    features = torch.cat([x, x**2, time, time**2, time**3, torch.ones_like(time)], -1) * mask.double().unsqueeze(-1)
    rows = features.flatten(0, 1)
    gram = rows.T @ rows + 1e-5 * torch.eye(rows.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, rows.T @ returns.double().flatten())
    return (features @ weights).to(returns.dtype)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x ≈ A⁻¹ b of a positive definite A."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squared = residual.dot(residual)
    limit = 1e-10 * squared
    for _ in range(iterations):
        moved = product(direction)
        length = squared / direction.dot(moved)
        x += length * direction
        residual -= length * moved
        previous, squared = squared, residual.dot(residual)
        if squared <= limit:
            break
        direction = residual + squared / previous * direction
    return x


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
