"""``lit-metarl report``, ``compare``, ``study`` and ``benchmark``: from the command line to a section that is shown."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from lit_metarl.reports.section import ReportError, Section, markers, split_at, write_block


class Report(Protocol):
    """Interface of every module that :data:`COMMANDS` names."""

    def parse(self, parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
        """Add the command's own arguments to ``parser`` and read ``words``; bad values exit with code 2."""

    def run(self, args: argparse.Namespace) -> Section:
        """The section that ``args`` ask for; a ReportError, or another error of bad input, says why there is none."""


class Command(NamedTuple):
    """A command that makes a section.

    Attributes:
        module: in this package.
        block: of a document, where the section belongs.
        description: one line.
    """

    module: str
    block: str
    description: str


COMMANDS = {
    "report": Command("tables.results", "results", "Results table of the runs in the store, or the page of a recipe."),
    "compare": Command("tables.comparison", "comparison", "Compare two experiments, or two arms of a recipe."),
    "study baseline_bias": Command(
        "studies.baseline_bias", "baseline-bias", "Bias that its baseline gives a checkpoint's meta-gradient."
    ),
    "study critic_gradient": Command(
        "studies.critic_gradient", "critic-gradient", "Whether critics' action gradients lead where returns rise."
    ),
    "study critic_gradient_curves": Command(
        "studies.critic_gradient_curves",
        "critic-gradient-curves",
        "Cosine of critics' gradients in training (needs CriticGradientMonitor).",
    ),
    "study control_variates": Command(
        "studies.control_variates", "control-variates", "Exact bias and variance of action-dependent control variates."
    ),
    "study estimators": Command(
        "studies.estimators", "estimators", "Exact bias and variance of estimated gradients and Hessians."
    ),
    "study gradient_quality": Command(
        "studies.gradient_quality", "gradient-quality", "Bias and variance of meta-gradients of trained checkpoints."
    ),
    "study gradient_samples": Command(
        "studies.gradient_samples", "gradient-samples", "Errors of meta-gradients by number of trajectories (TMAML)."
    ),
    "study inner_steps": Command(
        "studies.inner_steps", "inner-steps", "How far the adaptation steps of a recipe's arms move their policies."
    ),
    "study meta_gradient": Command(
        "studies.meta_gradient", "meta-gradient", "Exact bias and variance of estimated meta-gradients."
    ),
    "study ntk": Command("studies.ntk", "ntk", "Tangent kernel of the critics over training (needs NTKMonitor)."),
    "study preconditioning": Command(
        "studies.preconditioning", "preconditioning", "Meta-updates and the tangent kernel of SAC's critics."
    ),
    "study tabular": Command(
        "studies.tabular", "tabular", "Accuracy of off-policy estimates in random MDPs (Fig. 1 of Tang et al. 2021)."
    ),
    "study updated_returns": Command(
        "studies.updated_returns", "updated-returns", "Returns after one outer update of a checkpoint, many times."
    ),
    "benchmark": Command(
        "benchmarks.sac",
        "benchmark",
        "Time SAC's training; or, as first argument, `critics`, `meta`, `pearl`, `peers` or `trpo`.",
    ),
    "benchmark critics": Command(
        "benchmarks.critics", "critics-benchmark", "Time SAC's update with every critic, relative to an MLP."
    ),
    "benchmark peers": Command(
        "benchmarks.peers", "peers-benchmark", "Time training SAC and TD3 beside stable-baselines3, where installed."
    ),
    "benchmark meta": Command(
        "benchmarks.meta", "meta-benchmark", "Time meta-iterations on a robot that runs forward or backward."
    ),
    "benchmark trpo": Command(
        "benchmarks.trpo", "trpo-benchmark", "Time MAML-TRPO beside a plain implementation of the same step."
    ),
    "benchmark pearl": Command(
        "benchmarks.pearl", "pearl-benchmark", "Time PEARL's update, part by part, and its collection."
    ),
}


def parse(words: list[str]) -> tuple[Report, argparse.Namespace]:
    """The module and the settings that ``words`` name; exits with code 2 if they cannot be, 0 after ``--help``."""
    name = _name(words)
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(f"lit-metarl {name}", description=command.description)
    parser.add_argument(
        "--write", metavar="FILE", help=f"put the table between {' and '.join(markers('NAME'))} of FILE"
    )
    parser.add_argument("--block", default=command.block, metavar="NAME", help="of these markers (%(default)s)")
    report = cast(Report, import_module(f"lit_metarl.reports.{command.module}"))
    return report, report.parse(parser, words[len(name.split()) :])


def _name(words: list[str]) -> str:
    """The key of :data:`COMMANDS` that ``words`` begin with."""
    if words[0] != "study":
        both = " ".join(words[:2])
        return both if both in COMMANDS else words[0]
    studies = {key.split()[1]: command for key, command in COMMANDS.items() if key.startswith("study ")}
    lines = "\n".join(f"  {name:<24}{study.description}" for name, study in studies.items())
    parser = argparse.ArgumentParser(
        "lit-metarl study",
        description=f"Measure a method.\n\nstudies:\n{lines}\n\n`lit-metarl study NAME --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=studies, help="which study")
    return f"study {parser.parse_args(words[1:2]).name}"


def main(words: list[str]) -> int:
    """Run the command that ``words`` begin with; returns the exit code (2 for bad input)."""
    report, args = parse(words)
    from lit_metarl.checkpoint import CheckpointError
    from lit_metarl.envs.base import EnvError
    from lit_metarl.tracking import TrackingError
    from lit_metarl.types import ConfigError, DivergenceError

    try:
        if args.write:
            split_at(args.write, args.block)  # a file without the block is to be known before hours of work, not after
        show(report.run(args), args)
    except (ReportError, CheckpointError, ConfigError, DivergenceError, EnvError, TrackingError) as error:
        sys.stderr.write(f"lit-metarl: error: {error}\n")
        return 2
    return 0


def show(section: Section, args: argparse.Namespace) -> None:
    """Print ``section``, save its figures, and write it into the files that ``args`` name.

    Raises:
        ReportError: a file cannot be written.
    """
    sys.stdout.write(section.text)
    try:
        for path, text in section.files.items():
            path.write_text(text, encoding="utf-8")
            sys.stderr.write(f"{path}\n")
        for path, figure in section.figures.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
            sys.stderr.write(f"{path}\n")
        if section.data is not None and args.json:
            args.json.write_text(section.json, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"Cannot write {error.filename}: {error.strerror}.") from error
    if args.write:
        write_block(args.write, args.block, section.markdown)
