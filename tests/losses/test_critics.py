"""Targets and losses of action values on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lit_metarl.losses.critics import bellman_target, critic_loss


def test_bellman_target_by_hand() -> None:
    reward, discount, value = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([4.0, 50.0])
    # 1 + 0.9·4, and after the end only the reward
    torch.testing.assert_close(bellman_target(reward, discount, value, gamma=0.9), torch.tensor([4.6, 2.0]))


def test_critic_loss_by_hand() -> None:
    loss = critic_loss(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([2.0, 5.0]))
    # ((1−2)² + (3−5)²)/2 + ((2−2)² + (2−5)²)/2 = 2.5 + 4.5
    assert float(loss) == pytest.approx(7.0)
