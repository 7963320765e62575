"""``lit-metarl study gradient_samples``: errors of meta-gradients by number of trajectories, Fig. 4 of Liu et al. 2019.

At the parameters of a checkpoint, such as one of ``configs/experiment/point_1d_tmaml.yaml``, with bias² and variance
apart: the figure shows a correlation alone, which cannot say which of the two an estimator suffers from.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_metarl.callbacks.gradients import Samples, sample_gradients, unit_gradient
from lit_metarl.data.resampling import Resampler
from lit_metarl.diagnostics.gradients import GradientQuality, gradient_quality
from lit_metarl.estimators import (
    TMAML,
    DiCE,
    InnerSurrogate,
    LikelihoodRatio,
    LoadedDiCE,
    LogLikelihood,
    TayPO,
    reward_to_go,
)
from lit_metarl.nn import ActionDependentLinear, BaselineFactory, LinearFeature, MetaLearned
from lit_metarl.optim.corrections import NoCorrection
from lit_metarl.reports.arguments import at_least, positive, seed, writable_file
from lit_metarl.reports.section import Section, blank_figure, markdown_table
from lit_metarl.reports.studies.gradient_quality import StoredRun, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINEAR, PER_TASK, META = LinearFeature(held_out=True), ActionDependentLinear(), MetaLearned()
ESTIMATORS: dict[str, tuple[InnerSurrogate, BaselineFactory]] = {
    "log-likelihood": (LogLikelihood(), LINEAR),
    "LVC": (LikelihoodRatio(), LINEAR),
    "DiCE": (DiCE(), LINEAR),  # which it does not use
    "Loaded DiCE": (LoadedDiCE(), LINEAR),
    "TayPO-2": (TayPO(order=2), LINEAR),
    "TMAML, linear": (TMAML(), LINEAR),
    "TMAML, per task": (TMAML(), PER_TASK),
    "TMAML, meta": (TMAML(), META),
}
PARTS = {"product": "inner Hessian × vector", "gradient": "meta-gradient"}
REFERENCE = 1000  # trajectories of each task in one meta-batch of the reference
FIGURE = Path("mlruns/figures/gradient_samples.png")
PRACTICE = 20  # trajectories of each task that a learned baseline is trained on

Qualities = dict[str, dict[int, dict[str, GradientQuality]]]
"""Estimator → trajectories → part of :data:`PARTS` → errors."""


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study gradient_samples``."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, help="file of a run of the MAML family, partially trained")
    add("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    add("--sizes", type=positive, nargs="+", default=[5, 10, 20, 50, 100, 200, 500, 1000], help="N of every round")
    repeats = at_least(3, "a spread without one of them needs three")
    batches = at_least(3 * REFERENCE, "its spread needs three meta-batches")
    add("--repeats", type=repeats, default=50, help="R meta-batches at every N")
    add("--truth", type=batches, default=100_000, help=f"trajectories of a task behind the truth, {REFERENCE} at once")
    add("--tasks", type=positive, default=4, help="B, the same throughout")
    add("--practice", type=positive, default=200, help="meta-batches that a learned baseline is trained on")
    add("--seed", type=seed, default=0, help="of tasks, simulators and actions")
    add("--figure", metavar="FILE", type=writable_file, default=FIGURE, help="(%(default)s)")
    add("--json", metavar="FILE", type=writable_file, help="all numbers, with their intervals")
    args = parser.parse_args(words)
    if args.truth % REFERENCE:
        parser.error(f"argument --truth: it has to be a multiple of {REFERENCE}, which are drawn at once")
    return args


def run(args: argparse.Namespace) -> Section:
    """The errors of every estimator at every number of trajectories.

    Raises:
        ReportError, CheckpointError: the file is no checkpoint of a run of the family.
    """
    from lit_metarl.cli import quieten

    quieten()
    found = measure(args)
    head = ["estimator", *(f"N = {size}" for size in args.sizes)]
    tables = []
    for part, title in PARTS.items():
        lines = [[name, *(cell(each[size][part]) for size in args.sizes)] for name, each in found.items()]
        tables.append(f"{title[0].upper()}{title[1:]}:\n\n" + markdown_table(head, lines, numbers=True))
    note = f"""\
