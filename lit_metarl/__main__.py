"""Entry point; imports nothing heavy until it knows what is asked for."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lit_metarl.errors import COMMANDS, cause_of, one_line, unknown_command

if TYPE_CHECKING:
    from lit_metarl.cli import Resolver

USAGE = """\
usage: lit-metarl COMMAND [options]

Train, compare and resume (meta-)reinforcement learning agents.

commands:
  fit        train:            lit-metarl fit --config configs/experiment/quickstart.yaml
  validate   evaluate:         lit-metarl validate --config … --ckpt_path last
  test       test episodes:    lit-metarl test --config … --ckpt_path best
  predict    film an episode:  lit-metarl predict --config … --ckpt_path best
  sweep      train a recipe:   lit-metarl sweep configs/sweep/navigation.yaml
  benchmark  time the whole training loop, part by part; that of meta-learning: lit-metarl benchmark meta
  report     results of the runs in mlruns/, or of a recipe: lit-metarl report configs/sweep/navigation.yaml
  compare    two experiments, or two arms of a recipe, with intervals over seeds and tasks
  study      measure a method:  lit-metarl study tabular
  doctor     say whether a training run would work on this machine
  completion print the completion script of a shell: lit-metarl completion bash

common options of fit, validate, test and predict:
  --config FILE            yaml; may be repeated, later files override earlier ones
  --seed_everything N      seed of every random stream (default 0), or true to draw one
  --ckpt_path PATH         a checkpoint, a run id, `last` or `best`
  --trainer.KEY VALUE      any Trainer option, e.g. --trainer.max_epochs 50
  --model.KEY VALUE        any argument of the algorithm, e.g. --model.gamma 0.98
  --data.KEY VALUE         any argument of the DataModule, e.g. --data.num_envs 4
  --print_config           print the complete config and stop
  --help                   all options; --model.help CLASS those of a class

`lit-metarl COMMAND --help` says more.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run ``lit-metarl``; returns the exit code (2 for bad input)."""
    arguments = [_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # formulas in the help need more than a Windows code page has
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(version("lit_metarl"))
        return 0
    if command not in COMMANDS and not command.startswith("-"):
        print(f"lit-metarl: error: {unknown_command(command)}", file=sys.stderr)
        return 2
    from lit_metarl.envs.rendering import choose_backend

    choose_backend()  # mujoco reads it when it is first imported
    if command == "doctor":
        from lit_metarl.doctor import main as doctor

        return doctor(arguments[1:])
    if command in ("benchmark", "compare", "report", "study"):
        from lit_metarl.reports.command import main as report

        return report(arguments)
    if command == "sweep":
        from lit_metarl.sweep.command import main as sweep

        return sweep(arguments[1:], _resolver)
    return _train(arguments)


def _at_home(word: str) -> str:
    """``word`` with the home folder for a ``~``, which a shell leaves alone in ``--key=~/path``."""
    flag, equals, value = word.rpartition("=")
    return flag + equals + os.path.expanduser(value)


def _resolver() -> Resolver:
    from lit_metarl.cli import Resolver, quieten

    quieten()
    return Resolver()


@contextmanager
def _first_imports() -> Iterator[None]:
    """Import without searches for garbage, a quarter of the time, and exempt what is imported from later ones."""
    if "lit_metarl.cli" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _train(arguments: list[str]) -> int:
    with _first_imports():
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from lit_metarl.checkpoint import CheckpointError
        from lit_metarl.cli import completion, run
        from lit_metarl.envs.base import EnvError
        from lit_metarl.processes import lost_peer
        from lit_metarl.tracking import TrackingError
        from lit_metarl.types import ConfigError, DivergenceError, Interrupted

    try:
        if arguments[0] == "completion":
            completion(" ".join(arguments[1:]) or "bash")
        else:
            run(arguments)
    except Interrupted as stop:
        print(f"lit-metarl: {stop}", file=sys.stderr)
        return 128 + stop.number
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("lit-metarl: stopped by SIGINT", file=sys.stderr)
        return 130
    except Exception as error:
        kinds = (ConfigError, DivergenceError, CheckpointError, EnvError, TrackingError, MisconfigurationException)
        expected = cause_of(error, kinds)
        notes = " ".join(["", *getattr(error, "__notes__", [])])
        if lost_peer(error):
            reason = str(error).partition("\n")[0]
            print(f"lit-metarl: error: another process of this run has died ({reason}).{notes}", file=sys.stderr)
            return 1
        if expected is None and not str(error).startswith(("Does not validate", "Early stopping conditioned on")):
            raise
        print(f"lit-metarl: error: {expected or one_line(str(error))}{notes}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
