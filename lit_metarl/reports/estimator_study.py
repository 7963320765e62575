"""``lit-metarl study estimators``: exact bias and variance of every inner surrogate's gradient and Hessian.

All trajectories of a small random MDP are listed, so there is no sampling error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

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
from lit_metarl.reports.benchmark import positive
from lit_metarl.reports.document import ReportError, markers, write_block
from lit_metarl.reports.study import fraction

BLOCK = "estimators"  # of the README
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


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Callable[[str], NoReturn]]:
    """The settings, and how to refuse those that only turn out later not to work (exit code 2)."""
    parser = argparse.ArgumentParser(
        "lit-metarl study estimators", description="Bias and variance of estimated derivatives, without sampling."
    )
    add = parser.add_argument
    add("--states", type=positive, default=3, help="states of the random MDP; with 3 or more the last one ends it")
    add("--actions", type=positive, default=2, help="its actions")
    add("--horizon", type=positive, default=4, help="steps after which an episode ends")
    add("--gamma", type=fraction, default=0.9, help="discount, from 0 to 1")
    add("--seed", type=int, default=0, help="of the MDP and of the policies")
    add("--write", metavar="FILE", help=f"put the table between {' and '.join(markers(BLOCK))} of FILE")
    args = parser.parse_args(arguments)
    if args.actions < 2:
        parser.error("argument --actions: 1 leaves a policy nothing to choose")
    if args.seed < 0:
        parser.error(f"argument --seed: {args.seed} is negative")
    count = args.actions * (args.states * args.actions) ** (args.horizon - 1)
    if count > MOST_TRAJECTORIES:
        parser.error(f"argument --horizon: up to {count} trajectories, more than {MOST_TRAJECTORIES}; take fewer steps")
    return args, parser.error


def main(arguments: list[str]) -> int:
    """Measure, print a table and return 0; bad values exit with code 2 and say which."""
    args, refuse = parse(arguments)
    rng = np.random.default_rng([args.seed, 1])  # not the stream of the MDP
    mdp = random_mdp(args.states, args.actions, args.seed, num_terminal=int(args.states > 2))
    theta = torch.as_tensor(rng.normal(size=(args.states, args.actions)))
    behaviours = (theta, torch.zeros_like(theta))  # the target itself, and the uniform policy
    worlds = [enumerate_round(mdp, theta, each, args.horizon, args.gamma) for each in behaviours]
    rows = {name: [world.qualities(inner, args.gamma) for world in worlds] for name, inner in ESTIMATORS.items()}
    text = markdown(rows, args)
    sys.stdout.write(text)
    if args.write:
        try:
            write_block(args.write, BLOCK, text)
        except ReportError as error:
            refuse(str(error))
    return 0


def markdown(rows: dict[str, list[tuple[Quality, Quality]]], args: argparse.Namespace) -> str:
    """The table, with how to read it below."""
    parts = ("∇ bias", "∇ variance", "∇² bias", "∇² variance")
    head = ["estimator", *parts, *(f"off-policy {part}" for part in parts)]
    lines = [head, ["---", *["---:"] * 8]]
    for name, worlds in rows.items():
        cells = [cell for world in worlds for quality in world for cell in _cells(quality)]
        lines.append([name, *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    ends = ", one of which ends the episode" if args.states > 2 else ""
    return f"""{table}

Exact, by listing all trajectories of a random MDP ({args.states} states{ends}, {args.actions} actions, {args.horizon} \
steps, γ = {args.gamma:g}, seed {args.seed}); exact values as baseline, one trajectory per estimate. Bias: norm of the \
mean error over the norm of the truth, 0 below {EXACT:g}. Variance: summed over entries. Off-policy: trajectories of \
the uniform policy. The log-likelihood's mean Hessian is 0 here, as ∇² log π of a softmax table is the same for all \
actions and their advantages average to 0.
"""


def _cells(quality: Quality) -> tuple[str, str]:
    percent = 100 * quality.bias
    digits = f"{percent:,.0f}" if percent >= 10 else f"{percent:.2g}"
    return "0" if quality.bias < EXACT else f"{digits} %", f"{quality.variance:.3g}"
