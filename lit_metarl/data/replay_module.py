"""Off-policy experience: collect, store, replay."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_metarl.data.collector import EPISODE_CAP, Collector, run_episodes
from lit_metarl.data.experience import ExperienceDataModule, cpu_generator
from lit_metarl.data.replay import Replay
from lit_metarl.data.streams import Stream
from lit_metarl.envs.base import BatchedEnv, EnvFactory
from lit_metarl.types import Episodes, Policy, ReplayBlock, State, require


class ReplayDataModule(ExperienceDataModule):
    """Collects with the current policy, stores, and yields minibatches stacked ``[U, M, ...]``.

    One batch is one block: ``steps_per_block`` steps of every environment, then ``updates_per_block`` = U minibatches.
    Update ``u`` draws from what was stored before the step that it follows, so ``U = 1`` with one environment is the
    loop of pytorch_sac (choose an action, update on the data so far, step, store); a larger U pays the Trainer's cost
    once per block, and its policy lags by up to U − 1 updates.

    Args:
        env: the simulator.
        num_envs: environments stepped together in each process.
        batch_size: M, transitions of one update.
        capacity: transitions kept by each process.
        warmup_steps: environment steps of each process with uniform random actions before the first update.
        warmup_updates: updates made after that while actions are still uniform: what an algorithm learns from random
            transitions before its own policy acts. Whole blocks: rounded up to a multiple of U.
        keep_warmup: whether the replay keeps what was collected until these updates are made; otherwise it is emptied
            then, and ``warmup_steps`` are made anew.
        updates_per_block: U.
        steps_per_block: steps of every environment in a block; an update then takes
            ``steps_per_block · num_envs / updates_per_block`` environment steps.
        epoch_steps: environment steps of each process in an epoch (evaluation and checkpoint follow each epoch).
        seed: root of every random stream.
        eval_episodes: episodes of one evaluation, all processes together.
        test_episodes: the same for ``test``.
        video_size: width and height in pixels of the episode that ``predict`` films.

    Raises:
        ConfigError: a value that cannot work, with the key and the remedy.
    """

    def __init__(
        self,
        env: EnvFactory,
        num_envs: int = 1,
        batch_size: int = 256,
        capacity: int = 1_000_000,
        warmup_steps: int = 5000,
        warmup_updates: int = 0,
        keep_warmup: bool = True,
        updates_per_block: int = 1,
        steps_per_block: int = 1,
        epoch_steps: int = 10_000,
        seed: int = 0,
        eval_episodes: int = 10,
        test_episodes: int = 30,
        video_size: tuple[int, int] = (320, 240),
    ) -> None:
        for key, value in {
            "num_envs": num_envs,
            "batch_size": batch_size,
            "warmup_steps": warmup_steps,
            "updates_per_block": updates_per_block,
            "steps_per_block": steps_per_block,
        }.items():
            require(value >= 1, f"data.{key}", value, "it must be at least 1")
        require(warmup_updates >= 0, "data.warmup_updates", warmup_updates, "it must not be negative")
        block = steps_per_block * num_envs
        require(
            capacity >= max(batch_size, block),
            "data.capacity",
            capacity,
            f"the replay must hold one minibatch (batch_size = {batch_size}) and one block ({block} steps); "
            "raise capacity or lower batch_size",
        )
        require(
            epoch_steps >= block and epoch_steps % block == 0,
            "data.epoch_steps",
            epoch_steps,
            f"an epoch is a whole number of blocks of steps_per_block · num_envs = {block} environment steps",
        )
        split_counts = {"eval_episodes": eval_episodes, "test_episodes": test_episodes}
        super().__init__(env, seed, split_counts, video_size)
        self._eval_env: BatchedEnv | None = None
        self.num_envs = num_envs
        self.batch_size = batch_size
        self.capacity = capacity
        self.warmup_steps = warmup_steps
        self.warmup_updates = warmup_updates
        self.keep_warmup = keep_warmup
        self.updates_per_block = updates_per_block
        self.steps_per_block = steps_per_block
        self.epoch_steps = epoch_steps

    expected_policy = (Policy, "algorithms of single tasks, such as SAC")

    @property
    def policy(self) -> Policy:
        """The module in training."""
        return super().policy

    @property
    def batches_per_epoch(self) -> int:
        """Blocks in an epoch."""
        return self.epoch_steps // (self.steps_per_block * self.num_envs)

    def setup(self, stage: str) -> None:
        """Build the simulators that ``stage`` needs, and warn of an environment that never ends an episode."""
        super().setup(stage)
        if self.spec.max_episode_steps is None:
            rank_zero_warn(
                f"data.env = {self.spec.name} states no time limit: evaluation episodes are cut after {EPISODE_CAP:,} "
                "steps. Register it with max_episode_steps, or give its class an attribute max_episode_steps, which "
                "it enforces itself."
            )

    def build(self) -> None:
        """Simulators, empty replay and streams of this process."""
        self.collector = Collector(self.env_factory.make(self.num_envs, self.stream_seed(Stream.TRAIN_ENV)))
        self.replay = Replay(self.capacity, self.obs_dim, self.action_dim)
        self.generator = cpu_generator(self.stream_seed(Stream.COLLECT))
        self.env_steps = 0
        self.replay_start = 0  # environment steps before the first one that the replay counts
        self.random_updates = 0
        self.warmed_up = False  # final: no setting of a resumed run brings the random policy back

    def collect(self, steps: int, uniform: bool) -> None:
        """Store ``steps`` steps of every environment, acting uniformly in [-1, 1] or with the policy."""
        if uniform:
            choose = partial(self.spec.sizes.uniform_actions, generator=self.generator)
        else:
            choose = partial(self._explore, device=self.policy_device)
        with torch.no_grad():
            for _ in range(steps):
                self.replay.insert(self.collector.step(choose))
        self.env_steps += steps * self.num_envs

    def _explore(self, obs: Tensor, device: torch.device) -> Tensor:
        return self.finite_action(self.policy.explore(obs.to(device), self.generator))

    def next_batch(self) -> ReplayBlock:
        """Warm up if that is not done yet, then collect one block and sample from it."""
        warm_up = self.random_updates < self.warmup_updates and not self.warmed_up
        if not warm_up and not self.warmed_up:
            self.warmed_up = True
            if self.random_updates and not self.keep_warmup:
                self.replay_start = self.env_steps
                self.replay.clear()
        missing = self.replay_start + self.warmup_steps - self.env_steps
        if missing > 0:
            self.collect(-(-missing // self.num_envs), uniform=True)
        stored = self.env_steps - self.replay_start
        self.collect(self.steps_per_block, uniform=warm_up)
        self.random_updates += self.updates_per_block * warm_up
        # Equally spaced over the block: what the interleaved loop had stored when it made update u.
        spacing = self.steps_per_block * self.num_envs / self.updates_per_block
        available = stored + torch.arange(self.updates_per_block, dtype=torch.float64).mul(spacing).floor()
        transitions = self.replay.sample(self.generator, available, self.batch_size)
        returns, lengths = self.collector.pop_finished()
        env_steps = self.env_steps * self.spec.action_repeat * self.world_size
        return ReplayBlock(transitions, env_steps, returns, lengths, warm_up)

    def experience_state(self) -> State:
        """Replay, simulators, exploration stream and step count."""
        return {
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "generator": self.generator.get_state(),
            "env_steps": self.env_steps,
            "warm_up": [self.replay_start, self.random_updates, self.warmed_up],
            "num_envs": self.num_envs,
        }

    def load_experience_state(self, state: State) -> None:
        """Inverse of :meth:`experience_state`."""
        require(
            state["num_envs"] == self.num_envs,
            "data.num_envs",
            self.num_envs,
            f"the checkpoint's simulators are {state['num_envs']}; use that number",
        )
        self.replay.load_state_dict(state["replay"])
        self.collector.load_state_dict(state["collector"])
        self.generator.set_state(state["generator"])
        self.env_steps = state["env_steps"]
        self.replay_start, self.random_updates, self.warmed_up = state["warm_up"]

    def evaluate(self) -> Episodes:
        """The evaluation episodes of this process, each with its own environment."""
        if self._eval_env is None:
            self._eval_env = self._make_eval_env(self.split_counts["eval_episodes"], Stream.EVAL_ENV)
        return run_episodes(self._eval_env, self._act)

    def test(self) -> Episodes:
        """The test episodes of this process."""
        self._eval_env = self._make_eval_env(self.split_counts["test_episodes"], Stream.TEST_ENV)
        return run_episodes(self._eval_env, self._act)

    def film(self) -> Episodes:
        """One filmed episode."""
        self._eval_env = self.env_factory.make(1, self.stream_seed(Stream.PREDICT_ENV))
        return run_episodes(self._eval_env, self._act, self.frame_period, self.video_size)

    def _make_eval_env(self, episodes: int, stream: Stream) -> BatchedEnv:
        return self.env_factory.make(episodes // self.world_size, self.stream_seed(stream))

    def _act(self, obs: Tensor) -> Tensor:
        return self.finite_action(self.policy.act(obs.to(self.policy_device)))

    def evaluation_state(self) -> State | None:
        """The evaluation environments; their streams only matter, but the protocol saves an environment whole."""
        return None if self._eval_env is None else self._eval_env.state_dict()

    def load_evaluation_state(self, state: State) -> None:
        """Inverse of :meth:`evaluation_state`."""
        self._eval_env = self._make_eval_env(self.split_counts["eval_episodes"], Stream.EVAL_ENV)
        self._eval_env.load_state_dict(state)

    def teardown(self, stage: str) -> None:
        """Release the simulators."""
        if stage == "fit":
            self.collector.env.close()
        if self._eval_env is not None:
            self._eval_env.close()
            self._eval_env = None
