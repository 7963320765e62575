"""Exact results about a finite MDP and a softmax policy: value, gradient, Hessian, and all trajectories.

π_θ(a|s) = exp θ[s, a] / Σ_b exp θ[s, b] with a table θ ``[S, A]``; float64 throughout. Axes: ``S`` states,
``A`` actions, ``H`` horizon, ``M`` trajectories, ``T`` = H steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from lit_metarl.envs.base import Array
from lit_metarl.envs.tabular import TabularMDP


class Derivatives(NamedTuple):
    """J(θ) from the distribution of the first state, and its derivatives."""

    value: Tensor  # scalar
    gradient: Tensor  # [S, A]
    hessian: Tensor  # [S, A, S, A]


class AllTrajectories(NamedTuple):
    """Every trajectory of positive probability; padded entries hold 0."""

    state: Tensor  # [M, T] int
    action: Tensor  # [M, T] int
    reward: Tensor  # [M, T]
    mask: Tensor  # [M, T] 1 while the episode ran
    probability: Tensor  # [M], sums to 1


def state_values(mdp: TabularMDP, theta: Tensor, gamma: float, horizon: int | None = None) -> Tensor:
    """V of π_θ by the Bellman equation, differentiable in ``theta``; terminal states have value 0.

    Args:
        mdp: the MDP.
        theta: ``[S, A]`` float64.
        gamma: γ; below 1 if the horizon is infinite and the MDP does not end by itself.
        horizon: H, or None for an infinite one.

    Returns:
        V_t(s) with H − t steps to go, ``[H + 1, S]`` for t = 0 … H by backward induction; or V(s), ``[S]``, the
        solution of (I − γ P_π) V = r_π.
    """
    policy = torch.softmax(theta, -1)
    runs = torch.as_tensor(~mdp.ends, dtype=theta.dtype)
    reward = runs * (policy * torch.as_tensor(mdp.reward, dtype=theta.dtype)).sum(-1)
    step = (
        gamma * runs[:, None] * torch.einsum("sa,sax->sx", policy, torch.as_tensor(mdp.transition, dtype=theta.dtype))
    )
    if horizon is None:
        return torch.linalg.solve(torch.eye(mdp.num_states, dtype=theta.dtype) - step, reward)
    values = [torch.zeros_like(reward)]
    for _ in range(horizon):
        values.append(reward + step @ values[-1])
    return torch.stack(values[::-1])


def exact_value(mdp: TabularMDP, theta: Tensor, gamma: float, horizon: int | None = None) -> Tensor:
    """J(θ) = Σ_s start(s) V_0(s), scalar, differentiable in ``theta`` ``[S, A]``; arguments of :func:`state_values`."""
    values = state_values(mdp, theta, gamma, horizon)
    return torch.as_tensor(mdp.start, dtype=theta.dtype) @ (values if horizon is None else values[0])


def exact_derivatives(mdp: TabularMDP, theta: Tensor, gamma: float, horizon: int | None = None) -> Derivatives:
    """J(θ), ∇J and ∇²J by differentiating :func:`exact_value`, which has the arguments."""

    def value(table: Tensor) -> Tensor:
        return exact_value(mdp, table, gamma, horizon)

    theta = theta.detach()
    return Derivatives(value(theta), jacrev(value)(theta), jacrev(jacrev(value))(theta))


def all_trajectories(mdp: TabularMDP, policy: Array, horizon: int) -> AllTrajectories:
    """Every way an episode of ``policy`` can go, with its probability: up to A·(S·A)^(H−1) of them.

    Args:
        mdp: the MDP.
        policy: π(a|s), ``[S, A]``.
        horizon: H; an episode ends there, or on entering a terminal state.
    """
    state = np.flatnonzero(mdp.start)
    probability = mdp.start[state]
    columns: list[tuple[Array, Array, Array]] = []  # state, action and mask [M] of each step so far
    for step in range(horizon):
        # Each trajectory goes on with every action and successor; one that has ended only with itself.
        ended = mdp.ends[state]
        onward = policy[state][:, :, None] * mdp.transition[state]
        onward[ended] = 0.0
        onward[ended, 0, state[ended]] = 1.0
        if step == horizon - 1:  # what follows the last action belongs to no trajectory
            onward = onward.sum(-1, keepdims=True)
        parent, action, successor = np.nonzero(onward)
        probability = probability[parent] * onward[parent, action, successor]
        columns = [(s[parent], a[parent], m[parent]) for s, a, m in columns]
        columns.append((state[parent], action, ~ended[parent]))
        state = successor
    states, actions, mask = (np.stack(part, 1) for part in zip(*columns, strict=True))
    states, actions = states * mask, actions * mask
    reward = mdp.reward[states, actions] * mask
    return AllTrajectories(*map(torch.as_tensor, (states, actions, reward, mask.astype(float), probability)))
