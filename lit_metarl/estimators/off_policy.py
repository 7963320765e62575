"""Off-policy evaluation: estimates of J(θ) from trajectories of a behaviour policy μ, to be differentiated in θ.

Tang et al. 2021, "Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy Evaluation", Eq. 3–8.
If an estimate of the value is unbiased for all θ near the current one, so are its derivatives (Proposition 3.1). Data
collected by the current policy is the case μ = π_θ: every ratio is 1, and its derivatives are not 0.

Axes: any leading ones, ``N`` trajectories, ``T`` steps. All functions take log ρ_t = log π_θ(a_t|s_t) − log μ(a_t|s_t)
``[..., N, T]`` from :func:`log_importance_ratio`, reduce T and return one value per trajectory ``[..., N]``; what
padded entries (mask 0) hold never matters. Data (rewards, critics, advantages) is constant unless said otherwise.
Products of ratios are exponentials of sums, so that all orders of derivatives are cheap and work under ``vmap``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_metarl.estimators.returns import discounts, following_value


def log_importance_ratio(log_prob: Tensor, behaviour_log_prob: Tensor, mask: Tensor) -> Tensor:
    """log ρ_t = log π_θ(a_t|s_t) − log μ(a_t|s_t), 0 at padded entries (Tang et al. 2021, section 3.1).

    Args:
        log_prob: of the current policy, summed over action dimensions, ``[..., N, T]``, with its graph.
        behaviour_log_prob: of the policy that acted, ``[..., N, T]``, constant.
        mask: ``[..., N, T]``.

    Returns:
        ``[..., N, T]``.
    """
    return torch.where(mask > 0, log_prob - behaviour_log_prob, 0.0)


def before(x: Tensor) -> Tensor:
    """Σ_{s<t} x_s, the exclusive running sum behind Π_{s<t} ρ_s (Tang et al. 2021, section 3.1).

    Args:
        x: ``[..., T]``.

    Returns:
        ``[..., T]``, 0 at t = 0.
    """
    return pad(x.cumsum(-1)[..., :-1], (1, 0))


def step_wise_is(log_ratio: Tensor, reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_t γ^t (Π_{s≤t} ρ_s) r_t, step-wise importance sampling (Tang et al. 2021, section 3.1; Precup et al. 2000).

    Order 0, 1, 2: unbiased, on- and off-policy. The variance grows with the product of ratios and with the rewards
    themselves: use :func:`doubly_robust` where there is a critic, :func:`taypo` far from the behaviour policy.

    Args:
        log_ratio: ``[..., N, T]``.
        reward: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: γ in [0, 1].

    Returns:
        ``[..., N]``, T reduced.
    """
    valid = mask > 0
    product = torch.where(valid, log_ratio, 0.0).cumsum(-1).exp()
    weight = discounts(reward.shape[-1], gamma, reward)
    return (weight * product * torch.where(valid, reward, 0.0)).sum(-1)


def doubly_robust(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    gamma: float,
    bootstrap: Tensor | None = None,
    q_value: Tensor | None = None,
) -> Tensor:
    """v_t = V(s_t) + ρ_t (r_t + γ·v_{t+1} − Q(s_t, a_t)), the output being v_0 (Tang et al. 2021, Eq. 3).

    Order 0, 1, 2: unbiased, on- and off-policy, whatever the critic is, up to what ``bootstrap`` stands for; little
    variance on-policy if the critic is good. Off-policy the products of ratios remain: see :func:`taypo`.

    Args:
        log_ratio: ``[..., N, T]``.
        reward: ``[..., N, T]``.
        value: V(s_t), ``[..., N, T]``. Constant if it is a state-value critic; together with ``q_value`` it must be
            Σ_a π_θ(a|s_t) Q(s_t, a) with the graph of π_θ, else the derivatives are biased.
        mask: ``[..., N, T]``.
        gamma: γ in [0, 1].
        bootstrap: V(s_T), ``[..., N]``, see :func:`~lit_metarl.estimators.returns.following_value`.
        q_value: Q(s_t, a_t), ``[..., N, T]``, constant; ``value`` if None, that is an action-independent critic.

    Returns:
        ``[..., N]``, T reduced.
    """
    return truncated_doubly_robust(log_ratio, reward, value, mask, gamma, math.inf, math.inf, bootstrap, q_value)


