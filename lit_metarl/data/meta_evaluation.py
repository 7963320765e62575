"""The base of DataModules of a distribution of tasks: adaptation, meta-evaluation and films."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_metarl.data.experience import ExperienceDataModule, cpu_generator
from lit_metarl.data.rounds import act_round, adapt, collect_rounds
from lit_metarl.data.streams import Stream
from lit_metarl.data.trajectories import TaskSimulator, horizon_of
from lit_metarl.envs.base import Tasks
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.types import Adaptation, MetaEpisodes, MetaPolicy, Trajectories, require, require_positive


class TaskDataModule(ExperienceDataModule):
    """Experience of many tasks, for a :class:`~lit_metarl.types.MetaPolicy`; a subclass adds what it trains on.

    Meta-evaluation runs on test tasks that are the same each time: their streams are not those of training, and
    start anew with every evaluation, so curves of one run and of runs with one seed are comparable point by point.

    Args:
        env: the simulator and its distribution of tasks.
        num_tasks: B of training, all processes together.
        trajectories: N, episodes of a task in each round.
        adaptation_steps: K, rounds that a task is adapted with. 0 for a policy that does not adapt, but is trained on
            the mean return over tasks (multi-task), which it can tell apart with ``oracle_context``.
        action_scale: the simulator gets ``clip(action_scale · action, −1, 1)``.
        oracle_context: tell the policy the task's context.
        seed: root of every random stream.
        eval_tasks: tasks of an evaluation, per split, all processes together.
        eval_adaptation_steps: adaptation steps of an evaluation; None for ``adaptation_steps``.
        test_tasks: tasks of ``test``, likewise.
        video_size: width and height in pixels of the film that ``predict`` writes.

    Raises:
        ConfigError: a value that cannot work, with the key and the remedy.
    """

    env_factory: TaskFamily
    expected_policy = (MetaPolicy, "meta-learners, such as MAML")

    def __init__(
        self,
        env: TaskFamily,
        num_tasks: int,
        trajectories: int,
        adaptation_steps: int = 1,
        action_scale: float = 1.0,
        oracle_context: bool = False,
        seed: int = 0,
        eval_tasks: int = 20,
        eval_adaptation_steps: int | None = None,
        test_tasks: int = 40,
        video_size: tuple[int, int] = (320, 240),
    ) -> None:
        require(trajectories >= 1, "data.trajectories", trajectories, "it must be at least 1")
        require(adaptation_steps >= 0, "data.adaptation_steps", adaptation_steps, "0 or more steps")
        require_positive("data", action_scale=action_scale)
        require(
            eval_adaptation_steps is None or eval_adaptation_steps >= 0,
            "data.eval_adaptation_steps",
            eval_adaptation_steps,
            "0 or more steps, or null for as many as in training",
        )
        split_counts = {"num_tasks": num_tasks, "eval_tasks": eval_tasks, "test_tasks": test_tasks}
        super().__init__(env, seed, split_counts, video_size)
        horizon_of(self.spec)
        self.trajectories = trajectories
        self.adaptation_steps = adaptation_steps
        self.eval_adaptation_steps = adaptation_steps if eval_adaptation_steps is None else eval_adaptation_steps
        self._action_scale = action_scale
        self.oracle_context = oracle_context
        self._random: dict[str, dict[str, Tensor]] = {}  # returns of random actions, by share and split

    @property
    def policy(self) -> MetaPolicy:
        """The module in training."""
        return super().policy

    @property
    def action_scale(self) -> float:
        """Factor between the policy's actions and the simulator's range [-1, 1]."""
        return self._action_scale

    @property
    def context_dim(self) -> int:
        """C, the number of entries of the context that the policy is told; 0 without ``oracle_context``."""
        if not self.oracle_context:
            return 0
        return self.env_factory.context(self.env_factory.sample(1, np.random.default_rng(0))).shape[1]

    @property
    def action_dim(self) -> int:
        """A, the length of the action; 1 for discrete actions."""
        return self.spec.action_dim

    # Adaptation ----------------------------------------------------------------------------------------------------

    def simulator_of(self, num_tasks: int, stream: Stream, trajectories: int | None = None) -> TaskSimulator:
        """Simulator of ``num_tasks`` × ``trajectories`` (N if None) whose streams are ``stream``'s."""
        number = trajectories or self.trajectories
        seed = self.stream_seed(stream)
        return TaskSimulator(self.env_factory, num_tasks, number, seed, self.action_scale, self.oracle_context)

    def collect(
        self, simulator: TaskSimulator, steps: int, generator: torch.Generator
    ) -> tuple[list[Trajectories], list[Adaptation]]:
        """``steps + 1`` rounds, and the adaptation that each was collected with."""
        return collect_rounds(self.policy, self.policy_device, [simulator] * (steps + 1), generator)

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self) -> MetaEpisodes:
        """Returns after 0 … K steps on the test tasks of every split."""
        return self._meta_evaluate("eval_tasks", Stream.EVAL_ENV, Stream.EVAL_TASKS, Stream.EVAL_COLLECT)

    def test(self) -> MetaEpisodes:
        """Returns after 0 … K steps on the test tasks of every split."""
        return self._meta_evaluate("test_tasks", Stream.TEST_ENV, Stream.TEST_TASKS, Stream.TEST_COLLECT)

    def _meta_evaluate(self, share: str, env: Stream, tasks: Stream, collect: Stream) -> MetaEpisodes:
        simulator = self.simulator_of(self.split_counts[share] // self.world_size, env)
        generator = cpu_generator(self.stream_seed(collect))
        result = MetaEpisodes({}, {}, {}, {})
        for split in self.env_factory.splits:
            sampled = self.held_out(simulator.num_tasks, tasks, split)
            simulator.set_tasks(sampled)
            rounds, _ = self.collect(simulator, self.eval_adaptation_steps, generator)
            result.returns[split] = torch.stack([trajectories.returns for trajectories in rounds])
            result.tasks[split] = _as_tensors(sampled)
        simulator.close()
        if share not in self._random:
            self._random[share] = self._random_returns(simulator.num_tasks, env, tasks, collect)
        result.random.update(self._random[share])
        return result

    def _random_returns(self, num_tasks: int, env: Stream, tasks: Stream, collect: Stream) -> dict[str, Tensor]:
        """Returns of uniformly random actions on the test tasks, by split ``[B, N]``; equal in every evaluation."""
        simulator, generator = self.simulator_of(num_tasks, env), cpu_generator(self.stream_seed(collect))
        choose = simulator.random_policy(generator)
        returns = {}
        for split in self.env_factory.splits:
            simulator.set_tasks(self.held_out(num_tasks, tasks, split))
            returns[split] = simulator.run(choose).returns
        simulator.close()
        return returns

    def held_out(self, num_tasks: int, tasks: Stream, split: str) -> Tasks:
        """Tasks of ``split`` for evaluations, the same in each: ``tasks`` is their stream, begun anew."""
        return self.env_factory.sample(num_tasks, np.random.default_rng(self.stream_seed(tasks)), split)

    def film(self) -> MetaEpisodes:
        """One test task, filmed before and after adaptation with the most likely actions."""
        filmed = self.simulator_of(1, Stream.PREDICT_ENV, trajectories=1)
        simulator = self.simulator_of(1, Stream.PREDICT_ENV)
        generator = cpu_generator(self.stream_seed(Stream.PREDICT_COLLECT))
        sampled = self.held_out(1, Stream.PREDICT_TASKS, "test")
        filmed.set_tasks(sampled)
        simulator.set_tasks(sampled)
        adaptation = self.policy.before_adaptation(simulator.context)
        films, returns = {}, []
        for step in range(self.eval_adaptation_steps + 1):
            if step > 0:
                data = act_round(self.policy, self.policy_device, simulator, adaptation, generator)
                adaptation = adapt(self.policy, self.policy_device, adaptation, data)
            acting = self.policy.begin_round(adaptation, 1, generator)
            films[f"after_{step}_steps"], result = self._film_one(filmed, acting)
            returns.append(result)
        filmed.close()
        simulator.close()
        seen = {"test": torch.stack(returns)}, {"test": _as_tensors(sampled)}
        return MetaEpisodes(*seen, {}, films, 1.0 / (self.spec.frame_dt * self.frame_period))

    def _film_one(self, filmed: TaskSimulator, acting: Adaptation) -> tuple[Tensor, Tensor]:
        """Pictures ``[T, height, width, 3]`` and return ``[1, 1]`` of an episode of the most likely actions."""
        pictures: list[Tensor] = []
        device = self.policy_device

        def shoot(t: int) -> None:
            if t % self.frame_period == 0:
                pictures.append(torch.from_numpy(filmed.env.render(0, *self.video_size).copy()))

        def act(obs: Tensor) -> tuple[Tensor, Tensor]:
            return self.finite_action(self.policy.mode_actions(acting, obs.to(device))), torch.zeros(1, 1)

        returns = filmed.run(act, shoot).returns
        return torch.stack(pictures), returns


def _as_tensors(tasks: Tasks) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(rows, dtype=np.float32)) for name, rows in tasks.items()}
