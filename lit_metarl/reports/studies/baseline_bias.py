"""``lit-metarl study baseline_bias``: what a baseline does to the meta-gradient of trained checkpoints.

A baseline that is fitted to the trajectories it is applied to contains their own returns; advantages that are
normalised are divided by their own spread. Neither is unbiased, and a factor that all gradients share is nothing to
Adam: what matters is the bias of direction.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_metarl.algorithms import MetaPolicyGradient
from lit_metarl.callbacks.gradients import Resampling
from lit_metarl.data.resampling import Resampler
from lit_metarl.diagnostics.gradients import Interval, paired_bias, squared_norm
from lit_metarl.nn import LinearFeature
from lit_metarl.reports.arguments import at_least, positive, seed, writable_file
from lit_metarl.reports.section import Section, markdown_table
from lit_metarl.reports.studies.gradient_quality import load_run

UNBIASED = "fit to the others"
ROWS = {
    "fit to all, normalised (default)": {"held_out": False, "normalised": True},
    "fit to all": {"held_out": False, "normalised": False},
    "fit to the others, normalised": {"held_out": True, "normalised": True},
    UNBIASED: {"held_out": True, "normalised": False},
}


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study baseline_bias``."""
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+", help="files of runs of the MAML family")
    add("--trajectories", type=positive, nargs="+", metavar="N", help="of every round; the run's if not given")
    add("--tasks", type=positive, default=10, help="B, the same in every meta-batch")
    spread = at_least(3, "a spread without one of them needs three")
    add("--resamples", type=spread, default=200, help="R meta-batches, the same for every row")
    add("--seed", type=seed, default=0, help="of tasks, simulators and actions")
    add("--json", metavar="FILE", type=writable_file, help="all numbers, with their intervals")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The bias of the linear baseline, fitted and scaled in four ways, at every checkpoint.

    Raises:
        ReportError: a file is no checkpoint of a run of the family.
    """
    from lit_metarl.cli import quieten

    quieten()
    lines, data = [], {}
    for path in args.checkpoints:
        own, datamodule, epoch = load_run(path)
        rows = {name: with_baseline(path, **settings) for name, settings in ROWS.items()}
        for size in args.trajectories or [datamodule.trajectories]:
            resampling = Resampling(args.tasks, args.resamples, trajectories=size, seed=args.seed)
            resampler = resampling.resampler(datamodule, 0)
            found = sample(own, rows, resampler, args.resamples)
            resampler.close()
            label = f"{type(own).__name__} on {datamodule.spec.name}, epoch {epoch}"
            for name, estimates in found.items():
                bias = paired_bias(estimates, found[UNBIASED])
                relative = relative_variance(estimates)
                data[f"{path}, N = {size}, {name}"] = bias._asdict() | {"relative_variance": relative}
                cells = ["–"] * 3
                if name != UNBIASED:
                    cells = [_scale(bias.scale), *map(_percent, bias[1:])]
                lines.append([label, str(size), name, *cells, "–" if math.isnan(relative) else f"{relative:.2g}"])
    head = ["checkpoint", "N", "linear baseline", "scale", "bias", "of direction", "variance"]
    note = f"""\
{args.tasks} fixed tasks, {args.resamples} meta-batches that are the same for all rows, seed {args.seed}, with 95 % \
intervals over them. Adaptation is the run's in every row; they differ in how the last round's advantages are made, \
all of whole returns (λ = 1). \
Scale: of the mean meta-gradient along the true one, "{UNBIASED}"'s mean, which is unbiased. Bias: norm of the mean \
error over the norm of the truth; of direction: the sine of the angle between the two. Variance: total, over the \
squared norm of the row's own expectation, so that scale does not count; – where that is not told from 0."""
    return Section(markdown_table(head, lines), [note], data=data)


def sample(
    own: MetaPolicyGradient, rows: Mapping[str, MetaPolicyGradient], resampler: Resampler, resamples: int
) -> dict[str, Tensor]:
    """Meta-gradients ``[R, P]`` of every row in float64, all on the data that ``own`` collects and adapts with.

    Args:
        own: the run's module.
        rows: modules with the same parameters, whose baseline and scaling make the last round's advantages.
        resampler: draws the meta-batches.
        resamples: R.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in rows}
    for _ in range(resamples):
        (rounds,) = resampler.draw({"": own}, own.device).values()
        adaptations = [own.before_adaptation(rounds[0].context)]
        for trajectories in rounds[:-1]:
            adaptations.append(own.adapt(adaptations[-1], trajectories))
        for name, module in rows.items():
            gradient = module.meta_gradient(rounds, adaptations)
            found[name].append(torch.cat([value.flatten() for value in gradient.values()]).double())
    return {name: torch.stack(each) for name, each in found.items()}


def relative_variance(estimates: Tensor) -> float:
    """Σ_p Var g_p / ‖E g‖² of ``estimates [R, P]``, R ≥ 2; NaN where the second is not told from 0."""
    return float(estimates.var(0).sum() / squared_norm(estimates))


def with_baseline(path: Path, held_out: bool, normalised: bool) -> MetaPolicyGradient:
    """The run's module with a linear baseline, and advantages of whole returns.

    Args:
        path: of the checkpoint.
        held_out: whether the baseline is fitted to the other trajectories of a task.
        normalised: whether advantages have mean 0 and deviation 1 per task.

    Raises:
        CheckpointError, ReportError: the file is no checkpoint of a run of the family.
    """
    name = f"{LinearFeature.__module__}.{LinearFeature.__qualname__}"
    baseline = {"class_path": name, "init_args": {"held_out": held_out}}
    # With λ < 1 a baseline that is unbiased for the advantages of whole returns biases those of parts of them.
    advantages = {"normalise_advantages": normalised, "gae_lambda": 1.0}
    return load_run(path, {"baseline": baseline} | advantages).module


def _scale(scale: Interval) -> str:
    """A factor with its interval; NaN is –."""
    return "–" if math.isnan(scale.value) else f"{scale.value:.2f} ({scale.low:.2f} to {scale.high:.2f})"


def _percent(square: Interval) -> str:
    """The root of a square in per cent, with its interval; what is below 0 counts as 0, and NaN is –."""
    if math.isnan(square.value):
        return "–"
    value, low, high = (100 * max(each, 0.0) ** 0.5 for each in square)
    return f"{value:.2g} % ({low:.2g} to {high:.2g})"
