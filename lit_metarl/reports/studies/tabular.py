"""``lit-metarl study tabular``: Fig. 1(a–c) of Tang et al. 2021, as tables and as a figure.

"Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy Evaluation", section 5.1: off-policy
estimates of ∇J and ∇²J from trajectories in random MDPs, and how well they agree with the truth. Axes: ``N``
trajectories, ``T`` steps, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lit_metarl.reports.arguments import fraction, positive, seed
from lit_metarl.reports.section import Section, blank_figure, markdown_table
from lit_metarl.reports.tables.statistics import Array


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
    """Distribution of random MDPs, target policies and trajectories."""

    states: int
    actions: int
    horizon: int  # steps of a trajectory
    gamma: float
    concentration: float  # of the Dirichlet distribution of transitions
    seed: int


Accuracies = Mapping[Point, Array]
"""Correlations with the truth, ``[estimate, MDP, 2]``: of the gradient and of the Hessian."""


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


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study tabular``."""
    add = parser.add_argument
    add("--mdps", type=positive, default=10, help="random MDPs that are averaged over")
    add("--states", type=positive, default=10)
    add("--actions", type=positive, default=5)
    add("--horizon", type=positive, default=20, help="steps of a trajectory; the truth is of infinite ones")
    add("--gamma", type=fraction, default=0.8, help="discount, below 1")
    add("--concentration", type=float, default=0.001, help="of the Dirichlet distribution of transitions")
    add("--epsilons", type=fraction, nargs="+", default=[0.0, 0.2, 0.5, 0.8], help="how far off-policy, below 1")
    add("--trajectories", type=positive, default=1000, help="N of the comparison over ε")
    add("--sizes", type=positive, nargs="+", default=[10, 30, 100, 300, 1000, 3000], help="N of the other comparison")
    add("--size-epsilon", type=fraction, default=0.5, help="its ε")
    add("--seed", type=seed, default=0)
    add("--figure", metavar="DIR", default="mlruns/figures", help="folder for tabular.png")
    args = parser.parse_args(words)
    for name, good, remedy in (
        ("--gamma", args.gamma < 1, "it has to be below 1"),
        ("--epsilons", max(args.epsilons) < 1, "each has to be below 1: a softmax gives no action probability 0"),
        ("--size-epsilon", args.size_epsilon < 1, "it has to be below 1"),
        ("--concentration", 0 < args.concentration < math.inf, "it has to be above 0 and finite"),
    ):
        if not good:
            parser.error(f"argument {name}: {remedy}")
    return args


def run(args: argparse.Namespace) -> Section:
    """Accuracies over ε and over N, as tables and as a figure."""
    setting = Setting(args.states, args.actions, args.horizon, args.gamma, args.concentration, args.seed)
    points = sorted({*by_epsilon(args), *by_size(args)})
    each = [accuracies_of_mdp(setting, index, points) for index in range(args.mdps)]
    results = {point: np.stack([result[point] for result in each], axis=1) for point in points}
    tables = [table_of(results, points) for points in (by_epsilon(args), by_size(args))]
    note = f"""\
Pearson correlation with the exact ∇J / ∇²J of the infinite horizon, mean ± standard error over {args.mdps} random \
MDPs ({args.states} states, {args.actions} actions, Dirichlet({args.concentration:g}), γ = {args.gamma:g}, seed \
{args.seed}). N trajectories of {args.horizon} steps of the uniform policy μ; target (1 − ε)μ + ε·(one action per \
state); critic: V of μ with noise of deviation ‖V‖/S."""
    return Section("\n\n".join(tables), [note], {Path(args.figure) / "tabular.png": draw(results, args)})


def by_epsilon(args: argparse.Namespace) -> list[Point]:
    """The points of Fig. 1(a, b)."""
    return [(epsilon, args.trajectories) for epsilon in sorted(set(args.epsilons))]


def by_size(args: argparse.Namespace) -> list[Point]:
    """The points of Fig. 1(c)."""
    return [(args.size_epsilon, size) for size in sorted(set(args.sizes))]


def standard_error(values: Array) -> Array:
    """Standard error of the mean over MDPs, ``[estimate, MDP, 2]`` → ``[estimate, 2]``; 0 of a single one."""
    count = values.shape[1]
    return values.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(values[:, 0].shape)


def table_of(results: Accuracies, points: Sequence[Point]) -> str:
    """A line per point: ε, N, and gradient / Hessian of every estimate."""
    lines = []
    for epsilon, num in points:
        values = results[epsilon, num]
        cells = [
            " / ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in zip(*pair, strict=True))
            for pair in zip(values.mean(1), standard_error(values), strict=True)
        ]
        lines.append([f"{epsilon:g}", str(num), *cells])
    return markdown_table(["ε", "N", *ESTIMATES], lines)


def draw(results: Accuracies, args: argparse.Namespace) -> Any:
    """Fig. 1(a–c), a matplotlib ``Figure``; bands are one standard error."""
    figure = blank_figure(12, 3.6)
    panels: Any = figure.subplots(1, 3, sharey=True)
    over_epsilon, over_size = by_epsilon(args), by_size(args)
    for axes, points, part, title in (
        (panels[0], over_epsilon, 0, f"gradient, N = {args.trajectories}"),
        (panels[1], over_epsilon, 1, f"Hessian, N = {args.trajectories}"),
        (panels[2], over_size, 1, f"Hessian, ε = {args.size_epsilon:g}"),
    ):
        position = [num if points is over_size else epsilon for epsilon, num in points]
        mean = np.stack([results[point].mean(1)[:, part] for point in points], 1)
        error = np.stack([standard_error(results[point])[:, part] for point in points], 1)
        for row, name in enumerate(ESTIMATES):
            axes.plot(position, mean[row], marker="o", markersize=3, label=name)
            axes.fill_between(position, mean[row] - error[row], mean[row] + error[row], alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="N" if points is over_size else "ε")
    panels[2].set_xscale("log")
    panels[0].set_ylabel("correlation with the truth")
    panels[0].legend(fontsize="small")
    return figure
