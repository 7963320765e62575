"""``lit-metarl study preconditioning``: what meta-updates do to a critic's tangent kernel, objective by objective.

Every objective × derivative starts from the same critics and sees the same minibatches of a random policy's
transitions; the kernel is measured, exactly, on one batch that is in none of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_metarl.diagnostics.kernels import JVP, Exact, FiniteDifference, KernelEstimate, Layerwise, exact_kernel
from lit_metarl.diagnostics.ntk import effective_rank, ntk_ratio
from lit_metarl.losses.preconditioning import (
    Contraction,
    Eq10,
    Eq14Printed,
    LogCosine,
    LogRatio,
    MetaObjective,
    SarsaBatch,
    meta_gradient,
)
from lit_metarl.reports.arguments import at_least, blame, positive, seed
from lit_metarl.reports.section import Section, markdown_table
from lit_metarl.types import Transition

DERIVATIVES: dict[str, KernelEstimate] = {
    "layerwise": Layerwise(),
    "exact": Exact(),
    "jvp": JVP(),
    "finite_difference": FiniteDifference(),
}
OBJECTIVES: dict[str, tuple[Callable[[Any], MetaObjective], float]] = {  # name → how to build it, its β
    "log_cosine": (LogCosine, 0.02),
    "log_ratio": (LogRatio, 0.02),
    "contraction": (Contraction, 1e-3),
    "eq10": (Eq10, 1e-4),
    "eq14_printed": (Eq14Printed, 1e-8),
}
GAMMA, BELLMAN_LR = 0.99, 1e-4


class Kernel(NamedTuple):
    """Readings of one critic's kernel on the fixed batch, means over the members."""

    ratio: float
    diagonal: float
    median_diagonal: float
    effective_rank: float


@dataclass(frozen=True)
class Outcome:
    """State of the critics after meta-updates, and their cost.

    Attributes:
        objective: its name.
        derivative: its name.
        meta_lr: β.
        updates: meta-updates after which everything was finite.
        kernel: after the last of them.
        seconds: median of a meta-update.
        sac_seconds: median of the updates of SAC made between them.
    """

    objective: str
    derivative: str
    meta_lr: float
    updates: int
    kernel: Kernel
    seconds: float
    sac_seconds: float


class World(NamedTuple):
    """Critic and data that all outcomes share."""

    critic: nn.Module
    transitions: Transition  # [n, ...] of the random policy
    obs: Tensor  # [M, O] of the fixed batch
    action: Tensor  # [M, A]


def measure_kernel(world: World) -> Kernel:
    """The kernel of ``world.critic`` now."""
    kernel = exact_kernel(world.critic, dict(world.critic.named_parameters()), world.obs, world.action)
    diagonal = kernel.diagonal(dim1=-2, dim2=-1)
    values = ntk_ratio(kernel), diagonal.mean(-1), diagonal.median(-1).values, effective_rank(kernel)
    return Kernel(*(float(value.mean()) for value in values))


