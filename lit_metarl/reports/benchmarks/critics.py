"""``lit-metarl benchmark critics``: the time of SAC's update with every critic, relative to that with an MLP 2 × 256.

And, for SA-Hyper, relative to a plain implementation of the same update. Machines are noisy, so all updates alternate
in one process, what counts is its CPU time, and ratios are taken within a round. On a GPU what counts is the time
until it has nothing left to do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_metarl.reports.arguments import positive, writable_file
from lit_metarl.reports.benchmarks.timing import is_busy, spread, verdict
from lit_metarl.reports.section import Section

if TYPE_CHECKING:
    from lit_metarl.nn import CriticFactory

REFERENCE, SHARED, NAIVE = "mlp_standard", "sa_hyper, shared weights", "sa_hyper, plain implementation"
NAMES = (
    REFERENCE,
    "mlp_small",
    "mlp_large",
    "q_d2rl",
    "res35",
    "resnet_features",
    "random_hyper",
    "as_hyper",
    "sa_hyper",
)
GOAL = 0.66  # of the plain implementation, at the published size
WARM_UP = 5  # updates that are not timed: CUDA graphs are captured in the fourth
SMALL_GOAL = 8.0  # of the reference, for what two cores are to train


@dataclass(frozen=True)
class Row:
    """One critic.

    Attributes:
        name: of the critic.
        parameters: of one member.
        mebibytes: of what an update of the critics holds: parameters, gradients, two moments, targets.
        seconds: of its update, by round: CPU time, or on a GPU the time that passed.
    """

    name: str
    parameters: int
    mebibytes: float
    seconds: list[float]


def factories(size: str) -> dict[str, CriticFactory]:
    """Critics by name, as ``configs/critic`` has them; networks that are small anyway do not depend on ``size``."""
    from lit_metarl.nn import D2RLCritic, EnsembleCriticMLP, HyperCritic, ResNetCritic, ResNetFeatures

    small = size == "small"
    widths = [64, 128] if small else [256, 512, 1024]
    hyper: dict[str, Any] = {"widths": widths, "hidden": [128] if small else [256]}
    return {
        "mlp_standard": EnsembleCriticMLP([256, 256], initialisation="glorot"),
        "mlp_small": EnsembleCriticMLP([256], initialisation="glorot"),
        "mlp_large": EnsembleCriticMLP([2900, 2900], initialisation="glorot"),
        "q_d2rl": D2RLCritic([256] * 4),
        "res35": ResNetCritic(256, 35),
        "resnet_features": ResNetFeatures(widths, hidden=[256]),
        "random_hyper": HyperCritic([], ["obs", "action"], embedding=5, **hyper),
        "as_hyper": HyperCritic(["action"], ["obs"], **hyper),
        "sa_hyper": HyperCritic(["obs"], ["action"], **hyper),
    }


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark critics``."""
    add = parser.add_argument
    add("--size", choices=("published", "small"), default="small", help="of hypernetworks (default: %(default)s)")
    add("--critics", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    add("--obs", type=positive, default=17, help="length of an observation; half-cheetah's by default")
    add("--action", type=positive, default=6, help="length of an action; likewise")
    add("--batch-size", type=positive, default=256, help="transitions of one update")
    add("--rounds", type=positive, default=7, help="updates of each that are timed, after some that are not")
    add("--threads", type=positive, default=1, help="of torch; more spin (default: %(default)s)")
    add("--accelerator", choices=("cpu", "cuda"), default="cpu", help="where the networks are (default: %(default)s)")
    add("--bf16", action="store_true", help="matrix products in bf16, as with trainer.precision bf16-mixed")
    add("--json", type=writable_file, metavar="FILE", help="also write the numbers there")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Update times of the critics; raises ``ReportError`` without the device that they are asked for."""
    from lit_metarl.reports.benchmarks.training import describe, quiet_threads, require_device

    require_device(args.accelerator)
    with quiet_threads(args.threads):
        described = describe(args)
        rows = measure(args)
    data = described | {"critics": {row.name: vars(row) for row in rows}}
    return Section(table_of(described, rows), data=data, preformatted=True)


def measure(args: argparse.Namespace) -> list[Row]:
    """Every critic's row; updates of all alternate."""
    import torch

    from lit_metarl.reports.benchmarks.training import noise

    updates: dict[str, Callable[[Any], object]] = {}
    counts: dict[str, tuple[int, float]] = {}
    for name in dict.fromkeys([REFERENCE, *args.critics]):
        sac = _sac(args, name)
        count = sum(p.numel() for p in sac.critic.parameters())
        counts[name] = count // sac.critic.members, 5 * 4 * count / 2**20
        updates[name] = sac.update
    if "sa_hyper" in args.critics:
        from lit_metarl.reports.benchmarks.naive_hyper import naive_hyper_sac

        updates[SHARED] = _sac(args, "sa_hyper", share_weights=True).update
        updates[NAIVE] = naive_hyper_sac(_sac(args, "sa_hyper")).update
        counts |= dict.fromkeys((SHARED, NAIVE), counts["sa_hyper"])
    if args.accelerator == "cuda":
        for name in [name for name in counts if name not in (SHARED, NAIVE)]:
            updates[f"{name}, graphs"] = _sac(args, name, cuda_graphs=True).update
            counts[f"{name}, graphs"] = counts[name]
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    batch = noise((args.batch_size,), args.obs, args.action, torch.Generator().manual_seed(0))
    batch = type(batch)(*(field.to(args.accelerator) for field in batch))
    clock = time.process_time if args.accelerator == "cpu" else _when_done
    for _ in range(args.rounds + WARM_UP):
        for name, update in updates.items():
            began = clock()
            with torch.autocast(args.accelerator, torch.bfloat16, enabled=args.bf16, cache_enabled=False):
                update(batch)
            seconds[name].append(clock() - began)
    return [Row(name, *counts[name], seconds[name][WARM_UP:]) for name in updates]


def _when_done() -> float:
    """Time when the GPU has nothing left to do."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def _sac(args: argparse.Namespace, name: str, **settings: Any) -> Any:
    """SAC without a Trainer."""
    import torch

    from lit_metarl.algorithms import SAC

    torch.manual_seed(0)
    sac: Any = SAC(args.obs, args.action, critic=factories(args.size)[name], **settings).to(args.accelerator)
    optimizers = sac.configure_optimizers()
    sac.optimizers = lambda: optimizers
    return sac


def table_of(described: dict[str, Any], rows: list[Row]) -> str:
    """Lines of fixed width with the rows, each with its ratio to the reference."""
    settings, machine = described["settings"], described["machine"]
    on_cpu = settings["accelerator"] == "cpu"
    reference = next(row for row in rows if row.name == REFERENCE)
    lines = [
        f"SAC's update, {settings['obs']} observations, {settings['action']} actions, batch {settings['batch_size']}, "
        f"two critics, actor 256-256 · hypernetworks of size {settings['size']}",
        f"{machine['device']} · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"{'CPU time' if on_cpu else 'time until done'}{', bf16' if settings['bf16'] else ''}, "
        f"medians of {settings['rounds']} rounds",
    ]
    if on_cpu and is_busy(machine):
        lines.append("others use the CPUs: the times are somewhat too long")
    lines += ["", f"{'critic':<31}{'parameters of one':>19}{'MiB of both':>13}{'ms':>10}   relative to {REFERENCE}"]
    for row in rows:
        ratio = spread(own / other for own, other in zip(row.seconds, reference.seconds, strict=True))
        lines.append(
            f"{row.name:<31}{row.parameters:>19,}{row.mebibytes:>13.1f}{1e3 * spread(row.seconds).median:>10.2f}"
            f"   {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        )
    by_name = {row.name: row.seconds for row in rows}
    lines += _small_goal(by_name) if settings["size"] == "small" and on_cpu else []
    if NAIVE in by_name:
        pairs = zip(by_name["sa_hyper"], by_name[NAIVE], strict=True)
        ratio = spread(own / plain for own, plain in pairs)
        goal = f"; goal ≤ {GOAL}: {verdict(ratio.median <= GOAL)}" if settings["size"] == "published" else ""
        lines += [
            "",
            f"sa_hyper to its plain implementation: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}){goal}",
        ]
    return "\n".join([*lines, "MiB: parameters, gradients, two moments of Adam and targets of the critics."])


def _small_goal(seconds: dict[str, list[float]]) -> list[str]:
    """Whether what is made small is small enough."""
    ours = [name for name in (*NAMES, SHARED) if name in seconds and ("hyper" in name or "features" in name)]
    if not ours:
        return []
    ratios = {name: spread(a / b for a, b in zip(seconds[name], seconds[REFERENCE], strict=True)) for name in ours}
    slowest = max(ours, key=lambda name: ratios[name].median)
    worst = ratios[slowest].median
    reached = verdict(worst <= SMALL_GOAL)
    return ["", f"slowest of the small ones: {worst:.2f} ({slowest}); goal ≤ {SMALL_GOAL:g}: {reached}"]
