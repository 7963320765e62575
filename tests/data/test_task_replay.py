"""The replay of many tasks: rings, growth, and the way between trajectories and transitions."""

from __future__ import annotations

import pytest
import torch

from lit_metarl.data.task_replay import TaskReplay, as_episodes, transitions_of
from lit_metarl.types import Trajectories, Transition


def numbered(first: int, count: int) -> Transition:
    """Transitions whose every field says which one it is."""
    reward = torch.arange(first, first + count, dtype=torch.float32)
    rows = reward[:, None]
    return Transition(rows.expand(-1, 2), -rows, reward, rows.expand(-1, 2) + 1, reward % 2 == 0, reward % 2 == 1)


def content(replay: TaskReplay, task: int) -> list[float]:
    return sorted(replay.storage.reward[task, : replay.size[task]].tolist())


def test_each_task_has_its_own_ring() -> None:
    replay = TaskReplay(3, 10, 2, 1)
    replay.insert(0, numbered(0, 4))
    replay.insert(2, numbered(100, 7))
    replay.insert(2, numbered(107, 6))  # 13 of a capacity of 10
    assert content(replay, 0) == [0, 1, 2, 3]
    assert content(replay, 1) == []
    assert content(replay, 2) == list(range(103, 113))
    replay.insert(1, numbered(0, 25))
    assert content(replay, 1) == list(range(15, 25))
    replay.clear(2)
    replay.insert(2, numbered(7, 1))
    assert (content(replay, 0), content(replay, 2)) == ([0, 1, 2, 3], [7])


def test_it_grows_with_its_content() -> None:
    replay = TaskReplay(2, 1_000_000, 2, 1)
    allocated = []
    for n in range(100):
        replay.insert(0, numbered(n, 1))
        allocated.append(replay.storage.reward.shape[1])
    assert allocated[-1] == 128  # not the capacity
    assert len(set(allocated)) == 8  # 1, 2, 4, … 128
    assert content(replay, 0) == list(range(100))
    small = TaskReplay(1, 5, 2, 1)
    small.insert(0, numbered(0, 3))
    small.insert(0, numbered(3, 1))
    assert small.storage.reward.shape[1] == 5


def test_minibatches_are_uniform_over_each_tasks_own() -> None:
    replay = TaskReplay(3, 100, 2, 1)
    replay.insert(0, numbered(0, 5))
    replay.insert(1, numbered(50, 20))
    tasks = torch.tensor([[0, 1], [1, 0]])
    drawn = replay.sample(torch.Generator().manual_seed(0), tasks, 4000)
    assert drawn.obs.shape == (2, 2, 4000, 2)
    for at, (low, count) in {(0, 0): (0, 5), (0, 1): (50, 20), (1, 0): (50, 20), (1, 1): (0, 5)}.items():
        counts = torch.bincount(drawn.reward[at].long() - low, minlength=count)
        assert len(counts) == count
        assert (counts / 4000 - 1 / count).abs().max() < 0.03
    assert torch.equal(drawn.obs[..., 0], drawn.reward)  # the fields belong together
    assert torch.equal(drawn.action[..., 0], -drawn.reward)
    assert torch.equal(drawn.terminated, drawn.reward % 2 == 0)
    assert not torch.equal(drawn.reward[0, 0], drawn.reward[1, 1])
    with pytest.raises(ValueError, match="no transition of task 2"):
        replay.sample(torch.Generator(), torch.tensor([1, 2]), 1)


def test_a_replay_of_other_sizes_is_refused() -> None:
    state = TaskReplay(3, 10, 2, 1).state_dict()
    for other in (TaskReplay(2, 10, 2, 1), TaskReplay(3, 11, 2, 1), TaskReplay(3, 10, 3, 1), TaskReplay(3, 10, 2, 2)):
        with pytest.raises(ValueError, match=r"the checkpoint's replay is of .* set data\.init_args\.train_tasks"):
            other.load_state_dict(state)


def test_only_what_is_filled_is_saved() -> None:
    replay = TaskReplay(3, 1000, 2, 1)
    replay.insert(1, numbered(0, 300))
    assert replay.state_dict()["storage"]["obs"].shape == (300, 2)


def trajectories() -> Trajectories:
    """Two tasks with two episodes of at most three steps; the lengths are 3, 2 | 1, 3."""
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]]], dtype=torch.float32)
    steps = torch.arange(12.0).view(2, 2, 3) * mask
    final = torch.tensor([[100.0, 101.0], [102.0, 103.0]]).unsqueeze(-1)
    ended = torch.tensor([[True, False], [False, True]])
    return Trajectories(steps[..., None], -steps[..., None], steps, steps, mask, final, ended, torch.zeros(2, 0))


def test_transitions_of_trajectories() -> None:
    first, second = transitions_of(trajectories())
    assert first.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert first.next_obs[:, 0].tolist() == [1, 2, 100, 4, 101]
    assert first.terminated.tolist() == [False, False, True, False, False]
    assert first.truncated.tolist() == [False, False, False, False, True]
    assert second.reward.tolist() == [6, 9, 10, 11]
    assert second.next_obs[:, 0].tolist() == [102, 10, 11, 103]
    assert second.terminated.tolist() == [False, False, False, True]
    assert second.truncated.tolist() == [True, False, False, False]
    assert second.action[:, 0].tolist() == [-6, -9, -10, -11]


def test_transitions_as_episodes_are_the_same_transitions() -> None:
    replay = TaskReplay(2, 10, 2, 1)
    replay.insert(0, numbered(0, 6))
    replay.insert(1, numbered(6, 3))
    drawn = replay.sample(torch.Generator().manual_seed(0), torch.tensor([1, 0]), 5)
    told = torch.tensor([[1.0], [2.0]])
    episodes = as_episodes(drawn, told)
    assert episodes.obs.shape == (2, 5, 1, 2)
    assert torch.equal(episodes.context, told)
    for task, found in enumerate(transitions_of(episodes)):
        for name, field in found._asdict().items():
            if name != "truncated":  # an episode that does not terminate is cut
                assert torch.equal(field, getattr(drawn, name)[task]), name