def minibatches(world: World, updates: int, batch_size: int, seed: int) -> list[SarsaBatch]:
    """Minibatches for every objective alike; next actions are fresh draws of the random policy."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(updates):
        rows = torch.randint(len(world.transitions.reward), (batch_size,), generator=generator)
        chosen = Transition(*(values[rows] for values in world.transitions))
        next_action = 2.0 * torch.rand(chosen.action.shape, generator=generator) - 1.0
        batches.append(
            SarsaBatch(chosen.obs, chosen.action, chosen.reward, chosen.discount, chosen.next_obs, next_action)
        )
    return batches


def precondition(
    world: World,
    objective: MetaObjective,
    meta_lr: float,
    batches: list[SarsaBatch],
    seed: int,
    update_sac: Callable[[SarsaBatch], object],
) -> tuple[int, float, float]:
    """Move ``world.critic`` by one meta-update per batch, up to the last that leaves everything finite.

    ``update_sac`` is timed after each of the first 50, so that both are slow or fast together.

    Returns:
        The number of meta-updates, and the median seconds of one and of ``update_sac``.
    """
    parameters, generator = dict(world.critic.named_parameters()), torch.Generator().manual_seed(seed)
    seconds: list[float] = []
    sac_seconds: list[float] = []
    for number, batch in enumerate(batches):
        began = time.perf_counter()
        params = {name: value.detach() for name, value in parameters.items()}
        meta = meta_gradient(world.critic, params, batch, objective, generator, GAMMA, BELLMAN_LR)
        moved = {name: value - meta_lr * meta.gradient[name] for name, value in params.items()}
        finite = all(bool(torch.isfinite(value).all()) for value in moved.values())
        with torch.no_grad():
            for name, value in moved.items() if finite else ():
                parameters[name].copy_(value)
        seconds.append(time.perf_counter() - began)
        if number < 50:
            began = time.perf_counter()
            update_sac(batch)
            sac_seconds.append(time.perf_counter() - began)
        if not finite:
            return number, median(seconds), median(sac_seconds)
    return len(batches), median(seconds), median(sac_seconds)


def sac_update(module: Any) -> Callable[[SarsaBatch], object]:
    """An update of SAC on the same transitions, without a Trainer."""
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers

    def update(batch: SarsaBatch) -> None:
        ended = batch.discount == 0
        module.update(Transition(batch.obs, batch.action, batch.reward, batch.next_obs, ended, torch.zeros_like(ended)))

    return update


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study preconditioning``."""
    add = parser.add_argument
    add("--task", default="cheetah/run", help="of dm_control")
    add("--hidden", type=positive, nargs="+", default=[256, 256], help="widths of the critics")
    add("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    add("--derivatives", nargs="+", choices=DERIVATIVES, default=list(DERIVATIVES))
    add("--updates", type=positive, default=300, help="meta-updates")
    kernel = at_least(2, "a kernel of one sample has no off-diagonal")
    add("--batch-size", type=kernel, default=256, help="transitions of one")
    add("--transitions", type=positive, default=5000, help="that minibatches are drawn from")
    add("--samples", type=kernel, default=128, help="of the batch that the kernel is measured on")
    add("--meta-lr", type=float, help="β of every objective; each has its own if not given")
    add("--seed", type=seed, default=0)
    args = parser.parse_args(words)
    if args.meta_lr is not None and not args.meta_lr > 0:
        parser.error("argument --meta-lr: it has to be positive")
    return args


def run(args: argparse.Namespace) -> Section:
    """The kernel before meta-updates and after those of every objective and derivative.

    Raises:
        ReportError, EnvError: there is no such task.
    """
    from lit_metarl.cli import quieten

    quieten()
    before, outcomes = study(args)
    hidden = "-".join(map(str, args.hidden))
    sac = median(outcome.sac_seconds for outcome in outcomes)
    note = (
        f"Two critics with hidden layers {hidden} on {args.task} (dm_control), seed {args.seed}, means over both; "
        f"minibatches of {args.batch_size} out of {args.transitions:,} random transitions; kernel of {args.samples} "
        "other random samples. Ratio: mean diagonal over mean absolute off-diagonal element. Effective rank: at most "
        f"{args.samples}. Time: relative to updates of SAC with networks and minibatches of the same size, made "
        f"between them, {1e3 * sac:.0f} ms with {torch.get_num_threads()} threads."
    )
    return Section(table_of(before, outcomes, args.updates), [note])


def study(args: argparse.Namespace) -> tuple[Kernel, list[Outcome]]:
    """The kernel at the start, and every outcome."""
    from lit_metarl.algorithms import SAC
    from lit_metarl.callbacks.ntk import random_inputs
    from lit_metarl.envs.suite import DMControl
    from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP

    factory = DMControl(args.task)
    with blame("--task"):
        obs, action = random_inputs(factory, args.samples, spacing=7, seed=args.seed)
    torch.manual_seed(args.seed)
    module = SAC(
        obs.shape[1], action.shape[1], actor=TanhGaussianMLP(args.hidden), critic=EnsembleCriticMLP(args.hidden)
    )
    world = World(module.critic, random_transitions(factory, args.transitions, args.seed + 1), obs, action)
    start = {name: value.clone() for name, value in module.critic.state_dict().items()}
    before, update_sac = measure_kernel(world), sac_update(deepcopy(module))
    batches = minibatches(world, args.updates, args.batch_size, args.seed)
    outcomes = []
    for name in args.objectives:
        build, own_lr = OBJECTIVES[name]
        for derivative in args.derivatives:
            if name == "eq14_printed" and derivative in ("layerwise", "exact"):
                continue  # it is made of products with random directions, not of a kernel
            module.critic.load_state_dict(start)
            lr = args.meta_lr or own_lr
            objective = build(DERIVATIVES[derivative])
            updates, *times = precondition(world, objective, lr, batches, args.seed, update_sac)
            outcomes.append(Outcome(name, derivative, lr, updates, measure_kernel(world), *times))
    return before, outcomes


def random_transitions(factory: Any, number: int, seed: int) -> Transition:
    """``number`` transitions ``[n, ...]`` of a uniformly random policy."""
    from lit_metarl.data.collector import Collector

    collector, generator = Collector(factory.make(1, seed)), torch.Generator().manual_seed(seed)
    shape = (1, collector.env.spec.action_dim)
    steps = [collector.step(lambda obs: 2.0 * torch.rand(shape, generator=generator) - 1.0) for _ in range(number)]
    collector.env.close()
    return Transition(*(torch.cat([value.clone() for value in values]) for values in zip(*steps, strict=True)))


def table_of(before: Kernel, outcomes: list[Outcome], updates: int) -> str:
    """A line for the critics before, and one for every outcome of ``updates`` meta-updates."""
    lines = [["before", "–", "–", "0", *_cells(before), "–"]]
    for o in outcomes:
        done = str(o.updates) if o.updates == updates else f"not finite after {o.updates}"
        cost = f"{o.seconds / o.sac_seconds:.1f} ×"
        lines.append([f"`{o.objective}`", f"`{o.derivative}`", f"{o.meta_lr:g}", done, *_cells(o.kernel), cost])
    kernel = ("ratio", "mean diagonal", "median diagonal", "effective rank")
    return markdown_table(["objective", "derivative", "β", "meta-updates", *kernel, "time of an update"], lines)


def _cells(kernel: Kernel) -> tuple[str, ...]:
    mean, middle = f"{kernel.diagonal:.3g}", f"{kernel.median_diagonal:.3g}"
    return f"{kernel.ratio:.2f}", mean, middle, f"{kernel.effective_rank:.1f}"
