"""One contract of everything that a checkpoint holds: saved, written, read and loaded, it goes on bit for bit.

Every class of the package that has ``state_dict`` and ``load_state_dict`` of its own is in ``CASES``; a test fails if
one is missing. Environments are in ``envs/test_contract.py``. What a single class adds to the contract (what it
refuses, when it cannot go on) is tested beside it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from meta_cases import attach
from resume_cases import Case, Trace, assert_goes_on

import lit_metarl
from lit_metarl.algorithms import MAML, PEARL, SAC, Algorithm
from lit_metarl.callbacks import RunCheckpoint
from lit_metarl.callbacks.adaptation import AdaptationResults
from lit_metarl.data import ReplayDataModule, TaskReplayDataModule, TrajectoryDataModule
from lit_metarl.data.collector import Collector
from lit_metarl.data.experience import ExperienceDataModule, Loader
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.replay import Replay
from lit_metarl.data.streams import Stream, derive_seed, global_state, load_global_state, seed_global
from lit_metarl.data.task_replay import TaskReplay
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.envs.base import BatchedEnv
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.navigation import Corners
from lit_metarl.nn import EnsembleCriticMLP, GaussianMLP, TanhGaussianMLP
from lit_metarl.types import ConfigError, MetaEpisodes, Transition

# Experience --------------------------------------------------------------------------------------------------------


def step_collector(collector: Collector, steps: int, seed: int) -> Trace:
    generator = torch.Generator().manual_seed(seed)
    shape = (collector.env.num_envs, collector.env.spec.action_dim)
    return [*(collector.step(lambda obs: 2 * torch.rand(shape, generator=generator) - 1) for _ in range(steps))]


def insert(replay: Replay, count: int, first: int) -> None:
    for n in range(first, first + count):
        rows = torch.full((3, 2), n) + torch.arange(3.0)[:, None]
        ends = rows[:, 0] % 2 == 0
        replay.insert(Transition(rows, -rows[:, :1], rows[:, 0], rows + 1, ends, ~ends))


def replay_after(replay: Replay) -> Trace:
    drawn = replay.sample(torch.Generator().manual_seed(0), torch.tensor([3.0, 9.0], dtype=torch.float64), 16)
    insert(replay, 2, 100)
    return [drawn, replay.size, replay.position, [field[: replay.size] for field in replay.storage]]


def insert_tasks(replay: TaskReplay, count: int, first: int) -> None:
    for n in range(first, first + count):
        rows = torch.full((3, 2), n) + torch.arange(3.0)[:, None]
        ends = rows[:, 0] % 2 == 0
        replay.insert(n % 2, Transition(rows, -rows[:, :1], rows[:, 0], rows + 1, ends, ~ends))


def task_replay_after(replay: TaskReplay) -> Trace:
    drawn = replay.sample(torch.Generator().manual_seed(0), torch.tensor([[0, 1], [1, 1]]), 16)
    insert_tasks(replay, 3, 100)
    kept = [[field[task, : replay.size[task]] for field in replay.storage] for task in range(2)]
    return [drawn, replay.size.clone(), replay.position.clone(), kept]


def run_tasks(simulator: TaskSimulator, seed: int) -> Trace:
    choose = simulator.random_policy(torch.Generator().manual_seed(seed))
    simulator.set_tasks(simulator.family.sample(simulator.num_tasks, np.random.default_rng(seed)))
    return list(simulator.run(choose))


def in_training(datamodule: ExperienceDataModule, module: Algorithm) -> ExperienceDataModule:
    """As within ``fit``, without its loop."""
    datamodule.trainer = attach(module).trainer
    datamodule.trainer.state.fn = TrainerFn.FITTING
    datamodule.setup("fit")
    return datamodule


def replay_datamodule(_: int) -> ExperienceDataModule:
    torch.manual_seed(0)
    settings = {"batch_size": 4, "capacity": 30, "warmup_steps": 5, "epoch_steps": 10, "eval_episodes": 2}
    env = MuJoCo("half_cheetah", max_episode_steps=7, threads=1)
    datamodule = ReplayDataModule(env, num_envs=2, updates_per_block=3, **settings)
    return in_training(datamodule, SAC(17, 6, TanhGaussianMLP([4]), EnsembleCriticMLP([4])))


def trajectory_datamodule(_: int) -> ExperienceDataModule:
    torch.manual_seed(0)
    settings = {"num_tasks": 3, "trajectories": 2, "eval_tasks": 2, "test_tasks": 2}
    datamodule = TrajectoryDataModule(Corners(max_episode_steps=6, reward_kind="dense"), **settings)
    return in_training(datamodule, MAML(2, 2, policy=GaussianMLP((4,))))


def task_replay_datamodule(_: int) -> ExperienceDataModule:
    torch.manual_seed(0)
    numbers = {"train_tasks": 4, "num_tasks": 3, "meta_batch": 2, "eval_tasks": 2, "test_tasks": 2}
    steps = {"initial_steps": 6, "prior_steps": 6, "extra_steps": 12}
    draws = {"batch_size": 5, "context_size": 4, "capacity": 40, "updates_per_iteration": 4, "updates_per_block": 2}
    datamodule = TaskReplayDataModule(Corners(max_episode_steps=6, reward_kind="dense"), **numbers, **steps, **draws)
    return in_training(datamodule, PEARL(2, 2, actor=TanhGaussianMLP([4]), critic=EnsembleCriticMLP([4])))


def batches(datamodule: ExperienceDataModule, number: int = 3) -> Trace:
    """Training, an evaluation, and what the global streams give: the DataModule keeps their state too."""
    loader = iter(datamodule.train_dataloader())
    seen = [next(loader) for _ in range(number + 1)]
    return [seen, datamodule.evaluate(), global_draws()]


def load_before_training(datamodule: ExperienceDataModule, state: dict[str, Any]) -> None:
    """In the order of a Trainer."""
    datamodule.setup("fit")
    datamodule.load_state_dict(state)


# Callbacks and streams ---------------------------------------------------------------------------------------------


def evaluation(number: int) -> MetaEpisodes:
    returns = torch.full((2, 3, 4), float(number))
    tasks = {"test": {"goal": torch.full((3, 2), -1.0 * number)}}
    return MetaEpisodes({"test": returns}, tasks, {"test": returns[0] + 1}, {}, 20.0)


def score(checkpoint: RunCheckpoint, number: int) -> None:
    checkpoint.best_score = 1.5 - number


class GlobalStreams:
    """The functions of :mod:`lit_metarl.data.streams` in the form of the contract."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    state_dict = staticmethod(global_state)
    load_state_dict = staticmethod(load_global_state)


