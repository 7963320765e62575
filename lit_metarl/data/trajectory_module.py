"""On-policy experience of many tasks, before and after adaptation."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_metarl.data.experience import cpu_generator
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.streams import Stream
from lit_metarl.envs.base import Tasks, load_streams, streams_state
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.processes import sum_over_processes
from lit_metarl.types import MetaBatch, State, require


class TrajectoryDataModule(TaskDataModule):
    """Samples tasks, collects with θ, adapts, collects with θ', … and yields one :class:`MetaBatch` per iteration.

    All tasks × trajectories are stepped in one simulator batch, and the adapted policies are evaluated together, so
    an iteration costs little more than the simulator. The policy is the current one: lag 0.

    Args:
        env: the simulator and its distribution of tasks.
        num_tasks: B, tasks of an iteration, all processes together.
        trajectories: N, episodes of a task in each round.
        action_scale: the simulator gets ``clip(action_scale · action, −1, 1)``. The ProMP family of papers uses 0.1:
            policy actions in [-10, 10] span the simulator's bounds.
        train_tasks: draw the tasks of every iteration, with replacement, from that many fixed ones; None draws new
            ones from the distribution each time.
        epoch_iterations: iterations of an epoch (evaluation and checkpoint follow each epoch).
        tasks: everything else, as of :class:`~lit_metarl.data.meta_evaluation.TaskDataModule`.

    Raises:
        ConfigError: a value that cannot work, with the key and the remedy.
    """

    def __init__(
        self,
        env: TaskFamily,
        num_tasks: int = 20,
        trajectories: int = 20,
        action_scale: float = 0.1,
        train_tasks: int | None = None,
        epoch_iterations: int = 10,
        **tasks: Any,
    ) -> None:
        require(epoch_iterations >= 1, "data.epoch_iterations", epoch_iterations, "it must be at least 1")
        require(train_tasks is None or train_tasks >= 1, "data.train_tasks", train_tasks, "at least 1, or null")
        super().__init__(env, num_tasks, trajectories, action_scale=action_scale, **tasks)
        self.train_tasks = train_tasks
        self.epoch_iterations = epoch_iterations

    @property
    def batches_per_epoch(self) -> int:
        """Iterations of an epoch."""
        return self.epoch_iterations

    # Training ------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Simulators and streams of this process."""
        self.simulator = self.simulator_of(self.split_counts["num_tasks"] // self.world_size, Stream.TRAIN_ENV)
        self.task_stream = np.random.default_rng(self.stream_seed(Stream.TRAIN_TASKS))
        self.generator = cpu_generator(self.stream_seed(Stream.COLLECT))
        self.env_steps = 0

    def next_batch(self) -> MetaBatch:
        """Sample tasks, collect K + 1 rounds with adaptation between them."""
        self.simulator.set_tasks(self._sample_train_tasks())
        rounds, adaptations = self.collect(self.simulator, self.adaptation_steps, self.generator)
        steps = sum(int(r.mask.sum()) for r in rounds)
        self.env_steps += sum_over_processes(steps, self.policy_device)
        return MetaBatch(tuple(rounds), tuple(adaptations), self.env_steps)

    def _sample_train_tasks(self) -> Tasks:
        count = self.simulator.num_tasks
        if self.train_tasks is None:
            return self.env_factory.sample(count, self.task_stream)
        # Every process draws from the same fixed tasks.
        pool = self.env_factory.sample(self.train_tasks, np.random.default_rng(self.seed))
        chosen = self.task_stream.integers(self.train_tasks, size=count)
        return {name: np.asarray(rows)[chosen] for name, rows in pool.items()}

    # Resume --------------------------------------------------------------------------------------------------------

    def experience_state(self) -> State:
        """Simulators, streams and step count."""
        return {
            "simulator": self.simulator.state_dict(),
            "task_stream": streams_state([self.task_stream]),
            "generator": self.generator.get_state(),
            "env_steps": self.env_steps,
            "shape": [self.simulator.num_tasks, self.trajectories],
        }

    def load_experience_state(self, state: State) -> None:
        """Inverse of :meth:`experience_state`."""
        shape = [self.simulator.num_tasks, self.trajectories]
        require(
            state["shape"] == shape,
            "data.num_tasks, data.trajectories",
            shape,
            f"the checkpoint's simulators are {state['shape']} tasks × trajectories per process; use those numbers",
        )
        self.simulator.load_state_dict(state["simulator"])
        load_streams([self.task_stream], state["task_stream"])
        self.generator.set_state(state["generator"])
        self.env_steps = state["env_steps"]

    def teardown(self, stage: str) -> None:
        """Release the simulators."""
        if stage == "fit":
            self.simulator.close()
