"""``lit-metarl sweep``: from the command line to trained cells and an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_metarl.sweep.cells import Cell, Resolve
    from lit_metarl.sweep.display import Lines
    from lit_metarl.sweep.state import CellState
    from lit_metarl.sweep.training import Outcome
    from lit_metarl.sweep.workers import Workers

DESCRIPTION = """\
Train what a recipe asks for: experiments × grid of settings × seeds, a few runs at a time.

A run is known by its settings that are not at their default. One that has finished is skipped, one that was stopped
goes on from its last checkpoint, one that failed is shown (and tried again with --retry): the same command goes on.
Runs are in the MLflow experiment of the recipe's name, tagged with `recipe` and `arm`; what they print is in
mlruns/sweeps/RECIPE/.

What RECIPE.csv beside the recipe has (`lit-metarl report RECIPE` writes it) is finished, too, wherever it was trained:
nobody trains it twice. To train it again, use --again, or delete its lines."""
EPILOG = """\
Other options are those of `lit-metarl fit`, for all runs: --trainer.max_epochs 20. Ctrl-C stops all runs, which save;
a second one stops them at once. Exit code: 0, 1 if a run has failed, 2 for bad input, 128 + signal if stopped."""


def main(words: Sequence[str], make_resolve: Callable[[], Resolve]) -> int:
    """Run ``lit-metarl sweep <words>``; returns the exit code.

    Args:
        words: of the command line, after ``sweep``.
        make_resolve: makes what completes a config; called only once the words are understood, as it takes seconds.
    """
    args, more = _parser().parse_known_args(list(words))
    from lit_metarl.checkpoint import CheckpointError
    from lit_metarl.tracking import TrackingError
    from lit_metarl.types import ConfigError, Interrupted

    try:
        return _sweep(args, more, make_resolve(), words)
    except Interrupted as stop:
        sys.stderr.write(f"lit-metarl: {stop}\n")
        return 128 + stop.number
    except KeyboardInterrupt:  # before a run was begun
        sys.stderr.write("lit-metarl: stopped by SIGINT\n")
        return 130
    except (ConfigError, CheckpointError, TrackingError) as error:
        sys.stderr.write(f"lit-metarl: error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lit-metarl sweep",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="yaml file, such as configs/sweep/navigation.yaml")
    parser.add_argument("--workers", type=_positive, metavar="N", help="runs at a time (default: one for each CPU)")
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="of each run (default: 1; the small networks here gain little from a second one, and threads for which "
        "there is no idle CPU mostly wait for each other)",
    )
    parser.add_argument(
        "--config", action="append", default=[], type=Path, metavar="FILE", help="on top of every run; may be repeated"
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="train each run as a job of its own, by submitit (pip install 'lit_metarl[cluster]'); --workers jobs at a "
        "time (slurm: all by default). The scheduler's options are --cluster.KEY VALUE: --cluster.partition gpu "
        "--cluster.timeout_min 600 --cluster.cpus_per_task 4 --cluster.gpus_per_node 1 --cluster.mem_gb 16",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="PATTERN",
        help="train only arms so named, such as sac or '*cheetah*'; may be repeated",
    )
    parser.add_argument("--seeds", metavar="SEEDS", help="instead of the recipe's: how many, or a list such as [0,3]")
    parser.add_argument("--retry", action="store_true", help="also train what has failed, from its last checkpoint on")
    parser.add_argument("--again", action="store_true", help="also train what has no run here but is in RECIPE.csv")
    parser.add_argument(
        "--dry_run", action="store_true", help="show the cells, their state and the cost; train nothing"
    )
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _sweep(args: argparse.Namespace, more: Sequence[str], resolve: Resolve, words: Sequence[str]) -> int:
    from lit_metarl.config import load_config, read_word
    from lit_metarl.sweep.cells import make_cells
    from lit_metarl.sweep.cluster import split_options
    from lit_metarl.sweep.display import display
    from lit_metarl.sweep.recipe import load_recipe, read_seeds
    from lit_metarl.sweep.state import look, with_record
    from lit_metarl.tracking import check_store
    from lit_metarl.types import Interrupted, require

    options, more = split_options(more)
    require(args.cluster is not None or not options, "--cluster", args.cluster, "say which, slurm or local")
    here = args.cluster is None or args.threads is None
    require(here, "--threads", args.threads, "the jobs of a cluster have --cluster.cpus_per_task threads each")
    # Of `sweep --trainer.max_epochs 20 swing.yaml` the first word that is no option of a sweep is 20.
    remedy = "it is a yaml file, and comes first: lit-metarl sweep RECIPE, then options of fit"
    require(args.recipe.suffix in (".yaml", ".yml"), "RECIPE", str(args.recipe), remedy)
    recipe = load_recipe(args.recipe)
    seeds = None if args.seeds is None else read_seeds(read_word(args.seeds), "--seeds")
    cells = make_cells(recipe, resolve, [load_config(path) for path in args.config], more, seeds, args.arm)
    states = look(cells)
    if not args.again:
        states = with_record(cells, states, args.recipe.with_suffix(".csv"))
    if args.dry_run:
        sys.stdout.write(_plan(cells, states, args.workers or (len(cells) if args.cluster == "slurm" else _cpus())))
        return 0
    for root in {cell.root for cell in cells}:
        check_store(root)
    sys.stdout.write(f"{recipe.name}: {recipe.title}\n")
    outcomes, stopped = _workers(cells, states, args, options, display()).run()
    counts = Counter(str(outcome.state.state) for outcome in outcomes.values())
    if stopped is not None:
        again = shlex.join(["lit-metarl", "sweep", *words])
        raise Interrupted(f"stopped by {Signals(stopped).name}: {_in_words(counts)}; go on with `{again}`", stopped)
    sys.stdout.write(f"{recipe.name}: {_in_words(counts)}\n")
    return _tell_failures(cells, outcomes)


def _workers(
    cells: Sequence[Cell],
    states: Mapping[str, CellState],
    args: argparse.Namespace,
    options: Mapping[str, Any],
    shown: Lines,
) -> Workers:
    """Workers that train ``cells``: processes here, or jobs of a cluster."""
    from lit_metarl.sweep.cluster import Jobs
    from lit_metarl.sweep.workers import Workers

    if args.cluster is not None:
        jobs = args.workers or (len(cells) if args.cluster == "slurm" else _cpus())
        return Jobs(cells, states, jobs, args.cluster, options, args.retry, shown)
    # One thread, measured on two CPUs which others used too: two runs of half_cheetah_direction_promp take 102 s side
    # by side with a thread each, and more than 212 s one after the other with two threads.
    return Workers(cells, states, args.workers or _cpus(), args.threads or 1, args.retry, shown)


def _tell_failures(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> int:
    """Say what has failed and why; the exit code."""
    from lit_metarl.sweep.state import State
    from lit_metarl.sweep.training import last_error

    code = 0
    for cell in cells:
        outcome = outcomes[cell.key]
        if outcome.state.state is State.FAILED:
            reason = outcome.note or last_error(cell.file("log"))
            sys.stderr.write(f"lit-metarl: {cell} failed: {reason} (--retry tries again; {cell.file('log')})\n")
        elif outcome.state.state is State.RUNNING:
            sys.stdout.write(f"{cell} is being trained by {outcome.note or outcome.state.note}\n")
        elif outcome.state.state is not State.FINISHED:
            sys.stderr.write(f"lit-metarl: {cell} did not finish: {outcome.note} (see {cell.file('log')})\n")
        code |= outcome.state.state not in (State.FINISHED, State.RUNNING)
    return int(code)


def _plan(cells: Sequence[Cell], states: Mapping[str, CellState], workers: int) -> str:
    """The cells with their states, and what is left to do."""
    from lit_metarl.sweep.estimate import in_words
    from lit_metarl.sweep.state import State
    from lit_metarl.sweep.training import last_error
    from lit_metarl.sweep.workers import durations_of, part_left

    width = max(len(str(cell)) for cell in cells)
    lines = []
    for cell in cells:
        state = states[cell.key]
        took = f"in {in_words(state.seconds)}" if state.seconds is not None else state.note
        took = f"by {took}" if state.state is State.RUNNING and took else took
        took = last_error(cell.file("log")) if state.state is State.FAILED else took
        lines.append(f"{cell!s:<{width}}  {state.state:<11}  {cell.key}  {state.run_id or '-':<32}  {took}".rstrip())
    parts = [(cell.arm, part_left(cell, states[cell.key])) for cell in cells if states[cell.key].state in
             (State.ABSENT, State.INTERRUPTED)]  # fmt: skip
    left = durations_of(cells, states).left(parts, workers)
    counts = Counter(str(state.state) for state in states.values())
    cost = in_words(left) + (" (no cell has finished yet)" if left is None else "")
    many = f"{workers} worker{'s' if workers > 1 else ''}"
    lines.append(f"{len(cells)} cells: {_in_words(counts)}; time left with {many}: {cost}")
    return "\n".join(lines) + "\n"


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
