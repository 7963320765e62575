"""Stopwatches of the meta-learning benchmark: an iteration part by part, bare physics, algorithms, collections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from mujoco.batch import Batch

from lit_metarl.envs.base import one_torch_thread
from lit_metarl.reports.timing import OTHER, Clock

PARTS = {  # of a meta-iteration → what they are
    "physics": "mujoco.batch within the environments",
    "environments": "resets, observations, rewards, checks",
    "acting": "the tasks' policies, all at once",
    "collecting": "what is left of it: recording, scaling of actions, tasks",
    "adaptation": "between the rounds, baseline and advantages included",
    "update": "credits, meta-gradient and optimizer; baseline and advantages of all rounds",
    OTHER: "its loop, and logging",
}
SMALL = 10  # a collection has at least 1/10 of the largest one's steps, repeated if need be


class Spread(NamedTuple):
    """Of one number over the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Measured:
    """Seconds of one round.

    Attributes:
        env_steps: of the meta-iteration, those after an episode's end not counted.
        parts: the iteration, by part of :data:`PARTS`.
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
        """The whole meta-iteration."""
        return sum(self.parts.values())

    def iteration_of(self, name: str) -> float:
        """The same with adaptation and update of algorithm ``name``."""
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
        """For ``LambdaCallback``."""
        return {
            "setup": _log_every_iteration,
            "on_train_epoch_start": self.start,
            "on_train_batch_start": self.remember,
            "on_train_epoch_end": self.end,
        }

    def start(self, trainer: Any, module: Any) -> None:
        """An iteration begins."""
        self.clock = wrap_parts(self.data, module)

    def remember(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the algorithms will get: the data, and the parameters that it was collected with."""
        self.batch = batch
        self.state = {name: value.clone() for name, value in module.state_dict().items()}

    def end(self, trainer: Any, module: Any) -> None:
        """An iteration has ended: measure the rest of the round, in the other order every other time."""
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

    NaN where the system has no ``/proc``. The peak is the process's since its start.
    """

    baseline = peak = float("nan")

    def hooks(self) -> dict[str, Callable[..., None]]:
        """For ``LambdaCallback``."""
        return {
            "setup": _log_every_iteration,
            "on_train_epoch_start": self.start,
            "on_train_epoch_end": self.end,
        }

    def start(self, trainer: Any, module: Any) -> None:
        """An iteration begins."""
        if trainer.current_epoch == 0:
            self.baseline = resident("VmRSS")

    def end(self, trainer: Any, module: Any) -> None:
        """An iteration has ended."""
        self.peak = resident("VmHWM")


def resident(field: str) -> float:
    """``VmRSS``, now, or ``VmHWM``, at most so far, of this process in GiB; NaN where there is no ``/proc``."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith(f"{field}:")]
    return kib[0] / 2**20 if kib else float("nan")


def wrap_parts(data: Any, module: Any) -> Clock:
    """A clock of every part of an iteration; some hundred readings in seconds, so it costs nothing."""
    clock = Clock(lambda: None)
    clock.seconds = dict.fromkeys(PARTS, 0.0)
    env = data.simulator.env
    clock.wrap(data, "next_batch", "collecting")
    for name in ("step", "reset"):
        clock.wrap(env, name, "environments")
    clock.wrap(env._sim, "step", "physics")
    clock.wrap(module, "sample_actions", "acting")
    clock.wrap(module, "adapt", "adaptation")
    clock.wrap(module, "training_step", "update")
    clock.wrap(module, "record", OTHER)
    return clock


def time_bare(simulator: Any, rounds: Sequence[Any]) -> float:
    """Seconds of ``mujoco.batch`` for the steps and the actions of ``rounds``, from new states of the same kind."""
    env = simulator.env
    batch = Batch(env._sim.model, env.num_envs, env._sim.threads)
    ctrl = batch.bind("ctrl")
    low, high = env._sim.model.actuator_ctrlrange.T
    seconds = 0.0
    for trajectories in rounds:
        steps = int(trajectories.mask.amax((0, 1)).sum())
        action = np.clip(simulator.action_scale * trajectories.action.flatten(0, 1)[:, :steps].double().numpy(), -1, 1)
        native = np.ascontiguousarray(((high + low) / 2 + (high - low) / 2 * action).swapaxes(0, 1))
        env.reset()
        batch.state[...] = env._sim.state().numpy()
        with one_torch_thread():
            began = time.perf_counter()
            for row in native:
                ctrl[...] = row
                batch.step(nstep=env.robot.frame_skip)
            seconds += time.perf_counter() - began
    return seconds


def time_own(module: Any, state: Mapping[str, Any], rounds: Sequence[Any]) -> float:
    """Seconds of what is ``module``'s own: its adaptations and its update, as in training but without a Trainer."""
    module.load_state_dict(state)
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers[0]
    params = module.initial_params(len(rounds[0].mask))
    began = time.perf_counter()
    for trajectories in rounds[:-1]:
        params = module.adapt(params, trajectories)
    module.outer.update(module.problem(rounds))
    return time.perf_counter() - began


def time_collection(simulator: Any, module: Any, generator: torch.Generator, times: int) -> float:
    """Seconds per environment step of ``times`` rounds, with the policy before adaptation."""
    params = module.initial_params(simulator.num_tasks)
    began, steps = time.perf_counter(), 0
    for _ in range(times):
        steps += int(simulator.run(lambda obs: module.sample_actions(params, obs, generator)).mask.sum())
    return (time.perf_counter() - began) / steps


def spread(values: Iterable[float]) -> Spread:
    """Of one number per round; ratios are taken within a round."""
    listed = list(values)
    return Spread(median(listed), min(listed), max(listed))


def _log_every_iteration(trainer: Any, module: Any, stage: str) -> None:
    """As in configs/base_meta.yaml."""
    trainer.log_every_n_steps = 1
