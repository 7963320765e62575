"""SAC losses on numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from lit_metarl.losses.sac import actor_loss, soft_target, temperature_loss


def test_soft_target_by_hand() -> None:
    target = soft_target(
        reward=torch.tensor([1.0, 2.0]),
        discount=torch.tensor([1.0, 0.0]),
        next_value=torch.tensor([[10.0, 50.0], [8.0, 60.0]]),
        next_log_prob=torch.tensor([-3.0, 7.0]),
        temperature=torch.tensor(0.5),
        gamma=0.9,
    )
    # 1 + 0.9·(min(10, 8) − 0.5·(−3)) = 1 + 0.9·9.5 = 9.55; the second ended, so 2 alone.
    torch.testing.assert_close(target, torch.tensor([9.55, 2.0]))


def test_actor_loss_by_hand() -> None:
    loss = actor_loss(torch.tensor([[1.0, 4.0], [2.0, 3.0]]), torch.tensor([-1.0, 1.0]), torch.tensor(0.2))
    # mean(0.2·(−1) − 1, 0.2·1 − 3) = (−1.2 − 2.8)/2
    assert float(loss) == pytest.approx(-2.0)


def test_actor_loss_follows_the_lower_critic_only() -> None:
    value = torch.tensor([[1.0], [2.0]], requires_grad=True)
    actor_loss(value, torch.zeros(1), torch.tensor(1.0)).backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[-1.0], [0.0]]


@pytest.mark.parametrize(("log_prob", "direction"), [(5.0, -1), (-5.0, 1)])
def test_temperature_rises_where_entropy_is_below_target(log_prob: float, direction: int) -> None:
    log_temperature = torch.tensor(math.log(0.3), requires_grad=True)
    loss = temperature_loss(log_temperature, torch.full((4,), log_prob), target_entropy=-2.0)
    loss.backward()
    # d/d log α = α·(−log π − H̄) = 0.3·(∓5 + 2)
    assert log_temperature.grad is not None
    assert float(log_temperature.grad) == pytest.approx(0.3 * (-log_prob + 2.0))
    assert math.copysign(1, float(log_temperature.grad)) == direction
