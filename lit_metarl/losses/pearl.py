"""Losses of probabilistic embeddings for actor-critic RL (Rakelly et al. 2019, PEARL).

Those of soft actor-critic are in :mod:`lit_metarl.losses.sac`; these are what PEARL adds. Axes: ``B`` tasks, ``M``
transitions of each, ``Z`` latent, ``E`` networks.
"""

from __future__ import annotations

from torch import Tensor


def kl_to_prior(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (σ² + μ² − 1 − log σ²) in nats, the bottleneck of Eq. (1) of Rakelly et al. 2019.

    Args:
        mean: μ, ``[..., Z]``.
        variance: σ² > 0, ``[..., Z]``.

    Returns:
        ``[..., Z]``: of every entry of z, which are independent.
    """
    return 0.5 * (variance + mean.square() - 1.0 - variance.log())


def soft_value_target(value: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """y = min_e Q_e(s, a, z) − α·log π(a|s, z), the target of V(s, z) (Haarnoja et al. 2018, first version, Eq. (5)).

    Args:
        value: critics at a fresh action, ``[E, ...]``.
        log_prob: log π of that action, ``[...]``.
        temperature: α > 0, scalar; the released PEARL has 1, and scales rewards instead.

    Returns:
        ``[...]``. Carries gradients of its inputs: detach it.
    """
    return value.amin(0) - temperature * log_prob


def policy_penalty(mean: Tensor, log_std: Tensor) -> Tensor:
    """mean(μ²) + mean((log σ)²) of the policy before its squash, as the released code of Rakelly et al. 2019 has it.

    Args:
        mean: μ, ``[..., A]``.
        log_std: log σ, ``[..., A]``.

    Returns:
        Scalar, without its weight (released: 1e-3).
    """
    return mean.square().mean() + log_std.square().mean()
