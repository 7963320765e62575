"""``lit-metarl benchmark``: the speed of the whole SAC training loop, part by part, and of the simulator alone."""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from lit_metarl.reports.arguments import positive, writable_file
from lit_metarl.reports.benchmarks.timing import is_busy, spread, verdict
from lit_metarl.reports.section import Section

GOAL = 1.6  # times as fast as a plain implementation


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark``."""
    add = parser.add_argument
    add("--env", default="mujoco/half_cheetah", help="mujoco/ROBOT, dm_control/DOMAIN/TASK or gymnasium/ID")
    add("--hidden", type=positive, nargs="+", default=[256, 256], help="widths of actor and critics")
    add("--batch-size", type=positive, default=256, help="transitions of one update")
    add("--num-envs", type=positive, default=1, help="environments stepped together")
    add("--updates-per-block", type=positive, default=1, help="updates after each step of all environments")
    add("--steps", type=positive, default=1000, help="environment steps (or updates) of a round")
    add("--rounds", type=positive, default=5, help="rounds of each kind")
    add("--threads", type=positive, help="threads of torch and of the simulator; all CPUs if not given")
    add("--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help="where the networks are")
    add("--sim-envs", type=positive, nargs="+", default=[1, 32, 1000], help="environments of the simulator alone")
    add("--updates-only", action="store_true", help="only time SAC's update, on one fixed minibatch")
    add("--json", type=writable_file, metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(words)
    if args.steps % args.num_envs:
        parser.error(f"argument --steps: {args.steps} is not a multiple of --num-envs {args.num_envs}")
    return args


def run(args: argparse.Namespace) -> Section:
    """The speed of training and of the simulator, or of updates alone.

    Raises:
        ReportError, ConfigError, EnvError: the environment cannot be built, or SAC cannot be trained in it or there.
    """
    from lit_metarl.reports.benchmarks.sac_timing import measure  # not for a misspelt option

    result = measure(args)
    return Section(table_of(result), data=result, preformatted=True)


def table_of(result: dict[str, Any]) -> str:
    """Lines of fixed width with the numbers of ``result``."""
    settings, machine = result["settings"], result["machine"]
    networks = "-".join(map(str, settings["hidden"]))
    lines = [
        f"{settings['env']} · SAC {networks} · batch {settings['batch_size']} · {settings['num_envs']} environments · "
        f"{settings['updates_per_block']} updates a block",
        f"{machine['device']} · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"medians of {settings['rounds']} rounds of {settings['steps']} steps",
    ]
    if is_busy(machine):
        # Threads that wait for each other at every operation are slowed far more than by their share of the CPUs.
        lines.append("others use the CPUs: the times are too long, with several threads by an order of magnitude")
    if "updates" in result:
        times = result["updates"]["ms_per_update_of_rounds"]
        lines += ["", f"one update {median(times):.3f} ms   (rounds {min(times):.3f} to {max(times):.3f})"]
    else:
        lines += ["", *_training_lines(result["training"]), "", *_simulator_lines(result["simulator"])]
    return "\n".join(lines)


def _training_lines(training: dict[str, Any]) -> list[str]:
    rounds, plain = training["env_steps_per_s_of_rounds"], training["plain_env_steps_per_s_of_rounds"]
    lines = []
    if plain:
        ratio = spread(ours / other for ours, other in zip(rounds, plain, strict=True))
        cpu = spread(training["plain_to_ours_cpu_of_rounds"])
        lines = [
            f"plain SAC  {median(plain):10.1f} env steps/s   (rounds {min(plain):.1f} to {max(plain):.1f}), in turns",
            f"           {ratio.median:10.2f} times is training as fast ({ratio.low:.2f} to {ratio.high:.2f}); "
            f"goal ≥ {GOAL}: {verdict(ratio.median >= GOAL)}",
            f"           {cpu.median:10.2f} by CPU time ({cpu.low:.2f} to {cpu.high:.2f})",
        ]
    return [
        f"training   {training['env_steps_per_s']:10.1f} env steps/s   (rounds {min(rounds):.1f} to {max(rounds):.1f})",
        *lines,
        f"           {training['updates_per_s']:10.1f} updates/s",
        f"           {training['env_steps_per_s_with_timers']:10.1f} env steps/s with the timers of these parts:",
        "",
        f"{'part':<12}{'share':>8}{'ms per env step':>18}",
        *(
            f"{part:<12}{share:>6.1f} %{training['ms_per_env_step'][part]:>18.4f}"
            for part, share in training["shares_percent"].items()
        ),
    ]


def _simulator_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["The simulator alone is measured for mujoco/ROBOT only: others have no bare batch to compare with."]
    return [
        f"{'simulator':<12}{'threads':>8}{'whole µs':>12}{'bare µs':>12}{'ratio':>8}   per env step",
        *(
            f"{row['num_envs']:<12}{row['threads']:>8}{row['us_per_env_step']:>12.2f}"
            f"{row['us_per_env_step_bare']:>12.2f}{row['ratio']:>8.2f}"
            for row in rows
        ),
    ]
