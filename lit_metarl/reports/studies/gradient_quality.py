"""``lit-metarl study gradient_quality``: bias and variance of meta-gradients at the parameters of checkpoints.

Fig. 2 of Liu et al. 2019, with the tasks fixed: the same meta-batches are drawn again and again for every estimator.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_metarl.algorithms import MetaPolicyGradient
from lit_metarl.callbacks.gradients import Resampling, measure_quality
from lit_metarl.checkpoint import read_checkpoint
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.estimators import TMAML, DiCE, InnerSurrogate, LikelihoodRatio, LoadedDiCE, LogLikelihood, TayPO
from lit_metarl.reports.arguments import at_least, positive, seed, writable_file
from lit_metarl.reports.section import ReportError, Section, markdown_table

OWN = "own"
ESTIMATORS: dict[str, InnerSurrogate] = {
    "dice": DiCE(),
    "loaded_dice": LoadedDiCE(),
    "lvc": LikelihoodRatio(),
    "log_likelihood": LogLikelihood(),
    "tmaml": TMAML(),
    "taypo2": TayPO(order=2),
}
COLUMNS = {
    "relative_bias2": "bias²",
    "relative_variance": "variance",
    "cosine": "cosine",
    "correlation": "correlation",
}


class StoredRun(NamedTuple):
    """A module at the parameters of a checkpoint, and the data that it was trained on."""

    module: MetaPolicyGradient
    datamodule: TrajectoryDataModule
    epoch: int


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study gradient_quality``."""
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+", help="files of runs of the MAML family")
    add(
        "--estimators", nargs="+", choices=(OWN, *ESTIMATORS), default=[OWN], help="of inner surrogates; own: the run's"
    )
    add("--tasks", type=positive, default=10, help="B, the same in every meta-batch")
    variance = at_least(2, "a variance needs two")
    add("--resamples", type=variance, default=30, help="R meta-batches for every estimator")
    add("--reference", type=variance, default=100, help="Q meta-batches of the reference, Loaded DiCE")
    add("--trajectories", type=positive, help="N of the inner rounds; the run's if not given")
    add("--outer-trajectories", type=positive, help="N of the last round; many leave the noise of the Hessian alone")
    add("--seed", type=seed, default=0, help="of tasks, simulators and actions")
    add("--json", metavar="FILE", type=writable_file, help="all numbers, with their intervals")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The quality of every estimator at every checkpoint.

    Raises:
        ReportError: a file is no checkpoint of a run of the family.
    """
    from lit_metarl.cli import quieten

    quieten()
    sizes = args.trajectories, args.outer_trajectories
    resampling = Resampling(args.tasks, args.resamples, args.reference, *sizes, args.seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    lines = []
    for path in args.checkpoints:
        stored = load_run(path)
        own, label = stored.module, f"{path} (epoch {stored.epoch})"
        modules = {name: own if name == OWN else own.with_surrogate(ESTIMATORS[name]) for name in args.estimators}
        measured = measure_quality(modules, own.with_surrogate(LoadedDiCE()), stored.datamodule, resampling)
        found[label] = {name: measured.metrics(name) for name in modules}
        for name, metrics in found[label].items():
            shown = f"{OWN}, {type(own).__name__}" if name == OWN else name
            lines.append([label, shown, *_cells(metrics, "gradient"), *_cells(metrics, "hessian_vector")])
    head = ["checkpoint", "estimator", *COLUMNS.values(), *(f"Hv: {title}" for title in COLUMNS.values())]
    note = f"""\
{args.tasks} fixed tasks, {args.resamples} meta-batches that are the same for all estimators, seed {args.seed}; bias² \
and variance of the mean over tasks, over the squared norm of the truth, with half the width of their 95 % intervals \
over meta-batches. Truth: Loaded DiCE's mean over {args.reference} other meta-batches, unbiased for the Hessian of the \
advantages as the run has them. Where another estimator has another expectation, the difference counts as \
bias here: DiCE and TMAML have weights γ^t and whole returns also without model.discounted and gae_lambda 1, and DiCE \
adapts without a baseline. Hv: the inner Hessian times one fixed vector, the direction of a meta-gradient."""
    return Section(markdown_table(head, lines), [note], data=found)


def _cells(metrics: Mapping[str, float], part: str) -> list[str]:
    cells = []
    for key in (f"{part}/{key}" for key in COLUMNS):
        known = {key, f"{key}_high", f"{key}_low"} <= metrics.keys()  # not where the reference is nothing but noise
        half = (metrics[f"{key}_high"] - metrics[f"{key}_low"]) / 2 if known else 0.0
        cells.append(f"{metrics[key]:.3g} ± {half:.2g}" if known else "–")
    return cells


def load_run(path: Path, changes: Mapping[str, Any] | None = None) -> StoredRun:
    """Module and data of a checkpoint, built from the config in it.

    Args:
        path: of the checkpoint.
        changes: settings of the model instead of the run's; of another baseline nothing is loaded.

    Raises:
        CheckpointError: no checkpoint.
        ReportError: one of another kind of run, or of classes that cannot be built here.
    """
    checkpoint = read_checkpoint(path)
    config: dict[str, Any] = yaml.safe_load(checkpoint.get("run", {}).get("config", "{}"))
    if not {"data", "model"} <= config.keys():
        raise ReportError(f"{path} holds no config; it was not written by `lit-metarl fit`.")
    module, datamodule = build_run(str(path), config, changes)
    saved = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
    if "baseline" in (changes or {}):
        saved = {name: value for name, value in saved.items() if not name.startswith("baseline.")}
    module.load_state_dict(saved)
    return StoredRun(module, datamodule, checkpoint["epoch"])


def build_run(
    source: str, config: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> tuple[MetaPolicyGradient, TrajectoryDataModule]:
    """Module and data that a complete config of ``fit`` describes, as they are before training.

    Args:
        source: of the config, for errors.
        config: at least ``data`` and ``model``.
        changes: settings of the model instead of the config's.

    Raises:
        ReportError: the config is of another kind of run, or of classes that cannot be built here.
    """
    datamodule = _build(source, "data", TrajectoryDataModule, config["data"])
    told = {key: getattr(datamodule, key) for key in ("obs_dim", "action_dim", "num_actions", "context_dim")}
    given: dict[str, Any] = config["model"].get("init_args") or {}
    settings = {**given, **told, "action_scale": datamodule.action_scale, **(changes or {})}
    return _build(source, "model", MetaPolicyGradient, config["model"] | {"init_args": settings}), datamodule


def _build(source: str, key: str, base: type, settings: Mapping[str, Any]) -> Any:
    """The object that a config describes under ``key``, of class ``base``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, fail_untyped=False, required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({key: dict(settings)}))[key]
    except ArgumentError as error:
        what = f"{source} is of a run with another {key}, {settings.get('class_path')}; this measures {base.__name__}"
        raise ReportError(f"{what}: {str(error).strip().splitlines()[-1]}") from error
