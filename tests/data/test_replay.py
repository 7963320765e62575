"""The replay ring: what it holds, how it samples, what it saves."""

from __future__ import annotations

import pytest
import torch

from lit_metarl.data.replay import Replay
from lit_metarl.types import Transition


def numbered(first: int, count: int) -> Transition:
    """Transitions whose every field tells their number."""
    n = torch.arange(first, first + count, dtype=torch.float32)
    return Transition(n[:, None].expand(-1, 2), -n[:, None], n, n[:, None] + torch.ones(2), n % 2 == 0, n % 3 == 0)


def filled(capacity: int, chunks: list[int]) -> Replay:
    replay, first = Replay(capacity, 2, 1), 0
    for count in chunks:
        replay.insert(numbered(first, count))
        first += count
    return replay


def everything(replay: Replay) -> torch.Tensor:
    return replay.storage.reward[: replay.size].sort().values


def test_ring_keeps_the_newest() -> None:
    replay = filled(5, [3, 3, 1])
    assert everything(replay).tolist() == [2, 3, 4, 5, 6]
    assert replay.size == 5


def test_fields_stay_together_across_the_wrap() -> None:
    batch = filled(5, [3, 3, 1]).sample(torch.Generator(), torch.tensor([5.0], dtype=torch.float64), 64)
    number = batch.reward
    assert torch.equal(batch.obs, number[..., None].expand(-1, -1, 2))
    assert torch.equal(batch.action, -number[..., None])
    assert torch.equal(batch.next_obs, number[..., None] + torch.ones(2))
    assert torch.equal(batch.terminated, number % 2 == 0)
    assert torch.equal(batch.truncated, number % 3 == 0)


def test_sampling_is_uniform_over_what_is_available() -> None:
    replay = filled(10, [10])
    available = torch.tensor([4.0, 10.0], dtype=torch.float64)
    batch = replay.sample(torch.Generator().manual_seed(0), available, 20_000)
    for update, count in enumerate((4, 10)):
        frequency = torch.bincount(batch.reward[update].long(), minlength=10) / 20_000
        assert not frequency[count:].any()
        # five standard deviations of a binomial share
        spread = 5 * (1 / count * (1 - 1 / count) / 20_000) ** 0.5
        assert (frequency[:count] - 1 / count).abs().max() < spread


def test_discount_is_zero_only_at_termination() -> None:
    assert numbered(0, 7).discount.tolist() == [0, 1, 0, 1, 0, 1, 0]  # 3 is truncated alone: the value goes on


def test_saves_only_what_is_filled(tmp_path) -> None:
    replay = filled(100_000, [10])
    torch.save(replay.state_dict(), tmp_path / "replay.pt")
    assert (tmp_path / "replay.pt").stat().st_size < 10_000


def test_another_capacity_or_dimension_is_refused() -> None:
    state = filled(5, [5]).state_dict()
    with pytest.raises(ValueError, match="capacity 5, this one 6"):
        Replay(6, 2, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="2 observations and 1 actions"):
        Replay(5, 3, 1).load_state_dict(state)
