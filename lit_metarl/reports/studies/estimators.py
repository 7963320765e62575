"""``lit-metarl study estimators``: exact bias and variance of every inner surrogate's gradient and Hessian.

All trajectories of a small random MDP are listed, so there is no sampling error.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lit_metarl.diagnostics.enumeration import Quality, enumerate_round
from lit_metarl.envs.tabular import random_mdp
from lit_metarl.estimators import (
    TMAML,
    DiCE,
    DoublyRobust,
    InnerSurrogate,
    LikelihoodRatio,
    LoadedDiCE,
    LogLikelihood,
    TayPO,
    TruncatedDR,
)
from lit_metarl.reports.arguments import at_least, fraction, positive, seed
from lit_metarl.reports.section import Section, markdown_table, percent

MOST_TRAJECTORIES = 20_000
EXACT = 1e-10  # relative bias that is rounding
ESTIMATORS: dict[str, InnerSurrogate] = {
    "log-likelihood (MAML)": LogLikelihood(),
    "likelihood ratio (LVC, TayPO-1)": LikelihoodRatio(),
    "TayPO-2": TayPO(order=2),
    "TayPO-3": TayPO(order=3),
    "DiCE (step-wise IS)": DiCE(),
    "Loaded DiCE": LoadedDiCE(),
    "Loaded DiCE, λ = 0.5": LoadedDiCE(decay=0.5),
    "doubly robust": DoublyRobust(),
    "doubly robust, truncated at 1": TruncatedDR(),
    "TMAML": TMAML(),
    "TMAML, Eq. (7) as printed": TMAML(eq7_printed=True),
}


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study estimators``."""
    add = parser.add_argument
    add("--states", type=positive, default=3, help="states of the random MDP; with 3 or more the last one ends it")
    add("--actions", type=at_least(2, "1 leaves a policy nothing to choose"), default=2, help="its actions")
    add("--horizon", type=positive, default=4, help="steps after which an episode ends")
    add("--gamma", type=fraction, default=0.9, help="discount, from 0 to 1")
    add("--seed", type=seed, default=0, help="of the MDP and of the policies")
    args = parser.parse_args(words)
    count = args.actions * (args.states * args.actions) ** (args.horizon - 1)
    if count > MOST_TRAJECTORIES:
        parser.error(f"argument --horizon: up to {count} trajectories, more than {MOST_TRAJECTORIES}; take fewer steps")
    return args


def run(args: argparse.Namespace) -> Section:
    """The quality of every estimator, on- and off-policy."""
    rng = np.random.default_rng([args.seed, 1])  # not the stream of the MDP
    mdp = random_mdp(args.states, args.actions, args.seed, num_terminal=int(args.states > 2))
    theta = torch.as_tensor(rng.normal(size=(args.states, args.actions)))
    behaviours = (theta, torch.zeros_like(theta))  # the target itself, and the uniform policy
    worlds = [enumerate_round(mdp, theta, each, args.horizon, args.gamma) for each in behaviours]
    lines = []
    for name, inner in ESTIMATORS.items():
        qualities = [quality for world in worlds for quality in world.qualities(inner, args.gamma)]
        lines.append([name, *(cell for quality in qualities for cell in _cells(quality))])
    parts = ("∇ bias", "∇ variance", "∇² bias", "∇² variance")
    head = ["estimator", *parts, *(f"off-policy {part}" for part in parts)]
    ends = ", one of which ends the episode" if args.states > 2 else ""
    note = f"""\
Exact, by listing all trajectories of a random MDP ({args.states} states{ends}, {args.actions} actions, {args.horizon} \
steps, γ = {args.gamma:g}, seed {args.seed}); exact values as baseline, one trajectory per estimate. Bias: norm of the \
mean error over the norm of the truth, 0 below {EXACT:g}. Variance: summed over entries. Off-policy: trajectories of \
the uniform policy. The log-likelihood's mean Hessian is 0 here, as ∇² log π of a softmax table is the same for all \
actions and their advantages average to 0."""
    return Section(markdown_table(head, lines, numbers=True), [note])


def _cells(quality: Quality) -> tuple[str, str]:
    return percent(quality.bias, EXACT), f"{quality.variance:.3g}"
