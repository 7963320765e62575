"""Losses of twin delayed deterministic policy gradients.

Equations are those of Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods". Actions
lie in [-1, 1], so noise is in units of the authors' largest action; action values are ``[E, M]`` for ``E`` critics,
whose loss is :func:`lit_metarl.losses.critics.critic_loss`.
"""

from __future__ import annotations

from torch import Tensor

from lit_metarl.losses.critics import bellman_target


def smoothed_action(action: Tensor, noise: Tensor, std: float, clip: float) -> Tensor:
    """ã = clip(a + clip(std·ε, −c, c), −1, 1), ``[M, A]``: Eq. (14), target policy smoothing.

    Args:
        action: a, of the target policy at the successor, ``[M, A]`` in [-1, 1].
        noise: ε, standard normal, ``[M, A]``.
        std: of the noise; 0 for none.
        clip: c ≥ 0.
    """
    return (action + (std * noise).clamp(-clip, clip)).clamp(-1.0, 1.0)


def clipped_target(reward: Tensor, discount: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + γ·discount·min_e Q'_e(s', ã), ``[M]``: Eq. (10), clipped double Q-learning.

    Args:
        reward: ``[M]``.
        discount: ``[M]``, 0 where the MDP terminated and 1 elsewhere (time limits included).
        next_value: target critics at the successor and the smoothed action, ``[E, M]``.
        gamma: γ in [0, 1].
    """
    return bellman_target(reward, discount, next_value.amin(0), gamma)


def actor_loss(value: Tensor) -> Tensor:
    """−mean_M Q_1(s, π(s)), a scalar: the gradient of Eq. (2) with the first critic.

    Args:
        value: critics at the policy's action, ``[E, M]``; its gradient flows to the action.
    """
    return -value[0].mean()