def global_draws() -> Trace:
    normal = np.random.normal(size=3), random.gauss(0, 1)  # noqa: NPY002 - odd, so that one of a pair is left
    return [random.random(), *normal, torch.randn(3), torch.rand(2)]


CASES: dict[type, dict[str, Case]] = {
    Collector: {
        "within an episode": Case(
            lambda seed: Collector(MuJoCo("half_cheetah", max_episode_steps=5, threads=1).make(3, seed)),
            lambda collector, number: step_collector(collector, 7 + number, number),
            lambda collector: [*step_collector(collector, 9, 99), *collector.pop_finished()],
        ),
    },
    Replay: {
        f"{count} of 10": Case(
            lambda seed: Replay(10, 2, 1),
            lambda replay, number, count=count: insert(replay, count // 3 if number == 0 else 5, 10 * number),
            replay_after,
        )
        for count in (3, 9, 12)
    },
    TaskReplay: {
        f"{count} of 10": Case(
            lambda seed: TaskReplay(2, 10, 2, 1),
            lambda replay, number, count=count: insert_tasks(replay, count if number == 0 else 5, 10 * number),
            task_replay_after,
        )
        for count in (2, 9)
    },
    TaskSimulator: {
        "context": Case(
            lambda seed: TaskSimulator(Corners(max_episode_steps=6), 3, 2, seed, 0.1, oracle_context=True),
            run_tasks,
            lambda simulator: run_tasks(simulator, 99),
        ),
    },
    Loader: {
        "": Case(
            lambda seed: Loader(2, lambda: 7), lambda *_: None, lambda loader: [next(iter(loader))], forgetful=True
        )
    },
    ReplayDataModule: {"": Case(replay_datamodule, batches, batches, load=load_before_training)},
    TaskReplayDataModule: {
        f"block {number}": Case(
            task_replay_datamodule,
            lambda datamodule, other, number=number: batches(datamodule, number + other),
            batches,
            load=load_before_training,
        )
        for number in (2, 3)  # within an iteration, and at its end
    },
    TrajectoryDataModule: {"": Case(trajectory_datamodule, batches, batches, load=load_before_training)},
    AdaptationResults: {
        "": Case(
            lambda seed: AdaptationResults(),
            lambda results, number: results.on_validation_batch_end(None, None, None, evaluation(number)),
            lambda results: list(results._last or ()),
        ),
        "before the first": Case(
            lambda seed: AdaptationResults(),
            lambda results, number: (
                results.on_validation_batch_end(None, None, None, evaluation(number)) if number else None
            ),
            lambda results: [results._last],
            forgetful=True,
        ),
    },
    RunCheckpoint: {"": Case(lambda seed: RunCheckpoint(), score, lambda checkpoint: [checkpoint.best_score])},
    GlobalStreams: {
        "": Case(
            GlobalStreams,
            lambda streams, number: (seed_global(streams.seed), global_draws())[0],
            lambda streams: global_draws(),
        )
    },
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{cls.__name__}-{name}".strip("-")) for cls in CASES for name, case in CASES[cls].items()],
)
def test_it_goes_on_bit_for_bit(case: Case) -> None:
    assert_goes_on(case)


def test_outside_of_training_a_datamodule_has_no_state() -> None:
    alone = TrajectoryDataModule(Corners(max_episode_steps=6), seed=3)
    assert (alone.rank, alone.world_size) == (0, 1)
    assert alone.stream_seed(Stream.COLLECT) == derive_seed(3, 0, Stream.COLLECT)
    looking = trajectory_datamodule(0)
    looking.trainer.state.fn = TrainerFn.VALIDATING
    for datamodule in (alone, looking):
        assert datamodule.state_dict() == {}
        datamodule.load_state_dict({"schema": "another"})  # the checkpoint is looked at, not gone on with
    looking.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ConfigError, match="checkpoint schema = 'another'"):
        looking.load_state_dict({"schema": "another"})


def resumable_classes() -> set[type]:
    """All of the package that can be made and whose state is of our own making."""
    found = set()
    for name in ["lit_metarl", *(module.name for module in pkgutil.walk_packages(lit_metarl.__path__, "lit_metarl."))]:
        for cls in vars(importlib.import_module(name)).values():
            if inspect.isclass(cls) and cls.__module__ == name and not inspect.isabstract(cls):
                methods = [getattr(cls, method, None) for method in ("state_dict", "load_state_dict")]
                if any(getattr(method, "__module__", "").startswith("lit_metarl.") for method in methods):
                    found.add(cls)
    return found


def test_every_resumable_class_is_here() -> None:
    # DataModules of Lightning's are not abcs, but these are not to be made either
    bases = {ExperienceDataModule, TaskDataModule}
    found = {cls for cls in resumable_classes() if not issubclass(cls, BatchedEnv)}
    assert found - bases == set(CASES) - {GlobalStreams}
