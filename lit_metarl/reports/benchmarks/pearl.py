"""``lit-metarl benchmark pearl``: the time of PEARL's update by part, relative to a plain implementation; collection.

Machines are noisy, so all updates alternate in one process, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_metarl.reports.arguments import positive, writable_file
from lit_metarl.reports.benchmarks.timing import Clock, is_busy, spread, typical
from lit_metarl.reports.section import Section

if TYPE_CHECKING:
    from lit_metarl.types import TaskMinibatch

PLAIN, RELEASED, TWO_CRITICS, HYPER = "plain implementation", "PEARL", "PEARL, two critics", "Hyper-PEARL"
PARTS = {  # of an update → their content
    "encoder": "forwards",
    "policy": "forwards",
    "critics": "forwards",
    "value": "forwards, targets included",
    "backwards": "all gradients",
    "Adam": "of all networks",
    "targets": "the slow copy",
    "rest": "draws, losses, products of Gaussians",
}
OBS, ACTION = 20, 6  # half-cheetah at a velocity


class Size(NamedTuple):
    """Networks and minibatch of an update: ``B`` tasks, ``M`` transitions and a context of ``C`` for each."""

    hidden: list[int]
    encoder: list[int]
    dynamic: list[int]
    widths: list[int]
    blocks: int
    tasks: int
    batch: int
    context: int
    large: bool = False


SIZES = {  # of configs/experiment/half_cheetah_velocity_pearl.yaml, and of …_hyper_pearl.yaml
    "published": Size([300] * 3, [200] * 3, [256], [256, 512, 1024], 2, 16, 256, 100, large=True),
    "small": Size([128] * 2, [64] * 2, [64], [64, 64], 1, 4, 128, 100),
}


class Times(NamedTuple):
    """Seconds of one size's updates, by round, and of the parts of PEARL's in the round of the median time."""

    updates: dict[str, list[float]]
    parts: dict[str, float]


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark pearl``."""
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="(default: both)")
    add("--updates", nargs="+", choices=(RELEASED, TWO_CRITICS, HYPER), default=[RELEASED, TWO_CRITICS, HYPER])
    add("--repeats", type=positive, default=8, help="updates of one kind in a round, small; one if published")
    add("--rounds", type=positive, default=7, help="rounds that are timed; one more is not")
    add("--environments", type=positive, nargs="+", default=[5, 100], help="tasks that are collected together")
    add("--horizon", type=positive, default=200, help="steps of an episode that is collected")
    add("--threads", type=positive, help="threads of torch and of the simulator; all CPUs if not given")
    add("--json", type=writable_file, metavar="FILE", help="also write the numbers there")
    parser.set_defaults(accelerator="cpu")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Update times and speed of collection."""
    from lit_metarl.reports.benchmarks.training import describe, quiet_threads

    with quiet_threads(args.threads):
        described = describe(args)
        sizes = {size: time_updates(args, SIZES[size]) for size in args.sizes}
        collection = time_collection(args)
    measured = {"sizes": {size: times._asdict() for size, times in sizes.items()}, "collection": collection}
    return Section(table_of(described, sizes, collection), data=described | measured, preformatted=True)


def module_of(size: Size, name: str) -> Any:
    """PEARL without a Trainer, with the networks of ``size``; ``name`` is one of the command's updates."""
    import torch

    from lit_metarl.algorithms import PEARL
    from lit_metarl.nn import EnsembleCriticMLP, HyperActor, HyperCritic, ProductOfGaussians, TanhGaussianMLP

    torch.manual_seed(0)
    told: dict[str, Any] = {"hidden": size.dynamic, "widths": size.widths, "blocks": size.blocks}
    networks: dict[str, Any] = {
        "actor": TanhGaussianMLP(size.hidden, "torch", output_bound=1e-3, clamp_log_std=True),
        "critic": EnsembleCriticMLP(size.hidden, initialisation="torch"),
        "value": EnsembleCriticMLP(size.hidden, members=1, initialisation="torch"),
    }
    if name == HYPER:
        meta_base: dict[str, Any] = {"meta": ["obs"], "base": ["action", "context"]}
        networks = {"actor": HyperActor(**told), "critic": HyperCritic(**meta_base, **told)}
        networks["value"] = HyperCritic(**meta_base, members=1, **told)
    if name == TWO_CRITICS:
        networks["value"] = None
    module: Any = PEARL(OBS, ACTION, encoder=ProductOfGaussians(hidden=size.encoder), reward_scale=5.0, **networks)
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers
    return module


def minibatch_of(size: Size) -> TaskMinibatch:
    """A minibatch of noise."""
    import torch

    from lit_metarl.reports.benchmarks.training import noise
    from lit_metarl.types import TaskMinibatch

    generator = torch.Generator().manual_seed(0)
    transitions, context = (noise((size.tasks, n), OBS, ACTION, generator) for n in (size.batch, size.context))
    return TaskMinibatch(transitions, context, torch.zeros(size.tasks, 0))