def truncated_doubly_robust(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    gamma: float,
    rho_max: float = 1.0,
    c_max: float = 1.0,
    bootstrap: Tensor | None = None,
    q_value: Tensor | None = None,
) -> Tensor:
    """v_t = V_t + min(ρ_t, ρ̄)(r_t + γV_{t+1} − Q_t) + γ·min(ρ_t, c̄)(v_{t+1} − V_{t+1}): v_0 (Espeholt et al. 2018).

    V-trace (their Eq. 1) with the critic of Tang et al. 2021, Eq. 3; computed as
    V_0 + Σ_t γ^t (Π_{s<t} min(ρ_s, c̄)) min(ρ_t, ρ̄) (r_t + γV_{t+1} − Q_t). Order 0, 1, 2: on-policy with bounds ≥ 1
    it is :func:`doubly_robust`, since a ratio equal to its bound (to 1e-4) keeps its whole gradient; off-policy biased
    at every order, and poor where ratios above the bound are what matters. Use :func:`taypo` instead.

    Args:
        log_ratio: ``[..., N, T]``.
        reward: ``[..., N, T]``.
        value: ``[..., N, T]``, as in :func:`doubly_robust`.
        mask: ``[..., N, T]``.
        gamma: γ in [0, 1].
        rho_max: ρ̄ > 0.
        c_max: c̄ > 0.
        bootstrap: ``[..., N]``.
        q_value: ``[..., N, T]``.

    Returns:
        ``[..., N]``, T reduced.
    """
    valid = mask > 0
    log_ratio = torch.where(valid, log_ratio, 0.0)
    error = reward + gamma * following_value(value, mask, bootstrap) - (value if q_value is None else q_value)
    product = (before(_at_most(log_ratio, c_max)) + _at_most(log_ratio, rho_max)).exp()
    weight = discounts(reward.shape[-1], gamma, reward)
    corrections = weight * product * torch.where(valid, error, 0.0)
    return torch.where(valid[..., 0], value[..., 0], 0.0) + corrections.sum(-1)


TIE = 1e-4  # log-ratios this far above a bound still tie with it


def _at_most(log_ratio: Tensor, bound: float) -> Tensor:
    # On-policy every ratio ties at 1, and log-probabilities computed anew, by another kernel or in another batch,
    # differ by roundings: without a tolerance about half of all gradients would be cut. Not minimum or clamp: at an
    # exact tie the former routes half of the gradient.
    return torch.where(log_ratio <= math.log(bound) + TIE, log_ratio, math.log(bound))


def taypo(log_ratio: Tensor, advantage: Tensor, mask: Tensor, gamma: float, order: int) -> Tensor:
    """Σ_{k=1..K} U_k with U_k = Σ_{t₁<…<t_k} γ^{t_k} Π_i (ρ_{t_i} − 1) A_{t_k} (Tang et al. 2021, Eq. 6 and 8).

    U_0, a constant in θ, is left out, so the value is an estimate of J(π_θ) − J(μ). As Π_{s<t} ρ_s expands into sums
    over subsets of earlier steps, this is Σ_t γ^t w_t (ρ_t − 1) A_t, where w_t keeps the subsets of less than K steps:
    K running sums instead of T^K terms. K = 1 is LVC; K ≥ T has all terms and is :func:`doubly_robust`.

    Orders up to K: unbiased on-policy if A_t is, given (s_t, a_t), in expectation Q^μ(s_t, a_t) − b(s_t); the orders
    above miss terms. Off-policy biased by O(‖π − μ‖^{K+1}), Eq. 7; the variance grows with K.

    Args:
        log_ratio: ``[..., N, T]``.
        advantage: A_t or Q_t under μ, ``[..., N, T]``, constant.
        mask: ``[..., N, T]``.
        gamma: γ of the weight γ^t of the *last* index; 1 drops it, as practice does (biased if the true one is less).
        order: K ≥ 1.

    Returns:
        ``[..., N]``, T reduced.
    """
    valid = mask > 0
    excess = torch.where(valid, log_ratio, 0.0).expm1()
    kept = subsets = torch.ones_like(excess)
    for _ in range(order - 1):
        subsets = before(excess * subsets)  # Σ over one step more, all of them before t
        kept = kept + subsets
    weight = discounts(excess.shape[-1], gamma, excess)
    return (weight * kept * excess * torch.where(valid, advantage, 0.0)).sum(-1)
