"""``lit-metarl benchmark meta``: speed and memory of meta-learning, against bare physics and between algorithms.

Machines are noisy, so all that is compared is measured in every round of one process, and ratios are taken within a
round.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_metarl.reports.arguments import at_least, positive
from lit_metarl.reports.benchmarks.timing import META_PARTS, Spread, is_busy, spread, typical, verdict
from lit_metarl.reports.section import Section

if TYPE_CHECKING:
    from lit_metarl.reports.benchmarks.meta_timing import Measured, Memory, Result

SPEED_GOAL = 0.85  # of bare physics
MEMORY_GOAL = 1.5  # GiB, the whole process
COMPARISONS = (  # algorithm, reference, goal of the ratio of their iteration times
    ("SG-MRL, CrossTask", "MAML", 1.02),
    ("SG-MRL, LeaveOneOut", "MAML", 1.15),
    ("SG-MRL, LinearisedLeaveOneOut", "MAML", None),
    ("MAML", "FO-MAML", 1.10),
    ("MAML-TRPO", "MAML", 1.75),
    ("ProMP-TayPO-2", "ProMP", 1.05),
    ("TMAML", "LVC", 1.02),
    ("TMAML, action-dependent", "LVC", 1.15),
    ("TMAML, meta", "LVC", 1.25),
)


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark meta``."""
    add = parser.add_argument
    add("--tasks", type=at_least(2, "a credit across tasks needs two"), default=40, help="tasks of an iteration")
    add("--trajectories", type=positive, default=20, help="trajectories of a task, before adaptation and after it")
    add("--horizon", type=positive, default=100, help="steps of a trajectory")
    add("--rounds", type=positive, default=5, help="repetitions of every measurement")
    add("--threads", type=positive, help="threads of torch and of the simulator; all CPUs if not given")
    add("--robot", default="half_cheetah", help="a robot of the task family Direction")
    add("--hidden", type=positive, nargs="+", default=[64, 64], help="widths of the policy")
    parser.set_defaults(accelerator="cpu")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Speed and memory of meta-iterations.

    Raises:
        ReportError, ConfigError, EnvError: the tasks cannot be built or trained on.
        DivergenceError: adaptation left the finite numbers.
    """
    from lit_metarl.reports.benchmarks.meta_timing import measure  # not for a misspelt option

    return Section(table_of(measure(args)), preformatted=True)


def table_of(result: Result) -> str:
    """Lines of fixed width with everything in ``result``."""
    settings, machine = result.settings, result.machine
    lines = [
        f"{settings['robot']}, direction · {settings['tasks']} tasks × {settings['trajectories']} trajectories × "
        f"{settings['horizon']} steps, 1 inner step · policy {'-'.join(map(str, settings['hidden']))}",
        f"cpu · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"medians of {settings['rounds']} rounds (in brackets: all rounds)",
    ]
    if is_busy(machine):
        lines.append("others use the CPUs: the times are too long, those with several threads most")
    sections = (_speed(result.measured), _comparison(result.measured), _memory(result.memory))
    for section in (*sections, _collection(result.measured)):
        lines += ["", *section]
    return "\n".join(lines)


def _speed(measured: list[Measured]) -> list[str]:
    whole = spread(m.env_steps / m.iteration for m in measured)
    bare = spread(m.env_steps / m.bare for m in measured)
    ratio = spread(m.bare / m.iteration for m in measured)
    parts = typical(measured, lambda m: m.iteration).parts
    total = sum(parts.values())
    return [
        f"MAML's iterations     {_row(whole, 9, 0)} env steps/s",
        f"bare mujoco.batch     {_row(bare, 9, 0)} env steps/s, as many environments and threads",
        f"whole to bare         {_row(ratio, 9, 3)} goal ≥ {SPEED_GOAL}: {verdict(ratio.median >= SPEED_GOAL)}",
        "",
        f"{'part':<14}{'share':>8}{'ms':>10}",
        *(f"{name:<14}{100 * s / total:>6.1f} %{1e3 * s:>10.1f}   {META_PARTS[name]}" for name, s in parts.items()),
    ]


def _comparison(measured: list[Measured]) -> list[str]:
    lines = [f"{'algorithm':<29}{'own ms':>9}   {'iteration time to that of':<27}ratio"]
    for name, reference, goal in COMPARISONS:
        own = spread(1e3 * m.own[name] for m in measured).median
        ratio = spread(m.iteration_of(name) / m.iteration_of(reference) for m in measured)
        reached = "" if goal is None else f" goal ≤ {goal}: {verdict(ratio.median <= goal)}"
        lines.append(f"{name:<29}{own:>9.1f}   {reference:<23}{_row(ratio, 9, 3)}{reached}")
    return [
        *lines,
        "own: adaptation and update on the data of MAML's iteration; the rest of that iteration is common to all, so",
        "an iteration of another algorithm is computed as collection + its own adaptation and update.",
    ]


def _memory(memory: dict[str, Memory]) -> list[str]:
    return [
        f"resident memory, {name}: {its.baseline:.2f} GiB before the first iteration, at most {its.peak:.2f} GiB "
        f"(+{its.peak - its.baseline:.2f}); goal ≤ {MEMORY_GOAL}: {verdict(its.peak <= MEMORY_GOAL)}"
        for name, its in memory.items()
    ]


def _collection(measured: list[Measured]) -> list[str]:
    smallest = min(measured[0].collection)
    lines = [f"{'environments':<14}{'µs per env step of collection':<36}relative to {smallest}"]
    for number in sorted(measured[0].collection):
        cost = spread(1e6 * m.collection[number] for m in measured)
        ratio = spread(m.collection[number] / m.collection[smallest] for m in measured)
        lines.append(f"{number:<14}{_row(cost, 9, 2):<34}{_row(ratio, 6, 2)}")
    return lines


def _row(value: Spread, width: int, digits: int) -> str:
    number = f"{value.median:>{width},.{digits}f}"
    return f"{number}   ({value.low:,.{digits}f} to {value.high:,.{digits}f})"
