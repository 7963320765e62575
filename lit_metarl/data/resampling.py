"""Meta-batches of the same tasks and the same parameters, drawn again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lit_metarl.data.experience import cpu_generator
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.rounds import collect_rounds
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.types import MetaPolicy, Trajectories


class Resampler:
    """Draws meta-batches of ``B`` fixed tasks in simulators and from streams of its own: training sees none of it.

    Args:
        datamodule: whose simulator, tasks and scale of actions are taken; it needs no Trainer.
        num_tasks: B.
        sizes: N of each of the K + 1 rounds.
        seed: of the tasks.
        stream: besides, of simulators and actions, so that the same tasks can have other data.
    """

    def __init__(
        self, datamodule: TaskDataModule, num_tasks: int, sizes: Sequence[int], seed: int, stream: int
    ) -> None:
        env_seed, action_seed = (int(x) for x in np.random.SeedSequence((seed, stream)).generate_state(2))
        tasks = datamodule.env_factory.sample(num_tasks, np.random.default_rng(seed))
        self._simulators = {
            size: TaskSimulator(
                datamodule.env_factory,
                num_tasks,
                size,
                env_seed + size,  # rounds of different sizes are no parts of each other
                datamodule.action_scale,
                datamodule.oracle_context,
            )
            for size in sorted(set(sizes))
        }
        for simulator in self._simulators.values():
            simulator.set_tasks(tasks)
        self._sizes = tuple(sizes)
        self._generator = cpu_generator(action_seed)

    def draw(self, policies: Mapping[str, MetaPolicy], device: torch.device) -> dict[str, list[Trajectories]]:
        """K + 1 rounds of every policy, on the CPU, all from the same streams: where they act alike, the same data.

        Policies that only differ in how they adapt have the same first round.
        """
        began = {size: simulator.state_dict() for size, simulator in self._simulators.items()}
        stream, rounds = self._generator.get_state(), {}
        for name, policy in policies.items():
            for size, simulator in self._simulators.items():
                simulator.load_state_dict(began[size])
            self._generator.set_state(stream)
            in_order = [self._simulators[size] for size in self._sizes]
            rounds[name], _ = collect_rounds(policy, device, in_order, self._generator)
        return rounds

    def close(self) -> None:
        """Release the simulators."""
        for simulator in self._simulators.values():
            simulator.close()
