"""``lit-metarl study inner_steps``: how far the adaptation steps of a recipe's arms move their untrained policies.

A step size means different things to different networks. What adaptation is worth can be compared at steps that are
equally long in function space: :mod:`lit_metarl.optim.step_size`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning import seed_everything

from lit_metarl.algorithms import MetaPolicyGradient
from lit_metarl.algorithms.meta_policy_gradient import POLICY, below
from lit_metarl.optim.step_size import matched_step_size, step_kl
from lit_metarl.reports.arguments import writable_file
from lit_metarl.reports.section import ReportError, Section, markdown_table
from lit_metarl.reports.studies.gradient_quality import build_run
from lit_metarl.reports.tables.arms import names_of
from lit_metarl.sweep.cells import Cell, make_cells
from lit_metarl.sweep.recipe import load_recipe
from lit_metarl.types import Trajectories


class Step(NamedTuple):
    """The first adaptation step of a run.

    Attributes:
        arm: of the recipe, with its place in the grid.
        environment: ``suite/task``.
        inner_lr: its size.
        kl: mean KL(π_θ ‖ π_θ') of it in nats, over the steps of all tasks.
        matched: size of the step that has the KL asked for.
    """

    arm: str
    environment: str
    inner_lr: float
    kl: float
    matched: float


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study inner_steps``."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE", type=Path, help="yaml file whose arms are of the MAML family")
    add("--kl", type=_nats, default=0.1, help="that a step is to have, in nats (%(default)s)")
    add("--json", metavar="FILE", type=writable_file, help="the steps of every seed")
    return parser.parse_args(words)


def _nats(text: str) -> float:
    value = float(text)  # argparse names the option if this raises
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of nats")
    return value


def run(args: argparse.Namespace) -> Section:
    """The length of the first adaptation step of every arm, and the size of the step that has a given length.

    Raises:
        ConfigError: there is no such recipe, or no step is that long.
        ReportError: an arm is of another family.
    """
    from lit_metarl.cli import Resolver, quieten

    quieten()
    recipe = load_recipe(args.recipe)
    found: dict[str, dict[str, Step]] = {}
    for cell in make_cells(recipe, Resolver()):
        found.setdefault(cell.arm, {})[str(cell.seed)] = measure(cell, args.kl)
    names = names_of([step for steps in found.values() for step in steps.values()], recipe.labels())
    lines = []
    for arm, steps in found.items():
        _, environments, *numbers = zip(*steps.values(), strict=True)
        name, task = names[arm]
        lines.append([f"`{name}`", f"{environments[0]} {task}".rstrip(), *map(_range, numbers)])
    note = f"""\
The first adaptation step of a run, before training, on the run's own first meta-batch: mean KL divergence of the \
policy after it from the one before it, in nats, and the smallest step size whose divergence is {args.kl:g}. From the \
lowest to the highest of {len(recipe.seeds)} seeds."""
    data = {arm: {seed: step._asdict() for seed, step in steps.items()} for arm, steps in found.items()}
    head = ["arm", "environment", "`model.inner_lr`", "KL", f"step size of KL {args.kl:g}"]
    return Section(markdown_table(head, lines, numbers=True), [note], data=data)


def measure(cell: Cell, kl: float) -> Step:
    """The first adaptation step of a run, and the size of one that moves its policy by ``kl``.

    Args:
        cell: of a recipe, the run.
        kl: mean KL divergence in nats.

    Raises:
        ConfigError: no step is that long.
        ReportError: the run is of another family, or does not adapt.
    """
    module, data, environment = begin(str(cell), cell.config)
    before = module.before_adaptation(data.context)
    params, signals = below(POLICY, before), module.process(data, before)
    sizes = module.split({name: value.detach() for name, value in module.meta_parameters().items()})[1]
    matched = matched_step_size(module.inner, params, module.adapted_parameters, data, signals, kl)
    moved = float(step_kl(module.inner, params, sizes, data, signals))
    return Step(cell.arm, environment, module.inner_lr, moved, matched)


def begin(source: str, config: dict[str, Any]) -> tuple[MetaPolicyGradient, Trajectories, str]:
    """The untrained module of a run, the first round that it collects, and the name of its environment.

    Args:
        source: of the config, for errors.
        config: complete, as ``fit`` takes it.

    Raises:
        ReportError: the run is of another family, or does not adapt.
    """
    seed = seed_everything(config["seed_everything"], verbose=False)
    data = config["data"] | {"init_args": config["data"]["init_args"] | {"seed": seed}}  # which the command line links
    module, datamodule = build_run(source, config | {"data": data})
    if not datamodule.adaptation_steps:
        raise ReportError(f"{source} has data.adaptation_steps 0: it takes no step that could be measured.")
    datamodule.bind(module)
    datamodule.setup("fit")
    first = datamodule.next_batch().rounds[0]
    datamodule.teardown("fit")
    return module, first, datamodule.spec.name


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.2g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
