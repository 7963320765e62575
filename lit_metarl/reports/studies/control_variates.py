"""``lit-metarl study control_variates``: exact bias and variance with baselines that depend on the action.

All trajectories of small random MDPs with two binary action dimensions are listed, so there is no sampling error
(Liu et al. 2019, Eq. 7 and 11).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lit_metarl.diagnostics.enumeration import Quality, quality_of
from lit_metarl.envs.tabular import TabularMDP, random_mdp
from lit_metarl.envs.tabular_exact import all_trajectories, exact_value, state_values
from lit_metarl.estimators import TMAML, DiCE, InnerSurrogate, LikelihoodRatio, OrderedTMAML, gae, ordered
from lit_metarl.reports.arguments import fraction, positive
from lit_metarl.reports.section import Section, markdown_table, percent
from lit_metarl.types import Dimensions, Signals

STATES, HORIZON = 2, 3
EXACT = 1e-10  # relative bias that is rounding
PARAMETERS = ("own", "shared")

Surrogate = Callable[[Tensor, Signals, float], Tensor]
"""log π_θ(a_t^i|s_t) ``[1, T, 2]`` with its graph, data, γ → ``[1]``."""


def by_dimension(inner: InnerSurrogate) -> Surrogate:
    """A strategy, told about dimensions, as a :data:`Surrogate`."""
    return lambda log_prob, data, gamma: inner.per_trajectory_by_dimension(log_prob, data, gamma, True)


def states_only(inner: InnerSurrogate) -> Surrogate:
    """A strategy that sees the action as one, as a :data:`Surrogate`."""
    return lambda log_prob, data, gamma: inner.per_trajectory(log_prob.sum(-1), data, gamma, True)


def inclusive_product(log_prob: Tensor, data: Signals, gamma: float) -> Tensor:
    """A negative control, ``[1]``: the paper's product over t' ≤ t, here up to the coordinate itself."""
    assert data.dimensions
    right = by_dimension(OrderedTMAML())(log_prob, data, gamma)
    log_ratio, effect = log_prob - data.dimensions.log_prob, data.dimensions.effect
    baseline = data.value[..., None] + effect.flip(-1)  # of two coordinates
    flat = log_ratio.flatten(-2)
    product = (flat.cumsum(-1).exp() - (flat.cumsum(-1) - flat).exp()) * -flat.expm1()
    weight = gamma ** torch.arange(HORIZON, dtype=flat.dtype).repeat_interleave(2)
    return right + (weight * product * baseline.flatten(-2)).sum(-1)


def sees_its_own_coordinate(log_prob: Tensor, data: Signals, gamma: float) -> Tensor:
    """A negative control, ``[1]``: the critic of the whole action as every coordinate's baseline."""
    assert data.dimensions
    behaviour, effect = data.dimensions
    critic = (data.value + effect.sum(-1))[..., None].expand(effect.shape)
    return ordered(log_prob - behaviour, data.reward, critic, data.mask, gamma)


ESTIMATORS: dict[str, Surrogate] = {
    "LVC": states_only(LikelihoodRatio()),
    "DiCE": states_only(DiCE()),
    "TMAML, b(s)": states_only(TMAML()),
    "TMAML, b_i(s, a^−i), ordered": by_dimension(OrderedTMAML()),
    "TMAML, b_i(s, a^−i)": by_dimension(TMAML()),
    "control: inclusive product": inclusive_product,
    "control: b_i sees a^i": sees_its_own_coordinate,
}


class FactorisedWorld(NamedTuple):
    """All M trajectories of π = π¹π² in a small MDP of 2 × 2 actions, and the truth about J."""

    state: Tensor  # [M, T] int
    bits: Tensor  # [M, T, 2] int, both coordinates of the action
    signals: Signals  # [M, T]
    probability: Tensor  # [M]
    theta: Tensor  # [2, S, 2] of own parameters, [1, S, 2] of shared ones
    gradient: Tensor
    hessian: Tensor

    def quality(self, surrogate: Surrogate, gamma: float) -> tuple[Quality, Quality]:
        """Errors of gradient and Hessian of ``surrogate`` from one trajectory per estimate."""

        def value(theta: Tensor, state: Tensor, bits: Tensor, data: Signals) -> Tensor:
            log_prob = log_prob_of_bits(theta, state, bits)
            return surrogate(log_prob[None], data.map(lambda part: part[None]), gamma)[0]

        gradient = jacrev(value)
        each = [vmap(f, (None, 0, 0, 0)) for f in (gradient, jacrev(gradient))]
        first, second = (f(self.theta, self.state, self.bits, self.signals) for f in each)
        return quality_of(first, self.probability, self.gradient), quality_of(second, self.probability, self.hessian)