def time_updates(args: argparse.Namespace, size: Size) -> Times:
    """Seconds of updates of every kind; they alternate, and PEARL's parts are timed in rounds of their own."""
    from lit_metarl.reports.benchmarks.plain_pearl import PlainPEARL

    modules = {name: module_of(size, name) for name in args.updates}
    updates: dict[str, Callable[[Any], object]] = {PLAIN: PlainPEARL(module_of(size, RELEASED)).update}
    updates |= {name: module.update for name, module in modules.items()}
    batch, watched = minibatch_of(size), module_of(size, RELEASED)
    found: dict[str, list[float]] = {name: [] for name in updates}
    timed: list[dict[str, float]] = []
    repeats = 1 if size.large else args.repeats
    for _ in range(args.rounds + 1):
        for name, update in updates.items():
            began = time.perf_counter()
            for _ in range(repeats):
                update(batch)
            found[name].append((time.perf_counter() - began) / repeats)
        timed.append(time_parts(watched, batch, repeats))
    parts = typical(timed[1:], lambda parts: sum(parts.values()))
    return Times({name: seconds[1:] for name, seconds in found.items()}, parts)


def time_parts(module: Any, batch: TaskMinibatch, repeats: int) -> dict[str, float]:
    """Seconds of an update by part, :data:`PARTS`."""
    clock = Clock(lambda: None, PARTS, rest="rest")
    networks = {"encoder": "encoder", "actor": "policy", "critic": "critics", "value": "value", "target_value": "value"}
    for name, part in networks.items():
        clock.wrap(getattr(module, name), "forward", part)
    clock.wrap(module, "minimise", "backwards")
    for optimizer in module.optimizers():
        clock.wrap(optimizer, "step", "Adam")
    clock.wrap(module, "update_targets", "targets")
    clock.begin()
    for _ in range(repeats):
        module.update(batch)
    clock.unwrap()
    return {part: seconds / repeats for part, seconds in clock.seconds.items()}


def time_collection(args: argparse.Namespace) -> dict[str, list[float]]:
    """Environment steps a second by the number of tasks that are stepped together, one after the other for 1."""
    import torch

    from lit_metarl.data.rounds import act_round
    from lit_metarl.data.trajectories import TaskSimulator
    from lit_metarl.envs.locomotion_tasks import Velocity

    module = module_of(SIZES["small"], RELEASED)
    family = Velocity(setup="hyperl", max_episode_steps=args.horizon, threads=args.threads or 0)
    numbers = list(dict.fromkeys([1, *args.environments]))
    simulators = {number: TaskSimulator(family, number, 1, 0, 1.0, oracle_context=False) for number in numbers}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {str(number): [] for number in numbers}
    for _ in range(args.rounds + 1):
        for number, simulator in simulators.items():
            adaptation = module.before_adaptation(torch.zeros(number, 0))
            rounds = max(1, min(numbers[1:], default=1) // number)  # as many episodes for 1 as for the next
            began, steps = time.perf_counter(), 0
            for _ in range(rounds):
                data = act_round(module, module.device, simulator, adaptation, generator)
                steps += int(data.mask.sum())
            found[str(number)].append(steps / (time.perf_counter() - began))
    for simulator in simulators.values():
        simulator.close()
    return {number: speeds[1:] for number, speeds in found.items()}


def table_of(described: dict[str, Any], sizes: dict[str, Times], collection: dict[str, list[float]]) -> str:
    """Lines of fixed width: updates, parts, collection."""
    machine, rounds = described["machine"], described["settings"]["rounds"]
    lines = [
        f"half-cheetah at a velocity, {OBS} observations, {ACTION} actions",
        f"cpu · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"medians of {rounds} rounds (in brackets: all)",
    ]
    if is_busy(machine):
        lines.append("others use the CPUs: the times are too long, ratios hold about")
    for name, times in sizes.items():
        lines += ["", *_size_lines(name, times)]
    one = collection["1"]
    lines += ["", f"{'tasks together':<17}{'env steps/s':>12}   relative to one at a time"]
    for number, speeds in collection.items():
        ratio = spread(own / other for own, other in zip(speeds, one, strict=True))
        lines.append(
            f"{number:<17}{spread(speeds).median:>12,.0f}   {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        )
    return "\n".join(lines)


def _size_lines(name: str, times: Times) -> list[str]:
    size = SIZES[name]
    networks = f"{'-'.join(map(str, size.hidden))}, hypernetworks {'-'.join(map(str, size.widths))}"
    lines = [
        f"{name}: {size.tasks} tasks × {size.batch} transitions, contexts of {size.context} · networks {networks}",
        f"{'update':<24}{'ms':>10}   relative to the {PLAIN}",
    ]
    for update, seconds in times.updates.items():
        ratio = spread(own / plain for own, plain in zip(seconds, times.updates[PLAIN], strict=True))
        lines.append(
            f"{update:<24}{1e3 * spread(seconds).median:>10.2f}   {ratio.median:.2f} ({ratio.low:.2f} to "
            f"{ratio.high:.2f})"
        )
    total = sum(times.parts.values())
    lines += ["", f"{'part of ' + RELEASED:<24}{'share':>8}{'ms':>10}"]
    shares = [(part, 100 * seconds / total, 1e3 * seconds) for part, seconds in times.parts.items()]
    return lines + [f"{part:<24}{share:>6.1f} %{ms:>10.3f}   {PARTS[part]}" for part, share, ms in shares]