bias² + variance over the squared norm of the truth (Pearson's correlation), {args.repeats} meta-batches of \
{args.tasks} fixed tasks at every N, the same for all estimators; N trajectories of a task in each round. \
Truth: Loaded DiCE on {args.truth:,} other trajectories of each task, {REFERENCE:,} at once. Advantages and rewards as \
the gradient of J has them (not normalised, discounted); baselines do not see the trajectory they are applied to. \
{winners(found, args.sizes)}"""
    data = {name: {str(n): _plain(parts) for n, parts in each.items()} for name, each in found.items()}
    return Section("\n\n".join(tables), [note], {args.figure: draw(found, args.sizes)}, data)


def measure(args: argparse.Namespace) -> Qualities:
    """Errors of the estimators, all at the parameters of the checkpoint."""
    stored = {name: _prepared(args, *ESTIMATORS[name]) for name in args.estimators}
    reference = _prepared(args, LoadedDiCE(), LINEAR)
    modules = {name: each.module for name, each in stored.items()}
    others = _resampler(args, reference, REFERENCE, 1)
    vector = unit_gradient(reference.module, others)
    truth = sample_gradients({"": reference.module}, others, args.truth // REFERENCE, vector)[""]
    others.close()
    found: Qualities = {name: {} for name in modules}
    for size in args.sizes:
        resampler = _resampler(args, reference, size, 0)
        samples = sample_gradients(modules, resampler, args.repeats, vector)
        resampler.close()
        for name in modules:
            found[name][size] = _qualities(samples[name], truth)
    return found


def _qualities(samples: Samples, truth: Samples) -> dict[str, GradientQuality]:
    gradient, product = (gradient_quality(*pair) for pair in zip(samples.flat(), truth.flat(), strict=True))
    return {"product": product, "gradient": gradient}


def _resampler(args: argparse.Namespace, stored: StoredRun, size: int, stream: int) -> Resampler:
    sizes = [size] * (stored.datamodule.adaptation_steps + 1)
    return Resampler(stored.datamodule, args.tasks, sizes, args.seed, stream)


def _prepared(args: argparse.Namespace, surrogate: InnerSurrogate, baseline: BaselineFactory) -> StoredRun:
    """The run with another estimator, and with advantages in the units of J; a baseline that learns has learned."""
    # An optimizer of another kind or a correction would be something else than the inner estimator.
    nothing = {"class_path": f"{NoCorrection.__module__}.{NoCorrection.__qualname__}"}  # None is the class's own
    advantages = {"normalise_advantages": False, "discounted": True, "gae_lambda": 1.0}
    stored = load_run(args.checkpoint, advantages | {"correction": nothing, "inner": None, "baseline": None})
    module = stored.module.with_surrogate(surrogate)
    torch.manual_seed(args.seed)
    module.baseline = baseline.build(module.sizes)
    stored = stored._replace(module=module)
    practise(stored, args.practice, args.seed)
    return stored


def practise(stored: StoredRun, batches: int, seed: int) -> None:
    """Train a baseline that learns on ``batches`` meta-batches of other tasks, at the parameters as they are."""
    baseline, module = stored.module.baseline, stored.module
    optimizer = baseline.optimizer()
    if optimizer is None:
        return
    for batch in range(batches):
        # Tasks and streams of its own, and next to nothing of the rounds that it does not learn from.
        sizes = [PRACTICE] + [1] * stored.datamodule.adaptation_steps
        resampler = Resampler(stored.datamodule, 20, sizes, seed + 1 + batch, 2)
        (rounds,) = resampler.draw({"": module}, module.device).values()
        resampler.close()
        loss = baseline.loss(rounds[0], reward_to_go(rounds[0].reward, rounds[0].mask, module.inner.gamma))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _error(quality: GradientQuality) -> float:
    """The relative mean squared error; what noise leaves of bias² below 0 is none. NaN as both of them are."""
    return max(quality.relative_bias2.value, 0.0) + quality.relative_variance.value


def cell(quality: GradientQuality) -> str:
    """The errors in a table; ``–`` where the reference is nothing but noise."""
    if math.isnan(_error(quality)):
        return "–"
    return (
        f"{quality.relative_bias2.value:.2g} + {quality.relative_variance.value:.2g} ({quality.correlation.value:.2f})"
    )


def winners(found: Qualities, sizes: list[int]) -> str:
    """Who has the least mean squared error at the smallest and at the largest N, in a sentence."""
    said = []
    for part, title in PARTS.items():
        for size in sorted({min(sizes), max(sizes)}):
            errors = {name: _error(each[size][part]) for name, each in found.items()}
            unknown = any(map(math.isnan, errors.values()))  # of all: they have one reference
            order = "none, as the reference is nothing but noise (more --truth)" if unknown else ranking(errors)
            said.append(f"{title}, N = {size}: {order}")
    return f"By mean squared error: {'; '.join(said)}."


def ranking(errors: Mapping[str, float]) -> str:
    """Names from the least error to the largest, in words; within 1 % they are equal."""
    order = sorted(errors, key=errors.__getitem__)
    signs = [" = " if errors[b] <= 1.01 * errors[a] else " < " for a, b in pairwise(order)]
    return "".join(name + sign for name, sign in zip(order, [*signs, ""], strict=True))


def _plain(parts: Mapping[str, GradientQuality]) -> dict[str, Any]:
    return {part: {key: list(value) for key, value in quality._asdict().items()} for part, quality in parts.items()}


def draw(found: Qualities, sizes: list[int]) -> Figure:
    """bias², variance, their sum and the correlation by N, a row for each of :data:`PARTS`."""
    figure = blank_figure(15, 7)
    panels = figure.subplots(len(PARTS), 4, squeeze=False)
    titles = ("relative bias²", "relative variance", "relative mean squared error", "correlation")
    for row, (part, title) in zip(panels, PARTS.items(), strict=True):
        for name, each in found.items():
            qualities = [each[size][part] for size in sizes]
            bias2, variance, correlation = (
                [getattr(quality, key) for quality in qualities]
                for key in ("relative_bias2", "relative_variance", "correlation")
            )
            row[0].errorbar(sizes, *_bars(bias2), label=name)
            row[1].errorbar(sizes, *_bars(variance), label=name)
            row[2].plot(sizes, [_error(quality) for quality in qualities], label=name)
            row[3].errorbar(sizes, *_bars(correlation), label=name)
        for axis, what in zip(row, titles, strict=True):
            axis.set(xscale="log", xlabel="trajectories N", title=f"{title}:\n{what}")
        row[0].set_yscale("symlog", linthresh=1e-2)
        row[1].set_yscale("log")
        row[2].set_yscale("log")
    panels[0][3].legend(fontsize="small")
    return figure


def _bars(intervals: list[Any]) -> tuple[list[float], list[float]]:
    """Values and half-widths."""
    return [each.value for each in intervals], [(each.high - each.low) / 2 for each in intervals]
