"""Losses of soft actor-critic (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications").

Every loss is a mean over the minibatch axis ``M``; action values are ``[E, M]`` for ``E`` critics, whose own loss is
:func:`lit_metarl.losses.critics.critic_loss`.
"""

from __future__ import annotations

from torch import Tensor

from lit_metarl.losses.critics import bellman_target


def soft_target(
    reward: Tensor, discount: Tensor, next_value: Tensor, next_log_prob: Tensor, temperature: Tensor, gamma: float
) -> Tensor:
    """y = r + γ·discount·(min_e Q'_e(s', a') − α·log π(a'|s')), the target of Eq. (5) with the minimum of section 5.

    Args:
        reward: ``[M]``.
        discount: ``[M]``, 0 where the MDP terminated and 1 elsewhere (time limits included).
        next_value: target critics at the successor and a fresh action, ``[E, M]``.
        next_log_prob: log π of that action, ``[M]``.
        temperature: α > 0, scalar.
        gamma: γ in [0, 1].

    Returns:
        ``[M]``. Carries gradients of its inputs: compute it under ``no_grad``.
    """
    return bellman_target(reward, discount, next_value.amin(0) - temperature * next_log_prob, gamma)


def actor_loss(value: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """mean_M (α·log π(a|s) − min_e Q_e(s, a)), Eq. (7) with a reparametrised action ``a``.

    Args:
        value: critics at the reparametrised action, ``[E, M]``; its gradient flows to the action.
        log_prob: log π of that action, ``[M]``.
        temperature: α, a constant scalar.

    Returns:
        Scalar.
    """
    return (temperature * log_prob - value.amin(0)).mean()


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """mean_M α·(−log π(a|s) − H̄) with α = exp(log_temperature), Eq. (18).

    Args:
        log_temperature: log α, scalar parameter.
        log_prob: ``[M]``, a constant.
        target_entropy: H̄ in nats, −A by default.

    Returns:
        Scalar; its minimisation raises α where the policy's entropy is below H̄.
    """
    return log_temperature.exp() * (-log_prob - target_entropy).mean()
