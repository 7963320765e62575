"""Targets and losses of action values that all off-policy actor-critics share (Mnih et al. 2015; Fujimoto et al. 2018).

Every loss is a mean over the minibatch axis ``M``; action values are ``[E, M]`` for ``E`` critics.
"""

from __future__ import annotations

from torch import Tensor


def bellman_target(reward: Tensor, discount: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + γ·discount·V(s'), ``[M]``, for any value V of the successor (Mnih et al. 2015).

    Args:
        reward: ``[M]``.
        discount: ``[M]``, 0 where the MDP terminated and 1 elsewhere (time limits included).
        next_value: V(s'), ``[M]``.
        gamma: γ in [0, 1].

    Returns:
        ``[M]``. Carries gradients of its inputs: compute it under ``no_grad``.
    """
    return reward + gamma * discount * next_value


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """Σ_e mean_M (Q_e − y)², Eq. (5) of Haarnoja et al. 2018 without its factor ½ (as pytorch_sac and TD3).

    Args:
        value: ``[E, M]``.
        target: ``[M]``, a constant.

    Returns:
        Scalar, summed over critics so that each has the gradient it would have alone.
    """
    return (value - target).square().flatten(1).mean(dim=1).sum()
