"""On-policy experience of many tasks, before and after adaptation."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lit_metarl.data.experience import ExperienceDataModule, cpu_generator
from lit_metarl.data.streams import Stream
from lit_metarl.data.trajectories import ChooseActions, TaskSimulator, horizon_of
from lit_metarl.envs.base import Tasks, load_streams, streams_state
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.types import MetaBatch, MetaEpisodes, MetaPolicy, Params, State, Trajectories, require


class TrajectoryDataModule(ExperienceDataModule):
    """Samples tasks, collects with θ, adapts, collects with θ', … and yields one :class:`MetaBatch` per iteration.

    All tasks × trajectories are stepped in one simulator batch, and the adapted policies are evaluated together, so
    an iteration costs little more than the simulator. The policy is the current one: lag 0.

    Meta-evaluation runs on held-out tasks that are the same each time: their streams are not those of training, and
    start anew with every evaluation, so curves of one run and of runs with one seed are comparable point by point.

    Args:
        env: the simulator and its distribution of tasks.
        num_tasks: B, tasks of an iteration, all processes together.
        trajectories: N, episodes of a task in each round.
        adaptation_steps: K; an iteration collects K + 1 rounds.
        action_scale: the simulator gets ``clip(action_scale · action, −1, 1)``. The ProMP family of papers uses 0.1:
            policy actions in [-10, 10] span the simulator's bounds.
        oracle_context: append the task's context to the observation.
        train_tasks: draw the tasks of every iteration, with replacement, from that many fixed ones; None draws new
            ones from the distribution each time.
        epoch_iterations: iterations of an epoch (evaluation and checkpoint follow each epoch).
        seed: root of every random stream.
        eval_tasks: tasks of an evaluation, per split, all processes together.
        eval_adaptation_steps: adaptation steps of an evaluation; None for ``adaptation_steps``.
        test_tasks: the same for ``test``.
        video_size: width and height in pixels of the film that ``predict`` writes.

    Raises:
        ConfigError: a value that cannot work, with the key and the remedy.
    """

    env_factory: TaskFamily

    def __init__(
        self,
        env: TaskFamily,
        num_tasks: int = 20,
        trajectories: int = 20,
        adaptation_steps: int = 1,
        action_scale: float = 0.1,
        oracle_context: bool = False,
        train_tasks: int | None = None,
        epoch_iterations: int = 10,
        seed: int = 0,
        eval_tasks: int = 20,
        eval_adaptation_steps: int | None = None,
        test_tasks: int = 40,
        video_size: tuple[int, int] = (320, 240),
    ) -> None:
        for key, value in {
            "trajectories": trajectories,
            "adaptation_steps": adaptation_steps,
            "epoch_iterations": epoch_iterations,
        }.items():
            require(value >= 1, f"data.{key}", value, "it must be at least 1")
        require(action_scale > 0, "data.action_scale", action_scale, "it must be positive")
        require(train_tasks is None or train_tasks >= 1, "data.train_tasks", train_tasks, "at least 1, or null")
        require(
            eval_adaptation_steps is None or eval_adaptation_steps >= 0,
            "data.eval_adaptation_steps",
            eval_adaptation_steps,
            "0 or more steps, or null for as many as in training",
        )
        self.oracle_context = oracle_context
        shares = {"num_tasks": num_tasks, "eval_tasks": eval_tasks, "test_tasks": test_tasks}
        super().__init__(env, seed, shares, video_size)
        horizon_of(self.spec)
        self.trajectories = trajectories
        self.adaptation_steps = adaptation_steps
        self.action_scale = action_scale
        self.train_tasks = train_tasks
        self.epoch_iterations = epoch_iterations
        self._random: dict[str, dict[str, Tensor]] = {}  # what random actions reach, by share and split
        self.eval_adaptation_steps = adaptation_steps if eval_adaptation_steps is None else eval_adaptation_steps

    feeds = (MetaPolicy, "meta-learners, such as MAML")

    @property
    def policy(self) -> MetaPolicy:
        """The module in training."""
        return super().policy

    @property
    def context_dim(self) -> int:
        """C, entries that the oracle context appends to the observation; 0 without it."""
        if not self.oracle_context:
            return 0
        return self.env_factory.context(self.env_factory.sample(1, np.random.default_rng(0))).shape[1]

    @property
    def obs_dim(self) -> int:
        """O as the policy sees it, oracle context included."""
        return self.spec.obs_dim + self.context_dim

    @property
    def action_dim(self) -> int:
        """A; 1 for discrete actions."""
        return self.spec.action_dim

    @property
    def batches_per_epoch(self) -> int:
        """Iterations of an epoch."""
        return self.epoch_iterations

    # Training ------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Simulators and streams of this process."""
        self.simulator = self._make(self.shares["num_tasks"] // self.world_size, Stream.TRAIN_ENV)
        self.task_stream = np.random.default_rng(self.stream_seed(Stream.TRAIN_TASKS))
        self.generator = cpu_generator(self.stream_seed(Stream.COLLECT))
        self.env_steps = 0

    def _make(self, num_tasks: int, stream: Stream, trajectories: int | None = None) -> TaskSimulator:
        return TaskSimulator(
            self.env_factory,
            num_tasks,
            trajectories or self.trajectories,
            self.stream_seed(stream),
            self.action_scale,
            self.oracle_context,
        )

    def next_batch(self) -> MetaBatch:
        """Sample tasks, collect K + 1 rounds with adaptation between them."""
        self.simulator.set_tasks(self._sample_train_tasks())
        rounds = self._collect(self.simulator, self.adaptation_steps, self.generator)
        self.env_steps += self._sum_over_processes(sum(int(r.mask.sum()) for r in rounds))
        return MetaBatch(tuple(rounds), self.env_steps)

    def _sample_train_tasks(self) -> Tasks:
        count = self.simulator.num_tasks
        if self.train_tasks is None:
            return self.env_factory.sample(count, self.task_stream)
        # Every process draws from the same fixed tasks.
        pool = self.env_factory.sample(self.train_tasks, np.random.default_rng(self.seed))
        chosen = self.task_stream.integers(self.train_tasks, size=count)
        return {name: np.asarray(rows)[chosen] for name, rows in pool.items()}

    def _collect(self, simulator: TaskSimulator, steps: int, generator: torch.Generator) -> list[Trajectories]:
        """``steps + 1`` rounds, each after one more adaptation step."""
        device = self.trainer.lightning_module.device
        params: Params = self.policy.initial_params(simulator.num_tasks)
        rounds: list[Trajectories] = []
        for step in range(steps + 1):
            rounds.append(simulator.run(self._chooser(params, generator, device)))
            if step < steps:
                params = self._adapt(params, rounds[-1])
        return rounds

    def _adapt(self, params: Params, trajectories: Trajectories) -> Params:
        device = self.trainer.lightning_module.device
        return self.policy.adapt(params, Trajectories(*(x.to(device) for x in trajectories)))

    def _chooser(self, params: Params, generator: torch.Generator, device: torch.device) -> ChooseActions:
        def choose(obs: Tensor) -> tuple[Tensor, Tensor]:
            action, log_prob = self.policy.sample_actions(params, obs.to(device), generator)
            return self.finite_action(action), log_prob.cpu()

        return choose

    def _sum_over_processes(self, count: int) -> int:
        if self.world_size == 1:
            return count
        total = torch.tensor(count, device=self.trainer.lightning_module.device)
        dist.all_reduce(total)
        return int(total)

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self) -> MetaEpisodes:
        """Returns after 0 … K steps on the held-out tasks of every split."""
        return self._meta_evaluate("eval_tasks", Stream.EVAL_ENV, Stream.EVAL_TASKS, Stream.EVAL_COLLECT)

    def test(self) -> MetaEpisodes:
        """The same on the test tasks."""
        return self._meta_evaluate("test_tasks", Stream.TEST_ENV, Stream.TEST_TASKS, Stream.TEST_COLLECT)

    def _meta_evaluate(self, share: str, env: Stream, tasks: Stream, collect: Stream) -> MetaEpisodes:
        simulator = self._make(self.shares[share] // self.world_size, env)
        generator = cpu_generator(self.stream_seed(collect))
        result = MetaEpisodes({}, {}, {}, {})
        for split in self.env_factory.splits:
            sampled = self._held_out(simulator.num_tasks, tasks, split)
            simulator.set_tasks(sampled)
            rounds = self._collect(simulator, self.eval_adaptation_steps, generator)
            result.returns[split] = torch.stack([r.returns for r in rounds])
            result.tasks[split] = _as_tensors(sampled)
        simulator.close()
        if share not in self._random:
            self._random[share] = self._random_returns(simulator.num_tasks, env, tasks, collect)
        result.random.update(self._random[share])
        return result

    def _random_returns(self, num_tasks: int, env: Stream, tasks: Stream, collect: Stream) -> dict[str, Tensor]:
        """Of uniformly random actions on the same tasks, by split ``[B, N]``: the same in every evaluation."""
        simulator, generator = self._make(num_tasks, env), cpu_generator(self.stream_seed(collect))
        choose, returns = simulator.random_policy(generator), {}
        for split in self.env_factory.splits:
            simulator.set_tasks(self._held_out(num_tasks, tasks, split))
            returns[split] = simulator.run(choose).returns
        simulator.close()
        return returns

    def _held_out(self, num_tasks: int, tasks: Stream, split: str) -> Tasks:
        return self.env_factory.sample(num_tasks, np.random.default_rng(self.stream_seed(tasks)), split)

    def film(self) -> MetaEpisodes:
        """One test task, filmed before and after adaptation with the most likely actions."""
        filmed = self._make(1, Stream.PREDICT_ENV, trajectories=1)
        simulator = self._make(1, Stream.PREDICT_ENV)
        generator = cpu_generator(self.stream_seed(Stream.PREDICT_COLLECT))
        device = self.trainer.lightning_module.device
        sampled = self.env_factory.sample(1, np.random.default_rng(self.stream_seed(Stream.PREDICT_TASKS)), "test")
        period = max(1, round(1.0 / (30.0 * self.spec.frame_dt)))
        frames: dict[str, list[Tensor]] = {}
        returns = []
        params: Params = self.policy.initial_params(1)
        for step in range(self.eval_adaptation_steps + 1):
            pictures = frames[f"after_{step}_steps"] = []

            def shoot(t: int, pictures: list[Tensor] = pictures) -> None:
                if t % period == 0:
                    pictures.append(torch.from_numpy(filmed.env.render(0, *self.video_size).copy()))

            def act(obs: Tensor, params: Params = params) -> tuple[Tensor, Tensor]:
                return self.finite_action(self.policy.mode_actions(params, obs.to(device))), torch.zeros(1, 1)

            filmed.set_tasks(sampled)
            returns.append(filmed.run(act, shoot).returns)
            if step < self.eval_adaptation_steps:
                simulator.set_tasks(sampled)
                params = self._adapt(params, simulator.run(self._chooser(params, generator, device)))
        films = {name: torch.stack(pictures) for name, pictures in frames.items()}
        fps = 1.0 / (self.spec.frame_dt * period)
        filmed.close()
        simulator.close()
        return MetaEpisodes({"test": torch.stack(returns)}, {"test": _as_tensors(sampled)}, {}, films, fps)

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


def _as_tensors(tasks: Tasks) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(rows, dtype=np.float32)) for name, rows in tasks.items()}
