"""``lit-metarl study tabular``: Fig. 1(a–c) of Tang et al. 2021, as tables and as a figure.

"Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy Evaluation", section 5.1; what is measured
is in :mod:`lit_metarl.reports.tabular_accuracy`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lit_metarl.reports.benchmark import positive
from lit_metarl.reports.document import ReportError, markers, write_block
from lit_metarl.reports.statistics import Array
from lit_metarl.reports.study import fraction
from lit_metarl.reports.tabular_accuracy import ESTIMATES, Point, Setting, accuracies_of_mdp

BLOCK = "tabular"  # of the README
Accuracies = Mapping[Point, Array]
"""Correlations with the truth, ``[estimate, MDP, 2]``: of the gradient and of the Hessian."""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Callable[[str], NoReturn]]:
    """The settings, and how to refuse those that only turn out later not to work (exit code 2)."""
    parser = argparse.ArgumentParser(
        "lit-metarl study tabular",
        description="Accuracy of off-policy estimates in random MDPs (Fig. 1 of Tang et al.).",
    )
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
    add("--seed", type=int, default=0)
    add("--write", metavar="FILE", help=f"put the tables between {' and '.join(markers(BLOCK))} of FILE")
    add("--figure", metavar="DIR", default="mlruns/figures", help="folder for tabular.png")
    args = parser.parse_args(arguments)
    for name, good, remedy in (
        ("--gamma", args.gamma < 1, "it has to be below 1"),
        ("--epsilons", max(args.epsilons) < 1, "each has to be below 1: a softmax gives no action probability 0"),
        ("--size-epsilon", args.size_epsilon < 1, "it has to be below 1"),
        ("--concentration", 0 < args.concentration < math.inf, "it has to be above 0 and finite"),
        ("--seed", args.seed >= 0, "it must not be negative"),
    ):
        if not good:
            parser.error(f"argument {name}: {remedy}")
    return args, parser.error


def main(arguments: list[str]) -> int:
    """Measure, draw, print tables and return 0; bad values exit with code 2 and say which."""
    args, refuse = parse(arguments)
    setting = Setting(args.states, args.actions, args.horizon, args.gamma, args.concentration, args.seed)
    points = sorted({*by_epsilon(args), *by_size(args)})
    each = [accuracies_of_mdp(setting, index, points) for index in range(args.mdps)]
    results = {point: np.stack([result[point] for result in each], axis=1) for point in points}
    text = markdown(results, args)
    sys.stdout.write(text)
    try:
        path = draw(results, args, Path(args.figure))
        sys.stderr.write(f"{path}\n")
        if args.write:
            write_block(args.write, BLOCK, text)
    except ReportError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"cannot write {error.filename}: {error.strerror}")
    return 0


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


def markdown(results: Accuracies, args: argparse.Namespace) -> str:
    """Two tables, over ε and over N, with how to read them below."""
    head = "| ε | N | " + " | ".join(ESTIMATES) + " |\n" + "| --- | --- |" + " --- |" * len(ESTIMATES)
    tables = []
    for points in (by_epsilon(args), by_size(args)):
        lines = [head]
        for epsilon, num in points:
            values = results[epsilon, num]
            cells = [
                " / ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in zip(*pair, strict=True))
                for pair in zip(values.mean(1), standard_error(values), strict=True)
            ]
            lines.append(f"| {epsilon:g} | {num} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return f"""{tables[0]}

{tables[1]}

Pearson correlation with the exact ∇J / ∇²J of the infinite horizon, mean ± standard error over {args.mdps} random \
MDPs ({args.states} states, {args.actions} actions, Dirichlet({args.concentration:g}), γ = {args.gamma:g}, seed \
{args.seed}). N trajectories of {args.horizon} steps of the uniform policy μ; target (1 − ε)μ + ε·(one action per \
state); critic: V of μ with noise of deviation ‖V‖/S.
"""


def draw(results: Accuracies, args: argparse.Namespace, folder: Path) -> Path:
    """Draw Fig. 1(a–c) into ``folder``/tabular.png, which is returned; bands are one standard error."""
    # not pyplot: it would choose a window system, and keep every figure alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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
    path = folder / "tabular.png"
    figure.savefig(path, dpi=150)
    return path
