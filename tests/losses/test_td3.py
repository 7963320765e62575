"""TD3 losses on numbers worked out by hand."""

from __future__ import annotations

import torch

from lit_metarl.losses.td3 import actor_loss, clipped_target, smoothed_action


def test_smoothed_action_by_hand() -> None:
    action, noise = torch.tensor([[0.5, 0.9, -0.8, 0.0]]), torch.tensor([[1.0, 2.0, -9.0, 9.0]])
    # 0.5 + 0.2; 0.9 + 0.4 beyond 1; −0.8 − clip(1.8) beyond −1; 0 + clip(1.8)
    smoothed = smoothed_action(action, noise, std=0.2, clip=0.5)
    torch.testing.assert_close(smoothed, torch.tensor([[0.7, 1.0, -1.0, 0.5]]))
    assert torch.equal(smoothed_action(action, noise, std=0.0, clip=0.5), action)


def test_clipped_target_by_hand() -> None:
    reward, discount = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    target = clipped_target(reward, discount, torch.tensor([[10.0, 50.0], [8.0, 60.0]]), gamma=0.9)
    torch.testing.assert_close(target, torch.tensor([8.2, 2.0]))  # 1 + 0.9·min(10, 8); the second ended


def test_actor_loss_follows_the_first_critic_only() -> None:
    value = torch.tensor([[1.0, 4.0], [-5.0, 3.0]], requires_grad=True)
    loss = actor_loss(value)
    loss.backward()
    assert float(loss.detach()) == -2.5
    assert value.grad is not None
    assert value.grad.tolist() == [[-0.5, -0.5], [0.0, 0.0]]
