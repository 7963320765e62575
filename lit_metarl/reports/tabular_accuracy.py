"""Off-policy estimates of ∇J and ∇²J in random MDPs, and how well they agree with the truth.

Tang et al. 2021, "Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy Evaluation", section 5.1.
Axes: ``N`` trajectories, ``T`` steps, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_metarl.diagnostics.enumeration import (
    Estimate,
    SampledTrajectories,
    correlation,
    log_ratio_derivatives,
    policy_derivatives,
)
from lit_metarl.envs.tabular import TabularEnv, TabularMDP, random_mdp
from lit_metarl.envs.tabular_exact import exact_derivatives, state_values
from lit_metarl.estimators import doubly_robust, gae, step_wise_is, taypo, truncated_doubly_robust
from lit_metarl.reports.statistics import Array


def _taypo(order: int) -> Estimate:
    def estimate(log_ratio: Tensor, reward: Tensor, value: Tensor, bootstrap: Tensor, gamma: float) -> Tensor:
        mask = torch.ones_like(reward)
        return taypo(log_ratio, gae(reward, value, mask, gamma, 1.0, bootstrap), mask, gamma, order)

    return estimate


ESTIMATES: dict[str, Estimate] = {
    "step-wise IS": lambda x, r, v, b, gamma: step_wise_is(x, r, torch.ones_like(r), gamma),
    "DR": lambda x, r, v, b, gamma: doubly_robust(x, r, v, torch.ones_like(r), gamma, b),
    "truncated DR": lambda x, r, v, b, gamma: truncated_doubly_robust(x, r, v, torch.ones_like(r), gamma, bootstrap=b),
    "TayPO-1": _taypo(1),
    "TayPO-2": _taypo(2),
}

Point = tuple[float, int]  # ε and N


@dataclass(frozen=True)
class Setting:
    """What is drawn: random MDPs, target policies and trajectories."""

    states: int
    actions: int
    horizon: int  # steps of a trajectory
    gamma: float
    concentration: float  # of the Dirichlet distribution of transitions
    seed: int


def simulate(mdp: TabularMDP, num: int, horizon: int, gamma: float, rng: np.random.Generator) -> SampledTrajectories:
    """``num`` trajectories of the uniform policy, and its exact values with noise of deviation ‖V‖/S as critic."""
    env = TabularEnv(mdp, num, int(rng.integers(2**31)), horizon)
    action = rng.integers(mdp.num_actions, size=(horizon, num))
    state, reward = [env.reset().argmax(-1)], []
    for choice in action:
        result = env.step(choice)
        state.append(result.obs.argmax(-1))
        reward.append(result.reward)
    value = state_values(mdp, torch.zeros(mdp.reward.shape, dtype=torch.float64), gamma)
    noise = torch.as_tensor(rng.normal(size=mdp.num_states)) * value.norm() / mdp.num_states
    states, actions, rewards = (torch.as_tensor(np.stack(part, 1)) for part in (state, list(action), reward))
    return SampledTrajectories(states, actions, rewards, value + noise)


def target_logits(epsilon: float, chosen: Tensor) -> Tensor:
    """θ ``[S, A]`` of the policy (1 − ε)/A + ε·``chosen``, with ``chosen`` ``[S, A]`` the one-hot rows of a policy."""
    return ((1 - epsilon) / chosen.shape[1] + epsilon * chosen).log()


def accuracies_of_mdp(setting: Setting, index: int, points: Sequence[Point]) -> dict[Point, Array]:
    """Correlations of gradient and Hessian, ``[estimate, 2]``, in the random MDP number ``index``.

    The trajectories are the same for all estimates and ε, and the first N of the same ones for all N.
    """
    rng, gamma = np.random.default_rng([setting.seed, index]), setting.gamma
    mdp = random_mdp(setting.states, setting.actions, int(rng.integers(2**31)), setting.concentration)
    chosen = torch.eye(setting.actions, dtype=torch.float64)[rng.integers(setting.actions, size=setting.states)]
    data = simulate(mdp, max(num for _, num in points), setting.horizon, gamma, rng)
    results = {point: np.zeros((len(ESTIMATES), 2)) for point in points}
    for epsilon in sorted({epsilon for epsilon, _ in points}):
        theta = target_logits(epsilon, chosen)
        truth = exact_derivatives(mdp, theta, gamma)
        sizes = [num for each, num in points if each == epsilon]
        used = data.first(max(sizes))
        for row, estimate in enumerate(ESTIMATES.values()):
            slopes, curvatures = log_ratio_derivatives(estimate, theta, used, gamma)
            for num in sizes:
                gradient, hessian = policy_derivatives(theta, used.first(num), slopes[:num], curvatures[:num])
                results[epsilon, num][row] = correlation(gradient, truth.gradient), correlation(hessian, truth.hessian)
    return results
