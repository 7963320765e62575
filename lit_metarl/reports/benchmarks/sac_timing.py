"""Measurements of SAC's training loop: part by part, or of its updates alone.

Machines are noisy, so what is compared is measured in alternating rounds of one process. The timers of the parts sit
here, around public methods of the training code, and only in every other round: the headline speed is untimed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from lightning.pytorch import seed_everything

from lit_metarl.algorithms import SAC
from lit_metarl.data import ReplayDataModule
from lit_metarl.data.experience import Loader
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.suite import DMControl
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.reports.arguments import blame
from lit_metarl.reports.benchmarks.naive_sac import PlainLoop, PlainSAC, plain_critic
from lit_metarl.reports.benchmarks.physics import time_simulator
from lit_metarl.reports.benchmarks.timing import Clock, typical
from lit_metarl.reports.benchmarks.training import describe, fit, noise, quiet_threads, require_device
from lit_metarl.reports.section import ReportError
from lit_metarl.types import ReplayBlock, Transition


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Settings, machine and versions, with the times and speeds that ``args`` ask for.

    Raises:
        ReportError, ConfigError, EnvError: the environment cannot be built, or SAC cannot be trained in it or there.
    """
    require_device(args.accelerator)
    with quiet_threads(args.threads):
        return describe(args) | _measure(args)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    seed_everything(0, verbose=False)
    factory = make_factory(args.env, args.threads or 0)
    data = ReplayDataModule(
        factory,
        args.num_envs,
        args.batch_size,
        warmup_steps=warmup_of(args),
        updates_per_block=args.updates_per_block,
        epoch_steps=args.steps,
    )
    sac = SAC(data.obs_dim, data.action_dim, TanhGaussianMLP(args.hidden), EnsembleCriticMLP(args.hidden))
    if args.updates_only:
        return {"updates": time_updates(args, sac)}
    simulator = [time_simulator(factory, n, args.rounds) for n in args.sim_envs] if args.env[:7] == "mujoco/" else []
    return {"training": time_training(args, sac, data), "simulator": simulator}


def make_factory(name: str, threads: int) -> Any:
    """The simulator that ``--env`` names; raises ``ReportError`` if there is none of that name."""
    suite, _, rest = name.partition("/")
    suites: dict[str, Callable[[str], Any]] = {
        "mujoco": partial(MuJoCo, threads=threads),
        "dm_control": DMControl,
        "gymnasium": Gymnasium,
    }
    if suite not in suites or not rest:
        raise ReportError(f"argument --env: {name!r} is none of mujoco/ROBOT, dm_control/DOMAIN/TASK, gymnasium/ID")
    with blame("--env"):
        return suites[suite](rest)


def wrap_parts(clock: Clock, sac: Any, data: Any) -> None:
    """Time every part of the loop; what none of these methods does is Lightning's."""
    clock.wrap(data, "next_batch", "collector")
    for name in ("step", "reset"):
        clock.wrap(data.collector.env, name, "simulator")
    clock.wrap(sac, "explore", "acting")
    for name in ("insert", "sample"):
        clock.wrap(data.replay, name, "replay")
    clock.wrap(sac, "training_step", "updates")
    clock.wrap(sac.metrics, "add", "logging")
    clock.wrap(sac, "finish_step", "logging")  # calls log_points


def time_training(args: argparse.Namespace, sac: Any, data: Any) -> dict[str, Any]:
    """Train; epoch 0 warms up, then epochs without and with timers alternate."""
    untimed: list[float] = []
    loop, plain, cpu = plain_loop(args, sac), list[float](), list[float]()
    timed: list[tuple[float, dict[str, float]]] = []  # seconds of the epoch, and of each part
    clock, began, cpu_began = Clock(_nothing), 0.0, 0.0

    def start(trainer: Any, *_: Any) -> None:
        nonlocal clock, began, cpu_began
        clock = Clock(_synchronise(trainer))
        if trainer.current_epoch and trainer.current_epoch % 2 == 0:
            wrap_parts(clock, sac, data)
        began, cpu_began = clock.begin(), time.process_time()

    def end(trainer: Any, *_: Any) -> None:
        clock.unwrap()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        if trainer.current_epoch % 2:
            untimed.append(seconds)
            if loop is not None:
                began_plain, cpu_began_plain = time.perf_counter(), time.process_time()
                loop.run(args.steps)
                plain.append(time.perf_counter() - began_plain)
                cpu.append((time.process_time() - cpu_began_plain) / cpu_seconds)
        elif trainer.current_epoch:
            timed.append((seconds, clock.seconds))

    fit(args, sac, 2 * args.rounds + 1, {"on_train_epoch_start": start, "on_train_epoch_end": end}, datamodule=data)
    total, parts = typical(timed, lambda item: item[0])
    speed = args.steps / median(untimed)
    return {
        "env_steps_per_s": speed,
        "updates_per_s": speed * args.updates_per_block / args.num_envs,
        "env_steps_per_s_of_rounds": [args.steps / seconds for seconds in untimed],
        "plain_env_steps_per_s_of_rounds": [args.steps / seconds for seconds in plain],
        "plain_to_ours_cpu_of_rounds": cpu,
        "env_steps_per_s_with_timers": args.steps / total,
        "shares_percent": {part: 100 * seconds / total for part, seconds in parts.items()},
        "ms_per_env_step": {part: 1e3 * seconds / args.steps for part, seconds in parts.items()},
    }


def plain_loop(args: argparse.Namespace, sac: Any) -> PlainLoop | None:
    """A plain SAC in the same environment; None where there is none: on a GPU, in several or in dm_control's."""
    suite, _, rest = args.env.partition("/")
    one_to_one = args.num_envs == args.updates_per_block == 1
    if not one_to_one or suite == "dm_control" or (args.accelerator != "cpu" and torch.cuda.is_available()):
        return None
    env_id = rest if suite == "gymnasium" else "".join(word.capitalize() for word in rest.split("_")) + "-v5"
    critics = [plain_critic(sac, member) for member in range(sac.critic.members)]
    return PlainLoop(PlainSAC(sac, critics), env_id, args.batch_size, 1_000_000, warmup_of(args))


def warmup_of(args: argparse.Namespace) -> int:
    """Random steps before the first update."""
    return min(5000, max(args.batch_size, args.steps))


def time_updates(args: argparse.Namespace, sac: Any) -> dict[str, Any]:
    """Milliseconds of one update (critics in one batched product, actor, temperature, target) on a fixed minibatch."""
    none = torch.zeros(0)
    minibatch = noise((args.batch_size,), sac.sizes.obs, sac.sizes.action, torch.default_generator)
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


def _synchronise(trainer: Any) -> Callable[[], None]:
    """A function that waits for what was launched on the Trainer's device."""
    return torch.cuda.synchronize if trainer.strategy.root_device.type == "cuda" else _nothing


def _nothing() -> None:
    pass
