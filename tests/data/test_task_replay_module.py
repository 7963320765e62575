"""The DataModule of task replays: what is collected with which knowledge, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_metarl.data import TaskReplayDataModule
from lit_metarl.envs.base import Tasks
from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.envs.navigation import Corners, PointRobot, SparsePointRobot
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.types import Adaptation, ConfigError, DivergenceError, MetaPolicy, Trajectories

HORIZON = 4


class Teller:
    """A policy whose action says what it knows: nothing (0.5), or how many transitions it has seen (0.01 each)."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[Trajectories] = []
        self.rounds = 0

    def before_adaptation(self, context: Tensor) -> Adaptation:
        return {"number": torch.zeros(len(context)), "context": context}

    def begin_round(self, adaptation: Adaptation, trajectories: int, generator: torch.Generator) -> Adaptation:
        self.rounds += 1
        torch.rand(1, generator=generator)  # a draw of z
        return adaptation

    def adapt(self, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
        self.seen.append(trajectories)
        return adaptation | {"number": adaptation["number"] + trajectories.mask.sum((1, 2))}

    def sample_actions(self, adaptation: Adaptation, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number = adaptation["number"].view(-1, 1, 1).expand(*obs.shape[:2], 2)
        return torch.where(number == 0, 0.5, 0.01 * number), torch.zeros(obs.shape[:2])

    def mode_actions(self, adaptation: Adaptation, obs: Tensor) -> Tensor:
        return self.sample_actions(adaptation, obs, torch.Generator())[0]

    def diverged(self, what: str) -> DivergenceError:
        return DivergenceError(what)


def make(env: TaskFamily | None = None, **settings: Any) -> tuple[TaskReplayDataModule, Teller]:
    small = {
        "train_tasks": 6,
        "num_tasks": 3,
        "meta_batch": 2,
        "batch_size": 5,
        "context_size": 7,
        "initial_steps": 8,
        "prior_steps": 8,
        "posterior_steps": 0,
        "extra_steps": 12,
        "updates_per_iteration": 6,
        "updates_per_block": 2,
    }
    datamodule, policy = (
        TaskReplayDataModule(env or PointRobot(max_episode_steps=HORIZON), **small | settings),
        Teller(),
    )
    datamodule.bind(policy)
    datamodule.setup("fit")
    return datamodule, policy


def knowledge(datamodule: TaskReplayDataModule, which: str, task: int) -> list[float]:
    """What the policy knew at each stored step of ``task``: 0.5, or 0.01 per transition it had seen."""
    replay = getattr(datamodule, which)
    return [round(x, 2) for x in replay.storage.action[task, : replay.size[task], 0].tolist()]


def test_the_teller_is_a_meta_policy() -> None:
    assert isinstance(Teller(), MetaPolicy)


def test_an_iteration_follows_its_three_phases() -> None:
    datamodule, policy = make(posterior_steps=8)
    chosen = np.random.default_rng(datamodule.stream_seed(6)).integers(6, size=3)  # Stream.TRAIN_TASKS
    block = datamodule.next_batch()
    # 2 rounds of all tasks; 2 with the prior; 2 and 3 of which the first is with the prior, too
    assert policy.rounds == 2 + 2 + 2 + 3
    assert block.env_steps == 6 * 8 + 3 * (8 + 8 + 12)
    prior, posterior = [0.5] * HORIZON, [0.07] * HORIZON
    for task in range(6):
        draws = int((chosen == task).sum())
        own = 2 * prior + draws * (2 * prior) + draws * (prior + posterior) + draws * (prior + 2 * posterior)
        assert sorted(knowledge(datamodule, "replay", task)) == sorted(own)
        # of a task that was not drawn the initial exploration is left, of another only what is new
        context = draws * (3 * prior + posterior) if draws else 2 * prior
        assert sorted(knowledge(datamodule, "encoder_buffer", task)) == sorted(context)
    assert len(set(chosen.tolist())) < 6


def test_a_task_is_inferred_anew_from_its_own_encoder_buffer() -> None:
    datamodule, policy = make(env=SparsePointRobot(max_episode_steps=HORIZON))
    datamodule.next_batch()
    assert len(policy.seen) == 2  # after the first and the second of three episodes
    for context in policy.seen:
        assert context.obs.shape == (3, 7, 1, 2)
        assert context.next_obs.shape == (3, 7, 1, 2)
        assert (context.action == 0.5).all()  # of the prior's episodes
        assert torch.allclose(context.next_obs, context.obs + 0.05)
    first, second = policy.seen
    assert not torch.equal(first.obs, second.obs)  # drawn anew, not accumulated


def test_a_phase_gives_every_task_its_steps() -> None:
    datamodule, policy = make(prior_steps=9, extra_steps=1)  # episodes have 4 steps
    assert datamodule.next_batch().env_steps == 6 * 8 + 3 * (12 + 4)
    assert policy.seen == []


def test_all_tasks_of_an_iteration_are_stepped_together() -> None:
    steps: list[int] = []

    @dataclass(frozen=True)
    class Counted(PointRobot):
        def move(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
            steps.append(len(state))
            return super().move(state, action)

    datamodule, _ = make(env=Counted(max_episode_steps=HORIZON))
    datamodule.next_batch()
    assert steps == [6] * 8 + [3] * (8 + 12)


def test_an_iteration_has_its_updates_in_blocks() -> None:
    datamodule, _ = make(epoch_iterations=2)
    assert datamodule.batches_per_epoch == 6
    blocks = [datamodule.next_batch() for _ in range(6)]
    iteration = 3 * (8 + 12)
    assert [block.env_steps for block in blocks] == [48 + iteration] * 3 + [48 + 2 * iteration] * 3
    assert [len(block.episode_returns) for block in blocks] == [6 * 2 + 3 * 5, 0, 0, 3 * 5, 0, 0]
    assert (blocks[0].episode_lengths == HORIZON).all()
    assert blocks[0].transitions.obs.shape == (2, 2, 5, 2)
    assert blocks[0].contexts.reward.shape == (2, 2, 7)
    assert blocks[0].told.shape == (2, 2, 0)
    first, second = blocks[0].minibatches()
    assert torch.equal(second.transitions.obs, blocks[0].transitions.obs[1])
    assert torch.equal(first.context.next_obs, blocks[0].contexts.next_obs[0])
    assert not torch.equal(first.transitions.obs, second.transitions.obs)


def test_rows_of_a_minibatch_are_of_one_task() -> None:
    datamodule, _ = make(oracle_context=True, updates_per_block=6)
    assert datamodule.context_dim == 2
    block = datamodule.next_batch()
    for data in (block.transitions, block.contexts):
        distance = (data.next_obs - block.told.unsqueeze(2)).norm(dim=-1)
        torch.testing.assert_close(data.reward, -distance)
    train = torch.from_numpy(datamodule.tasks["goal"]).float()
    assert {tuple(x) for x in block.told.flatten(0, 1).tolist()} <= {tuple(x) for x in train.tolist()}


def test_training_is_on_shaped_rewards_and_inference_on_what_is_paid() -> None:
    env = SparsePointRobot(max_episode_steps=HORIZON)
    datamodule, _ = make(env=env, shaped_rewards=True, oracle_context=True, updates_per_block=6)
    block = datamodule.next_batch()
    distance = (block.transitions.next_obs - block.told.unsqueeze(2)).norm(dim=-1)
    torch.testing.assert_close(block.transitions.reward, -distance)
    assert (block.contexts.reward == 0).all()  # nobody is near the circle after 4 steps
    assert (block.episode_returns == 0).all()
    assert (make(env=env)[0].next_batch().transitions.reward == 0).all()


@pytest.mark.parametrize("split", ["test", "out_of_distribution"])
def test_held_out_tasks_are_no_training_tasks(split: str) -> None:
    datamodule, _ = make(train_tasks=100, eval_tasks=50, test_tasks=50)
    train = {tuple(row) for row in datamodule.tasks["goal"].astype(np.float32).tolist()}
    assert len(train) == 100
    for episodes in (datamodule.evaluate(), datamodule.test()):
        held_out = {tuple(row) for row in episodes.tasks[split]["goal"].tolist()}
        assert len(held_out) == 50
        assert not train & held_out


def test_what_is_known_at_test_is_the_exploration_and_nothing_else() -> None:
    datamodule, policy = make(eval_tasks=4, eval_adaptation_steps=2, trajectories=3)
    datamodule.next_batch()
    policy.seen.clear()
    episodes = datamodule.evaluate()
    assert episodes.returns["test"].shape == (3, 4, 3)
    assert [seen.obs.shape for seen in policy.seen[:2]] == [(4, 3, HORIZON, 2)] * 2
    for step in range(2):  # what is adapted to is what the rounds earned
        torch.testing.assert_close(policy.seen[step].returns, episodes.returns["test"][step])
    assert (policy.seen[1].action == 0.12).all()  # after 3 · 4 transitions


def test_test_tasks_that_are_training_tasks_are_said(caplog: pytest.LogCaptureFixture) -> None:
    make(eval_tasks=8)
    assert "training tasks" not in caplog.text
    make(env=Corners(max_episode_steps=HORIZON), train_tasks=40, eval_tasks=8, test_tasks=6)  # of four corners
    for share, count in {"eval_tasks": 8, "test_tasks": 6}.items():
        assert f"points/corners: {count} of {count} tasks of data.{share} are training tasks" in caplog.text


def test_training_tasks_of_another_process_are_training_tasks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TaskReplayDataModule, "world_size", 2)
    for rank in range(2):  # with one of the two directions each
        monkeypatch.setattr(TaskReplayDataModule, "rank", rank)
        env = Direction(max_episode_steps=HORIZON, threads=1)
        datamodule, _ = make(env, train_tasks=2, num_tasks=2, eval_tasks=16, seed=1)
        assert datamodule.tasks["direction"].tolist() == [(-1.0, 1.0)[rank]]
    assert caplog.text.count("8 of 8 tasks of data.eval_tasks are training tasks") == 2


@pytest.mark.parametrize("seed", range(8))
def test_two_training_tasks_are_both_directions(seed: int) -> None:
    env = Direction(max_episode_steps=HORIZON, threads=1)
    assert sorted(make(env, train_tasks=2, seed=seed)[0].tasks["direction"]) == [-1.0, 1.0]


@dataclass(frozen=True)
class OneGoal(PointRobot):
    """A family of one task."""

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        return {"goal": np.ones((num_tasks, 2))}


def test_training_tasks_that_are_always_the_same_are_refused() -> None:
    message = (
        r"^data\.train_tasks = 2 cannot be used: 100 draws were all of one task, which leaves nothing to infer; "
        r"take another data\.env\.$"
    )
    with pytest.raises(ConfigError, match=message):
        make(OneGoal(max_episode_steps=HORIZON), train_tasks=2)


def test_a_context_far_beyond_the_encoder_buffer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    make(context_size=2 * HORIZON, prior_steps=1, posterior_steps=0)  # a phase is of whole episodes
    assert "encoder buffer" not in caplog.text
    make(context_size=4 * HORIZON + 1, prior_steps=1, posterior_steps=HORIZON)
    message = f"data.context_size = {4 * HORIZON + 1} exceeds prior_steps and posterior_steps, which fill the encoder"
    assert f"{message} buffer with {2 * HORIZON} transitions" in caplog.text


def test_processes_share_the_training_tasks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(2):
        monkeypatch.setattr(TaskReplayDataModule, "rank", rank)
        monkeypatch.setattr(TaskReplayDataModule, "world_size", 2)
        datamodule = make(num_tasks=2, eval_tasks=2, test_tasks=2)[0]
        parts.append(datamodule.tasks["goal"])
        assert len(datamodule.replay.size) == 3
        assert (datamodule.simulator.num_tasks, datamodule.own_meta_batch) == (1, 1)
    monkeypatch.undo()
    alone = make()[0].tasks["goal"]
    assert {tuple(x) for x in np.concatenate(parts)} == {tuple(x) for x in alone}
    assert not {tuple(x) for x in parts[0]} & {tuple(x) for x in parts[1]}


def test_training_tasks_depend_on_the_seed_alone() -> None:
    first, again, other = (make(seed=seed)[0].tasks["goal"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_tasks": 1}, r"data\.train_tasks = 1 .* one task leaves nothing to infer"),
        ({"prior_steps": 0}, r"data\.prior_steps \+ data\.posterior_steps = 0 .* contexts would be empty"),
        ({"capacity": 6}, r"data\.capacity = 6 .* a minibatch and a context \(5 and 7"),
        ({"updates_per_iteration": 5}, r"data\.updates_per_iteration = 5 .* whole number of blocks of 2"),
        ({"context_size": 0}, r"data\.context_size = 0"),
        ({"extra_steps": -1}, r"data\.extra_steps = -1"),
        ({"meta_batch": 0}, r"data\.meta_batch = 0"),
        ({"shaped_rewards": True}, r"data\.shaped_rewards = True .* PointRobot has no shaped reward"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_a_robot_that_falls_has_shorter_episodes() -> None:
    datamodule, _ = make(env=Direction("walker2d", max_episode_steps=100, threads=1), prior_steps=150)

    class Pusher(Teller):
        def sample_actions(self, adaptation: Any, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.ones(*obs.shape[:2], 6), torch.zeros(obs.shape[:2])

    datamodule.bind(Pusher())
    block = datamodule.next_batch()
    assert block.episode_lengths.min() < 100
    assert int(block.episode_lengths.sum()) == block.env_steps
    stored = datamodule.replay
    assert int(stored.storage.terminated.sum()) == int((block.episode_lengths < 100).sum())
    assert int(stored.size.sum()) == block.env_steps


def test_another_division_of_a_checkpoint_is_refused() -> None:
    datamodule, _ = make()
    datamodule.next_batch()
    state = datamodule.experience_state()
    with pytest.raises(ConfigError, match=r"data\.num_tasks = 2 .* of 3 tasks per process"):
        make(num_tasks=2)[0].load_experience_state(state)
    with pytest.raises(ConfigError, match=r"data\.updates_per_block = 3 .* 4 updates of the checkpoint's iteration"):
        make(updates_per_block=3)[0].load_experience_state(state)
    other = make(seed=5)[0]
    other.load_experience_state(state)
    assert (other.tasks["goal"] == datamodule.tasks["goal"]).all()
