"""``lit-metarl benchmark``: the speed of the whole SAC training loop, part by part, and of the simulator alone.

Machines are noisy, so what is compared is measured in alternating rounds of one process. The timers of the parts sit
here, around public methods of the training code, and only in every other round: the headline speed is untimed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from lit_metarl.reports.document import ReportError, markers, write_block
from lit_metarl.reports.timing import Clock, time_simulator

SCHEMA = "lit_metarl.benchmark/1"
BLOCK = "benchmark"  # of the README
LOG_EVERY = 100  # training steps, as in configs/base.yaml


def positive(text: str) -> int:
    """Parser type: an integer of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Callable[[str], NoReturn]]:
    """The settings, and how to refuse those that only turn out later not to work (exit code 2)."""
    parser = argparse.ArgumentParser(
        "lit-metarl benchmark",
        description="Time SAC's training loop, part by part. `meta` as first argument: meta-learning.",
    )
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
    add("--write", metavar="FILE", help=f"put the table between {' and '.join(markers(BLOCK))} of FILE")
    add("--json", type=Path, metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(arguments)
    if args.steps % args.num_envs:
        parser.error(f"argument --steps: {args.steps} is not a multiple of --num-envs {args.num_envs}")
    if args.json and (args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK)):
        parser.error(f"argument --json: {args.json} cannot be written; name a file in a writable folder")
    return args, parser.error


def main(arguments: list[str]) -> int:
    """Measure, print a table and return 0; bad values exit with code 2 and say which."""
    if arguments[:1] == ["meta"]:
        from lit_metarl.reports.meta_benchmark import main as meta

        return meta(arguments[1:])
    args, refuse = parse(arguments)
    import torch

    from lit_metarl.cli import quieten
    from lit_metarl.envs.base import EnvError
    from lit_metarl.types import ConfigError

    quieten()
    if args.accelerator == "cuda" and not torch.cuda.is_available():
        refuse("argument --accelerator: torch finds no CUDA device")
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        result = describe(args) | measure(args)
    except (ConfigError, EnvError) as error:
        refuse(str(error))
    finally:
        torch.set_num_threads(threads)
    sys.stdout.write(table(result))
    if args.write:
        try:
            write_block(args.write, BLOCK, f"```text\n{table(result)}```")
        except ReportError as error:
            refuse(str(error))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on: settings, machine and versions."""
    import torch

    from lit_metarl.tracking import environment_tags

    cuda = args.accelerator != "cpu" and torch.cuda.is_available()
    machine = {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": platform.platform(),
        "load": os.getloadavg()[0],  # processes that wanted a CPU in the minute before, so who else was measured
    }
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    return {"schema": SCHEMA, "settings": settings, "machine": machine, "versions": environment_tags()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that ``args`` asks for.

    Raises:
        ConfigError, EnvError: the environment cannot be built or SAC cannot be trained in it.
    """
    from lightning.pytorch import seed_everything

    from lit_metarl.algorithms import SAC
    from lit_metarl.data import ReplayDataModule
    from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP

    seed_everything(0, verbose=False)
    factory = make_factory(args.env, args.threads or 0)
    warmup = min(5000, max(args.batch_size, args.steps))
    data = ReplayDataModule(
        factory,
        args.num_envs,
        args.batch_size,
        warmup_steps=warmup,
        updates_per_block=args.updates_per_block,
        epoch_steps=args.steps,
    )
    sac = SAC(data.obs_dim, data.action_dim, TanhGaussianMLP(args.hidden), EnsembleCriticMLP(args.hidden))
    if args.updates_only:
        return {"updates": time_updates(args, sac)}
    simulator = [time_simulator(factory, n, args.rounds) for n in args.sim_envs] if args.env[:7] == "mujoco/" else []
    return {"training": time_training(args, sac, data), "simulator": simulator}


def make_factory(name: str, threads: int) -> Any:
    """The simulator that ``--env`` names; raises ``ConfigError`` if there is none of that name."""
    from lit_metarl.envs.gym import Gymnasium
    from lit_metarl.envs.locomotion import MuJoCo
    from lit_metarl.envs.suite import DMControl
    from lit_metarl.types import ConfigError

    suite, _, rest = name.partition("/")
    suites: dict[str, Callable[[str], Any]] = {
        "mujoco": partial(MuJoCo, threads=threads),
        "dm_control": DMControl,
        "gymnasium": Gymnasium,
    }
    if suite not in suites or not rest:
        raise ConfigError(f"argument --env: {name!r} is none of mujoco/ROBOT, dm_control/DOMAIN/TASK, gymnasium/ID")
    try:
        return suites[suite](rest)
    except ValueError as error:
        raise ConfigError(f"argument --env: {error}") from error


def wrap_parts(clock: Clock, sac: Any, data: Any) -> None:
    """Time every part of the loop; what none of these methods does is Lightning's."""
    clock.wrap(data, "next_batch", "collector")
    for name in ("step", "reset"):
        clock.wrap(data.collector.env, name, "simulator")
    clock.wrap(sac, "explore", "acting")
    for name in ("insert", "sample"):
        clock.wrap(data.replay, name, "replay")
    clock.wrap(sac, "training_step", "updates")
    clock.wrap(sac, "record", "logging")  # sums the metrics, and calls log_points


