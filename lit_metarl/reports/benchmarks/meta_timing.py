"""Stopwatches of the meta-learning benchmark: an iteration part by part, bare physics, algorithms, collections."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import seed_everything

from lit_metarl.algorithms import FOMAML, LVC, MAML, SGMRL, TMAML, TRPOMAML, ProMP, ProMPTayPO2
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.envs.base import one_torch_thread
from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.nn import ActionDependentLinear, GaussianMLP, MetaLearned
from lit_metarl.optim import CrossTask, LeaveOneOut, LinearisedLeaveOneOut
from lit_metarl.reports.arguments import blame
from lit_metarl.reports.benchmarks.physics import BarePhysics
from lit_metarl.reports.benchmarks.timing import META_PARTS, OTHER, Clock, forget_peak, resident
from lit_metarl.reports.benchmarks.training import describe, fit, quiet_threads

COLLECTION_TASKS = (2, 20, 200)  # times --trajectories: the environments whose steps should cost the same
MEMORY_ITERATIONS = 2  # the second collects while the first one's data is still held
SMALL = 10  # a collection has at least 1/10 of the largest one's steps, repeated if need be


@dataclass(frozen=True)
class Measured:
    """Seconds of one round.

    Attributes:
        env_steps: of the meta-iteration, those after an episode's end not counted.
        parts: the iteration, by part of :data:`~lit_metarl.reports.benchmarks.timing.META_PARTS`.
        bare: bare physics of as many batch steps.
        own: adaptation and update of each algorithm on the iteration's data.
        collection: a single environment step of collecting, by number of environments.
    """

    env_steps: int
    parts: dict[str, float]
    bare: float
    own: dict[str, float]
    collection: dict[int, float]

    @property
    def iteration(self) -> float:
        """Seconds of the whole meta-iteration."""
        return sum(self.parts.values())

    def iteration_of(self, name: str) -> float:
        """Seconds of the meta-iteration with adaptation and update of algorithm ``name``."""
        return self.iteration - self.parts["adaptation"] - self.parts["update"] + self.own[name]


class Rounds:
    """Hooks of a Trainer whose epochs are one meta-iteration each: after each all the rest of a round is measured.

    Args:
        data: its ``TrajectoryDataModule``.
        algorithms: modules to compare, with parameters of the same names and shapes as the one in training.
        simulators: ``TaskSimulator`` of the sizes to compare.
    """

    def __init__(self, data: Any, algorithms: Mapping[str, Any], simulators: Sequence[Any]) -> None:
        self.data = data
        self.algorithms = algorithms
        self.simulators = simulators
        self.measured: list[Measured] = []
        self.generator = torch.Generator().manual_seed(0)

    def hooks(self) -> dict[str, Callable[..., None]]:
        """The hooks by name, for ``LambdaCallback``."""
        return {
            "setup": _log_every_iteration,
            "on_train_epoch_start": self.start,
            "on_train_batch_start": self.remember,
            "on_train_epoch_end": self.end,
        }

    def start(self, trainer: Any, module: Any) -> None:
        """Start the clock of an iteration that begins."""
        self.clock = wrap_parts(self.data, module)

    def remember(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the algorithms will get: the data, and the parameters that it was collected with."""
        self.batch = batch
        self.state = {name: value.clone() for name, value in module.state_dict().items()}

    def end(self, trainer: Any, module: Any) -> None:
        """Measure the rest of the round after its iteration, in the other order every other time."""
        self.clock.unwrap()
        order = slice(None, None, -1 if len(self.measured) % 2 else 1)
        largest = max(simulator.num_tasks for simulator in self.simulators)
        rounds = self.batch.rounds
        self.measured.append(
            Measured(
                env_steps=sum(int(trajectories.mask.sum()) for trajectories in rounds),
                parts=self.clock.seconds,
                bare=time_bare(self.data.simulator, rounds),
                own={n: time_own(self.algorithms[n], self.state, rounds) for n in list(self.algorithms)[order]},
                collection={
                    s.env.num_envs: time_collection(s, module, self.generator, largest // s.num_tasks // SMALL or 1)
                    for s in self.simulators[order]
                },
            )
        )


class Memory:
    """Hooks of a Trainer that read the resident memory, GiB: before the first iteration, and at its peak.

    NaN where the system has no ``/proc``. The peak is that since the first iteration began.
    """

    baseline = peak = float("nan")

    def hooks(self) -> dict[str, Callable[..., None]]:
        """The hooks by name, for ``LambdaCallback``."""
        return {
            "setup": _log_every_iteration,
            "on_train_epoch_start": self.start,
            "on_train_epoch_end": self.end,
        }

    def start(self, trainer: Any, module: Any) -> None:
        """Read the memory before the first iteration."""
        if trainer.current_epoch == 0:
            forget_peak()
            self.baseline = resident("VmRSS")

    def end(self, trainer: Any, module: Any) -> None:
        """Read the peak after an iteration."""
        self.peak = resident("VmHWM")


def wrap_parts(data: Any, module: Any) -> Clock:
    """A clock of every part of an iteration; some hundred readings in seconds, so it costs nothing."""
    clock = Clock(lambda: None, META_PARTS)
    env = data.simulator.env
    clock.wrap(data, "next_batch", "collecting")
    for name in ("step", "reset"):
        clock.wrap(env, name, "environments")
    clock.wrap(env.simulation, "step", "physics")
    clock.wrap(module, "sample_actions", "acting")
    clock.wrap(module, "adapt", "adaptation")
    clock.wrap(module, "training_step", "update")
    clock.wrap(module, "finish_step", OTHER)
    return clock


def time_bare(simulator: Any, rounds: Sequence[Any]) -> float:
    """Seconds of ``mujoco.batch`` for the steps and the actions of ``rounds``, from new states of the same kind."""
    bare, seconds = BarePhysics(simulator.env), 0.0
    for trajectories in rounds:
        steps = int(trajectories.mask.amax((0, 1)).sum())
        action = np.clip(simulator.action_scale * trajectories.action.flatten(0, 1)[:, :steps].double().numpy(), -1, 1)
        controls = np.ascontiguousarray(bare.native(action).swapaxes(0, 1))
        bare.begin()
        with one_torch_thread():
            seconds += bare.run(controls)
    return seconds


def time_own(module: Any, state: Mapping[str, Any], rounds: Sequence[Any]) -> float:
    """Seconds of what is ``module``'s own: its adaptations and its update, as in training but without a Trainer."""
    module.load_state_dict(module.state_dict() | dict(state))  # a baseline that learns has parameters besides
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers
    adaptations = [module.before_adaptation(rounds[0].context)]
    began = time.perf_counter()
    for trajectories in rounds[:-1]:
        adaptations.append(module.adapt(adaptations[-1], trajectories))
    module.outer.update(module.iteration(rounds, adaptations))
    module.update_baseline(rounds)
    return time.perf_counter() - began


def time_collection(simulator: Any, module: Any, generator: torch.Generator, times: int) -> float:
    """Seconds per environment step of ``times`` rounds, with the policy before adaptation."""
    adaptation = module.before_adaptation(simulator.context)
    began, steps = time.perf_counter(), 0
    for _ in range(times):
        steps += int(simulator.run(lambda obs: module.sample_actions(adaptation, obs, generator)).mask.sum())
    return (time.perf_counter() - began) / steps


class Result(NamedTuple):
    """Everything that the benchmark measures, with its settings and the machine."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    memory: dict[str, Memory]  # by algorithm
    measured: list[Measured]


def measure(args: argparse.Namespace) -> Result:
    """Measure everything: memory first, on iterations alone, then the rounds.

    Raises:
        ReportError, ConfigError, EnvError: the tasks cannot be built or trained on.
        DivergenceError: adaptation left the finite numbers.
    """
    with quiet_threads(args.threads):
        return _measure(args)


def _measure(args: argparse.Namespace) -> Result:
    seed_everything(0, verbose=False)
    with blame("--robot"):
        family = Direction(args.robot, max_episode_steps=args.horizon, threads=args.threads or 0)
    described = describe(args)
    data = TrajectoryDataModule(family, args.tasks, args.trajectories, epoch_iterations=1)
    sizes: dict[str, Any] = {"obs_dim": data.obs_dim, "action_dim": data.action_dim, "policy": GaussianMLP(args.hidden)}
    maml, memory = MAML(**sizes), {"MAML": Memory(), "MAML-TRPO": Memory()}
    for module, its in zip((maml, TRPOMAML(**sizes)), memory.values(), strict=True):
        fit(args, module, MEMORY_ITERATIONS, its.hooks(), datamodule=data)
    simulators = [
        TaskSimulator(family, tasks, args.trajectories, 0, data.action_scale, False) for tasks in COLLECTION_TASKS
    ]
    rounds = Rounds(data, _algorithms(sizes), simulators)
    fit(args, maml, args.rounds + 1, rounds.hooks(), datamodule=data)
    return Result(described["settings"], described["machine"], memory, rounds.measured[1:])  # the first one warms up


def _algorithms(sizes: dict[str, Any]) -> dict[str, Any]:
    """Modules to compare, by the names of :data:`~lit_metarl.reports.benchmarks.meta.COMPARISONS`."""
    return {
        "MAML": MAML(**sizes),
        "MAML-TRPO": TRPOMAML(**sizes),
        "FO-MAML": FOMAML(**sizes),
        "SG-MRL, CrossTask": SGMRL(**sizes, correction=CrossTask()),
        "SG-MRL, LeaveOneOut": SGMRL(**sizes, correction=LeaveOneOut()),
        "SG-MRL, LinearisedLeaveOneOut": SGMRL(**sizes, correction=LinearisedLeaveOneOut()),
        "LVC": LVC(**sizes),
        "TMAML": TMAML(**sizes),
        "TMAML, action-dependent": TMAML(**sizes, baseline=ActionDependentLinear()),
        "TMAML, meta": TMAML(**sizes, baseline=MetaLearned()),
        "ProMP": ProMP(**sizes),
        "ProMP-TayPO-2": ProMPTayPO2(**sizes),
    }


def _log_every_iteration(trainer: Any, module: Any, stage: str) -> None:
    """As in configs/base_meta.yaml."""
    trainer.log_every_n_steps = 1