def log_prob_of_bits(theta: Tensor, state: Tensor, bits: Tensor) -> Tensor:
    """log π^i(a_t^i|s_t), ``[..., T, 2]``; a table ``[1, S, 2]`` is both coordinates'."""
    tables = theta.expand(2, -1, -1).log_softmax(-1)
    return torch.stack([tables[i][state, bits[..., i]] for i in range(2)], dim=-1)


def joint_logits(theta: Tensor) -> Tensor:
    """log π(a|s) of all four actions, ``[S, 4]``: action 2·a¹ + a²."""
    first, second = theta.expand(2, -1, -1).log_softmax(-1)
    return (first[:, :, None] + second[:, None, :]).flatten(1)


def world(seed: int, parameters: str, gamma: float) -> FactorisedWorld:
    """The MDP and policy of ``seed``, with the exact critic: V, and the effect of either coordinate on Q.

    Args:
        seed: of both.
        parameters: ``own``, a softmax table for each coordinate, or ``shared``, one for both.
        gamma: γ.
    """
    rng = np.random.default_rng([seed, 1])  # not the stream of the MDP
    # Rewards of both signs: where returns are far from 0 any baseline is a great gain, and hides the rest.
    mdp = replace(random_mdp(STATES, 4, seed), reward=rng.normal(size=(STATES, 4)))
    theta = torch.as_tensor(rng.normal(size=(2 if parameters == "own" else 1, STATES, 2)))
    policy = joint_logits(theta).exp()
    state, action, reward, mask, probability = all_trajectories(mdp, policy.numpy(), HORIZON)
    bits = torch.stack([action // 2, action % 2], dim=-1)
    values = state_values(mdp, joint_logits(theta), gamma, HORIZON)
    critic = _critic(mdp, values, gamma).unflatten(-1, (2, 2))  # [T, S, 2, 2]
    first, second = theta.expand(2, -1, -1).softmax(-1)
    mean = values[:-1]
    effects = (
        (critic * second[:, None, :]).sum(-1) - mean[..., None],
        (critic * first[..., None]).sum(-2) - mean[..., None],
    )
    time = torch.arange(HORIZON)
    effect = torch.stack([effects[i][time, state, bits[..., i]] for i in range(2)], dim=-1)
    value = mean[time, state]
    log_prob = log_prob_of_bits(theta, state, bits)
    advantage = gae(reward, value, mask, gamma, gae_lambda=1.0)
    signals = Signals(log_prob.sum(-1), reward, value, advantage, mask, Dimensions(log_prob, effect))

    def exact(theta: Tensor) -> Tensor:
        return exact_value(mdp, joint_logits(theta), gamma, HORIZON)

    return FactorisedWorld(state, bits, signals, probability, theta, jacrev(exact)(theta), jacrev(jacrev(exact))(theta))


def _critic(mdp: TabularMDP, values: Tensor, gamma: float) -> Tensor:
    """Q_t(s, a), ``[T, S, 4]``, from V_t ``[T + 1, S]``."""
    onward = torch.einsum("sax,tx->tsa", torch.as_tensor(mdp.transition), values[1:])
    return torch.as_tensor(mdp.reward) + gamma * onward


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study control_variates``."""
    add = parser.add_argument
    add("--mdps", type=positive, default=6, help="random MDPs, seeds 0, 1, 2 …")
    add("--gamma", type=fraction, default=0.9, help="discount, from 0 to 1")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The quality of every estimator, in every MDP, with own and shared parameters."""
    lines = []
    for parameters in PARAMETERS:
        worlds = [world(seed, parameters, args.gamma) for seed in range(args.mdps)]
        for name, surrogate in ESTIMATORS.items():
            qualities = [each.quality(surrogate, args.gamma) for each in worlds]
            biases = [percent(max(quality[order].bias for quality in qualities), EXACT) for order in (0, 1)]
            variances = [f"{first.variance:.3g} / {second.variance:.3g}" for first, second in qualities]
            lines.append([f"{name}, {parameters} parameters", *biases, *variances])
    note = f"""\
Exact, by listing all trajectories of random MDPs ({STATES} states, rewards N(0, 1), two binary action dimensions, \
{HORIZON} steps, γ = {args.gamma:g}, seeds 0 to {args.mdps - 1}); exact critics, one trajectory per estimate. Bias: \
norm of the mean error over the norm of the truth, the largest of all MDPs, 0 below {EXACT:g}. Variance of gradient / \
Hessian, summed over entries."""
    head = ["estimator", "∇ bias", "∇² bias", *(f"variance, MDP {seed}" for seed in range(args.mdps))]
    return Section(markdown_table(head, lines, numbers=True), [note])
