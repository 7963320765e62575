"""``lit-metarl benchmark trpo``: whole iterations of MAML-TRPO beside a plain implementation of the same algorithm.

Machines are noisy, so both take turns, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_metarl.reports.arguments import positive
from lit_metarl.reports.benchmarks.timing import is_busy, spread, verdict
from lit_metarl.reports.section import Section

if TYPE_CHECKING:
    from lit_metarl.reports.benchmarks.trpo_plain import Work
    from lit_metarl.reports.benchmarks.trpo_timing import Measured, Result

NAMES = ("navigation", "half_cheetah")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark trpo``."""
    add = parser.add_argument
    add("--works", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    add("--threads", type=positive, nargs="+", default=[1, 2], help="numbers of threads to measure with")
    add("--rounds", type=positive, default=5, help="iterations of each that are timed")
    parser.set_defaults(accelerator="cpu")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Speed and memory of both.

    Raises:
        ReportError: a process of the measurement failed.
    """
    from lit_metarl.reports.benchmarks.trpo_timing import measure  # not for a misspelt option

    return Section(table_of(measure(args)), preformatted=True)


def table_of(result: Result) -> str:
    """Lines of fixed width with everything in ``result``."""
    from lit_metarl.reports.benchmarks.trpo_plain import WORKS

    settings, machine = result.settings, result.machine
    lines = [
        "MAML-TRPO beside a plain implementation of the same step (loops over tasks and environments, double backward)",
        f"cpu · {machine['cpus']} CPUs · load {machine['load']:.1f} · medians of {settings['rounds']} rounds "
        "(in brackets: all rounds), each with an iteration of both",
    ]
    if is_busy(machine | {"threads": max(settings["threads"])}):
        lines.append("others use the CPUs: wall times are too long, ratios and CPU times hold about")
    for name in settings["works"]:
        work = WORKS[name]
        lines += [
            "",
            f"{work.title} · {work.tasks} tasks × {work.trajectories} trajectories × {work.horizon} steps, "
            f"1 inner step · policy {'-'.join(map(str, work.hidden))}",
            f"{'threads':<9}{'part':<14}{'plain s':>9}{'CPU s':>9}{'ours s':>9}{'CPU s':>9}   "
            f"{'plain to ours':<25}of CPU times",
        ]
        for threads in settings["threads"]:
            lines += _rows(threads, work, result.measured[name, threads])
        lines += [_memory(threads, result.measured[name, threads]) for threads in settings["threads"]]
    return "\n".join(
        [
            *lines,
            "",
            "sampling: both rounds and the adaptation between them. CPU s: of all threads and processes. Beyond one",
            "thread the plain implementation samples with as many processes. Memory: PSS of the main process.",
        ]
    )


def _rows(threads: int, work: Work, measured: Measured) -> list[str]:
    lines = []
    for part in measured.rounds[0]["ours"]:
        plain, ours = ([each[name][part] for each in measured.rounds] for name in ("plain", "ours"))
        seconds = [spread(column).median for times in (plain, ours) for column in zip(*times, strict=True)]
        wall = spread(p.wall / o.wall for p, o in zip(plain, ours, strict=True))
        cpu = spread(p.cpu / o.cpu for p, o in zip(plain, ours, strict=True))
        goal = f"   goal ≥ {work.goal:g}: {verdict(wall.median >= work.goal)}" if part == "iteration" else ""
        ratio = f"{wall.median:.2f}   ({wall.low:.2f} to {wall.high:.2f})"
        numbers = "".join(f"{value:>9.2f}" for value in seconds)
        lines.append(f"{threads:<9}{part:<14}{numbers}   {ratio:<25}{cpu.median:.2f}{goal}")
    return lines


def _memory(threads: int, measured: Measured) -> str:
    start, peak = measured.start, measured.peak
    plain, ours = (f"{name} {1024 * peak[name]:,.0f} (at first {1024 * start[name]:,.0f})" for name in peak)
    return f"{threads:<9}MiB at most: {plain}, {ours}; goal < plain: {verdict(peak['ours'] < peak['plain'])}"
