"""Off-policy experience of many tasks: collect by inference, store by task, replay."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from lit_metarl.data.experience import cpu_generator
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.rounds import act_round, adapt
from lit_metarl.data.streams import Stream
from lit_metarl.data.task_replay import TaskReplay, as_episodes, transitions_of
from lit_metarl.data.trajectories import TaskSimulator, horizon_of
from lit_metarl.envs.base import Tasks, load_streams, streams_state
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.processes import sum_over_processes
from lit_metarl.types import State, TaskReplayBlock, Trajectories, Transition, require

log = logging.getLogger(__name__)

MAX_DRAWS = 100  # of a pool of training tasks


class TaskReplayDataModule(TaskDataModule):
    """Replays of fixed training tasks, and minibatches of them stacked ``[U, B, M, ...]`` (Rakelly et al. 2019).

    An iteration draws ``num_tasks`` training tasks, with replacement, and steps them together in one simulator batch,
    in three phases. In the *prior* phase the policy acts every episode with what it knows before any data. In the
    *posterior* and the *extra* phase it does so in the first episode only, as in the released code; after each episode
    the task is inferred anew from ``context_size`` transitions of the task's *encoder buffer*. This is emptied when a
    task is drawn, and filled by the first two phases: contexts are recent, and mostly of a policy that explored. They
    are drawn with replacement, so one larger than this buffer's content counts transitions several times. A task that
    is drawn twice in an iteration keeps what both have collected. The task's replay keeps everything. Then
    ``updates_per_iteration`` updates follow, each of ``meta_batch`` tasks drawn with replacement; a batch is a block of
    ``updates_per_block`` = U of them.

    Before the first iteration every training task is explored with the prior. A phase ends after the episode with which
    every task has had its steps. Held-out tasks are drawn from the same distribution by other streams, hence are others
    if it is continuous; of a family with few tasks (two directions) they are the same. There a pool of training tasks
    that are all the same is drawn again. Each process has its own part of the training tasks.

    Args:
        env: the simulator and its distribution of tasks.
        train_tasks: training tasks, drawn once from the distribution, all processes together.
        num_tasks: tasks of an iteration, all processes together.
        meta_batch: B, tasks of an update, all processes together.
        batch_size: M, transitions of each task in an update.
        context_size: C, transitions that a task is inferred from in training.
        capacity: transitions kept of each task.
        initial_steps: steps in each training task before the first iteration.
        prior_steps: steps of an iteration in each of its tasks with what is known before any data.
        posterior_steps: with what was inferred; for the encoder buffer, too.
        extra_steps: with what was inferred; for the replay alone.
        updates_per_iteration: updates after each collection.
        updates_per_block: U; a larger one pays the Trainer's cost per batch less often.
        epoch_iterations: iterations of an epoch (evaluation and checkpoint follow each epoch).
        shaped_rewards: train on the family's ``shaped_reward``; contexts keep what the environment pays.
        trajectories: N, episodes of a task in each round of an evaluation.
        tasks: everything else, as of :class:`~lit_metarl.data.meta_evaluation.TaskDataModule`.

    Raises:
        ConfigError: a value that cannot work, with the key and the remedy.
    """

    expected_policy = (TaskDataModule.expected_policy[0], "meta-learners from replay, such as PEARL")

    def __init__(
        self,
        env: TaskFamily,
        train_tasks: int = 100,
        num_tasks: int = 5,
        meta_batch: int = 16,
        batch_size: int = 256,
        context_size: int = 100,
        capacity: int = 1_000_000,
        initial_steps: int = 2000,
        prior_steps: int = 400,
        posterior_steps: int = 0,
        extra_steps: int = 600,
        updates_per_iteration: int = 2000,
        updates_per_block: int = 20,
        epoch_iterations: int = 1,
        shaped_rewards: bool = False,
        trajectories: int = 2,
        **tasks: Any,
    ) -> None:
        at_least_one = {
            "batch_size": batch_size,
            "context_size": context_size,
            "initial_steps": initial_steps,
            "updates_per_block": updates_per_block,
            "epoch_iterations": epoch_iterations,
        }
        for key, value in at_least_one.items():
            require(value >= 1, f"data.{key}", value, "it must be at least 1")
        for key, value in {
            "prior_steps": prior_steps,
            "posterior_steps": posterior_steps,
            "extra_steps": extra_steps,
        }.items():
            require(value >= 0, f"data.{key}", value, "it must not be negative")
        require(train_tasks >= 2, "data.train_tasks", train_tasks, "one task leaves nothing to infer; take 2 or more")
        fills = prior_steps + posterior_steps
        remedy = "they fill the encoder buffer, and contexts would be empty; take 1 or more"
        require(fills >= 1, "data.prior_steps + data.posterior_steps", fills, remedy)
        remedy = f"a replay must hold a minibatch and a context ({batch_size} and {context_size} transitions)"
        require(capacity >= max(batch_size, context_size), "data.capacity", capacity, remedy)
        remedy = f"an iteration is a whole number of blocks of {updates_per_block} updates"
        whole = updates_per_iteration >= 1 and updates_per_iteration % updates_per_block == 0
        require(whole, "data.updates_per_iteration", updates_per_iteration, remedy)
        shapes = type(env).shaped_reward is not TaskFamily.shaped_reward
        remedy = f"{type(env).__name__} has no shaped reward; set it false"
        require(shapes or not shaped_rewards, "data.shaped_rewards", shaped_rewards, remedy)
        super().__init__(env, num_tasks, trajectories, **tasks)
        # A phase is of whole episodes. Not refused: the released sparse point robot has a context of 1,024 for 1,000.
        horizon = horizon_of(self.spec)
        held = sum(-(-steps // horizon) * horizon for steps in (prior_steps, posterior_steps))
        if context_size > 2 * held:
            counted = (
                f"which fill the encoder buffer with {held} transitions, so each counts several times in a context"
            )
            log.warning("data.context_size = %d exceeds prior_steps and posterior_steps, %s", context_size, counted)
        shares = {"train_tasks": train_tasks, "meta_batch": meta_batch}
        for key, value in shares.items():
            require(value >= 1, f"data.{key}", value, "it must be at least 1")
        self.split_counts = dict(self.split_counts) | shares
        self.batch_size, self.context_size, self.capacity = batch_size, context_size, capacity
        self.initial_steps, self.prior_steps = initial_steps, prior_steps
        self.posterior_steps, self.extra_steps = posterior_steps, extra_steps
        self.updates_per_iteration, self.updates_per_block = updates_per_iteration, updates_per_block
        self.epoch_iterations = epoch_iterations
        self.shaped_rewards = shaped_rewards

    @property
    def batches_per_epoch(self) -> int:
        """Blocks of an epoch."""
        return self.epoch_iterations * (self.updates_per_iteration // self.updates_per_block)

    def setup(self, stage: str) -> None:
        """Build the simulators that ``stage`` needs, and say so if evaluation will see training tasks."""
        super().setup(stage)
        if stage != "fit":
            return
        known = set(_as_rows(self.pool))
        for share, tasks in {"eval_tasks": Stream.EVAL_TASKS, "test_tasks": Stream.TEST_TASKS}.items():
            count = self.split_counts[share] // self.world_size
            seen = sum(row in known for row in _as_rows(self.held_out(count, tasks, "test")))
            if seen:
                name = self.spec.name
                log.warning("data.env = %s: %d of %d tasks of data.%s are training tasks", name, seen, count, share)

    # Training ------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Simulators, tasks, empty replays and streams of this process."""
        own, chosen, self.own_meta_batch = (
            self.split_counts[key] // self.world_size for key in ("train_tasks", "num_tasks", "meta_batch")
        )
        # Every process draws all training tasks, and keeps its own.
        self.pool = self._draw_pool()
        self.tasks: Tasks = {name: np.asarray(rows)[self.rank :: self.world_size] for name, rows in self.pool.items()}
        self.simulator = self.simulator_of(chosen, Stream.TRAIN_ENV, trajectories=1)
        self.replay, self.encoder_buffer = (
            TaskReplay(own, self.capacity, self.obs_dim, self.action_dim) for _ in range(2)
        )
        self.task_stream = np.random.default_rng(self.stream_seed(Stream.TRAIN_TASKS))
        self.generator = cpu_generator(self.stream_seed(Stream.COLLECT))
        self.env_steps = 0
        self.explored = False  # whether every training task was, before the first iteration
        self.updates_left = 0  # of this iteration
        self.finished: list[Trajectories] = []

    def _draw_pool(self) -> Tasks:
        """Training tasks that are not all the same, as two draws of two directions often are."""
        number, stream = self.split_counts["train_tasks"], np.random.default_rng(self.seed)
        pools = (self.env_factory.sample(number, stream) for _ in range(MAX_DRAWS))
        pool = next((pool for pool in pools if len(set(_as_rows(pool))) > 1), None)
        remedy = f"{MAX_DRAWS} draws were all of one task, which leaves nothing to infer; take another data.env"
        require(pool is not None, "data.train_tasks", number, remedy)
        return pool or {}

    def next_batch(self) -> TaskReplayBlock:
        """Collect if an iteration begins, then draw the minibatches of one block."""
        if not self.explored:
            self._explore_all()
            self.explored = True
        if self.updates_left == 0:
            self._collect_iteration()
            self.updates_left = self.updates_per_iteration
        self.updates_left -= self.updates_per_block
        return self._draw_block()

    def _explore_all(self) -> None:
        everyone = np.arange(len(self.replay.size))
        simulator = self.simulator_of(len(everyone), Stream.INITIAL_ENV, trajectories=1)
        simulator.set_tasks(self.tasks)
        self._count(self._phase(simulator, everyone, self.initial_steps, infer=False, encode=True))
        simulator.close()

    def _collect_iteration(self) -> None:
        chosen = self.task_stream.integers(len(self.replay.size), size=self.simulator.num_tasks)
        self.simulator.set_tasks(self._rows(chosen))
        for task in chosen.tolist():
            self.encoder_buffer.clear(task)
        steps = self._phase(self.simulator, chosen, self.prior_steps, infer=False, encode=True)
        steps += self._phase(self.simulator, chosen, self.posterior_steps, infer=True, encode=True)
        self._count(steps + self._phase(self.simulator, chosen, self.extra_steps, infer=True, encode=False))

    def _phase(self, simulator: TaskSimulator, chosen: np.ndarray, steps: int, infer: bool, encode: bool) -> int:
        """Rounds of one episode of each of the tasks ``chosen`` until each has ``steps``; returns all steps made."""
        prior = adaptation = self.policy.before_adaptation(simulator.context)
        done = torch.zeros(len(chosen))
        while done.min() < steps:
            if infer and done.any():
                drawn = self.encoder_buffer.sample(self.generator, torch.from_numpy(chosen), self.context_size)
                adaptation = adapt(self.policy, self.policy_device, prior, as_episodes(drawn, simulator.context))
            trajectories = act_round(self.policy, self.policy_device, simulator, adaptation, self.generator)
            self._store(trajectories, chosen, encode)
            done += trajectories.mask.sum((1, 2))
        return int(done.sum())

    def _store(self, trajectories: Trajectories, chosen: np.ndarray, encode: bool) -> None:
        self.finished.append(trajectories)
        for task, transitions in zip(chosen.tolist(), transitions_of(trajectories), strict=True):
            if encode:
                self.encoder_buffer.insert(task, transitions)
            self.replay.insert(task, self._as_trained_on(transitions, task))

    def _as_trained_on(self, transitions: Transition, task: int) -> Transition:
        if not self.shaped_rewards:
            return transitions
        rows = self._rows(np.full(len(transitions.reward), task))
        reward = self.env_factory.shaped_reward(rows, transitions.obs.numpy(), transitions.next_obs.numpy())
        return transitions._replace(reward=torch.from_numpy(np.asarray(reward, dtype=np.float32)))

    def _rows(self, chosen: np.ndarray) -> Tasks:
        return {name: rows[chosen] for name, rows in self.tasks.items()}

    def _count(self, steps: int) -> None:
        self.env_steps += sum_over_processes(steps, self.policy_device)

    def _draw_block(self) -> TaskReplayBlock:
        shape = self.updates_per_block, self.own_meta_batch
        tasks = torch.randint(len(self.replay.size), shape, generator=self.generator)
        contexts = self.encoder_buffer.sample(self.generator, tasks, self.context_size)
        transitions = self.replay.sample(self.generator, tasks, self.batch_size)
        told = torch.zeros(*shape, 0)
        if self.oracle_context:
            told = torch.from_numpy(np.asarray(self.env_factory.context(self.tasks), dtype=np.float32))[tasks]
        returns = [trajectories.returns.flatten() for trajectories in self.finished]
        lengths = [trajectories.mask.sum(-1).long().flatten() for trajectories in self.finished]
        self.finished = []
        ended = (torch.cat(rows) if rows else torch.zeros(0) for rows in (returns, lengths))
        return TaskReplayBlock(transitions, contexts, told, self.env_steps, *ended)

    # Resume --------------------------------------------------------------------------------------------------------

    def experience_state(self) -> State:
        """Tasks, replays, simulators, streams and counters; between two blocks no episode waits to be counted."""
        return {
            "tasks": {name: torch.from_numpy(np.array(rows)) for name, rows in self.tasks.items()},
            "replay": self.replay.state_dict(),
            "encoder_buffer": self.encoder_buffer.state_dict(),
            "simulator": self.simulator.state_dict(),
            "task_stream": streams_state([self.task_stream]),
            "generator": self.generator.get_state(),
            "env_steps": self.env_steps,
            "explored": self.explored,
            "updates_left": self.updates_left,
            "num_tasks": self.simulator.num_tasks,
        }

    def load_experience_state(self, state: State) -> None:
        """Inverse of :meth:`experience_state`; the training tasks are the checkpoint's, whatever the seed."""
        own, saved = self.simulator.num_tasks, state["num_tasks"]
        remedy = f"the checkpoint's simulators are of {saved} tasks per process; use that number"
        require(own == saved, "data.num_tasks", own, remedy)
        left, block = state["updates_left"], self.updates_per_block
        remedy = f"{left} updates of the checkpoint's iteration are left; use a divisor of that number"
        require(left % block == 0, "data.updates_per_block", block, remedy)
        self.replay.load_state_dict(state["replay"])
        self.encoder_buffer.load_state_dict(state["encoder_buffer"])
        self.tasks = {name: rows.numpy().copy() for name, rows in state["tasks"].items()}
        self.simulator.load_state_dict(state["simulator"])
        load_streams([self.task_stream], state["task_stream"])
        self.generator.set_state(state["generator"])
        self.env_steps, self.explored, self.updates_left = state["env_steps"], state["explored"], left

    def teardown(self, stage: str) -> None:
        """Release the simulators."""
        if stage == "fit":
            self.simulator.close()


def _as_rows(tasks: Tasks) -> list[bytes]:
    """Every task as something that can be compared."""
    names = sorted(tasks)
    columns = [np.ascontiguousarray(tasks[name], dtype=np.float64) for name in names]
    return [b"".join(column[task].tobytes() for column in columns) for task in range(len(columns[0]))]