def time_training(args: argparse.Namespace, sac: Any, data: Any) -> dict[str, Any]:
    """Train; epoch 0 warms up, then epochs without and with timers alternate."""
    plain: list[float] = []
    timed: list[tuple[float, dict[str, float]]] = []  # seconds of the epoch, and of each part
    clock, began = Clock(_nothing), 0.0

    def start(trainer: Any, *_: Any) -> None:
        nonlocal clock, began
        clock = Clock(_synchronise(trainer))
        if trainer.current_epoch and trainer.current_epoch % 2 == 0:
            wrap_parts(clock, sac, data)
        began = time.perf_counter()

    def end(trainer: Any, *_: Any) -> None:
        clock.unwrap()
        seconds = time.perf_counter() - began
        if trainer.current_epoch % 2:
            plain.append(seconds)
        elif trainer.current_epoch:
            timed.append((seconds, clock.seconds))

    fit(args, sac, 2 * args.rounds + 1, {"on_train_epoch_start": start, "on_train_epoch_end": end}, datamodule=data)
    # The parts of one real round, that of the median time: medians part by part would not add up to 100 %.
    total, parts = sorted(timed, key=lambda item: item[0])[(len(timed) - 1) // 2]
    speed = args.steps / median(plain)
    return {
        "env_steps_per_s": speed,
        "updates_per_s": speed * args.updates_per_block / args.num_envs,
        "env_steps_per_s_of_rounds": [args.steps / seconds for seconds in plain],
        "env_steps_per_s_with_timers": args.steps / total,
        "shares_percent": {part: 100 * seconds / total for part, seconds in parts.items()},
        "ms_per_env_step": {part: 1e3 * seconds / args.steps for part, seconds in parts.items()},
    }


def time_updates(args: argparse.Namespace, sac: Any) -> dict[str, Any]:
    """Milliseconds of one update (critics in one batched product, actor, temperature, target) on a fixed minibatch."""
    import torch

    from lit_metarl.data.experience import Loader
    from lit_metarl.types import ReplayBlock, Transition

    size, none = args.batch_size, torch.zeros(0)
    obs, next_obs = torch.randn(2, size, sac.obs_dim)
    action, flags = torch.rand(size, sac.action_dim) * 2 - 1, torch.zeros(size, dtype=torch.bool)
    minibatch = Transition(obs, action, torch.randn(size), next_obs, flags, flags)
    block = ReplayBlock(Transition(*(field.expand(args.steps, *field.shape) for field in minibatch)), 0, none, none)
    times: list[float] = []
    began = 0.0

    def start(trainer: Any, *_: Any) -> None:
        nonlocal began
        _synchronise(trainer)()
        began = time.perf_counter()

    def end(trainer: Any, *_: Any) -> None:
        _synchronise(trainer)()
        times.append(1e3 * (time.perf_counter() - began) / args.steps)

    hooks = {"on_train_batch_start": start, "on_train_batch_end": end}
    fit(args, sac, args.rounds + 1, hooks, train_dataloaders=Loader(1, lambda: block))
    return {"ms_per_update": median(times[1:]), "ms_per_update_of_rounds": times[1:]}  # the first warms up


def fit(args: argparse.Namespace, sac: Any, epochs: int, hooks: dict[str, Any], **data: Any) -> None:
    """A training run as the command line makes it, logger included, without evaluation and checkpoints."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import LambdaCallback

    from lit_metarl.tracking import MLflowLogger

    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator=args.accelerator,
            devices=1,
            max_epochs=epochs,
            logger=MLflowLogger(root),
            callbacks=[LambdaCallback(**hooks)],
            log_every_n_steps=LOG_EVERY,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
        )
        trainer.fit(sac, **data)


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    settings, machine = result["settings"], result["machine"]
    networks = "-".join(map(str, settings["hidden"]))
    lines = [
        f"{settings['env']} · SAC {networks} · batch {settings['batch_size']} · {settings['num_envs']} environments · "
        f"{settings['updates_per_block']} updates a block",
        f"{machine['device']} · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"medians of {settings['rounds']} rounds of {settings['steps']} steps",
    ]
    if machine["load"] + machine["threads"] > machine["cpus"] + 0.5:
        # Threads that wait for each other at every operation are slowed far more than by their share of the CPUs.
        lines.append("others use the CPUs: the times are too long, with several threads by an order of magnitude")
    if "updates" in result:
        times = result["updates"]["ms_per_update_of_rounds"]
        lines += ["", f"one update {median(times):.3f} ms   (rounds {min(times):.3f} to {max(times):.3f})"]
    else:
        lines += ["", *_training_lines(result["training"]), "", *_simulator_lines(result["simulator"])]
    return "\n".join(lines) + "\n"


def _training_lines(training: dict[str, Any]) -> list[str]:
    rounds = training["env_steps_per_s_of_rounds"]
    spread = f"(rounds {min(rounds):.1f} to {max(rounds):.1f})"
    return [
        f"training   {training['env_steps_per_s']:10.1f} env steps/s   {spread}",
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


def _synchronise(trainer: Any) -> Callable[[], None]:
    """How to wait for what was launched on the Trainer's device."""
    import torch

    return torch.cuda.synchronize if trainer.strategy.root_device.type == "cuda" else _nothing


def _nothing() -> None:
    pass
