"""Surrogates: values per trajectory whose derivatives in θ estimate those of J(θ).

What "order 1" and "order 2" claim holds for trajectories of the current policy (μ = π_θ) unless off-policy is named,
and for the mean over N. Axes: any leading ones, ``N`` trajectories, ``T`` steps; T is reduced by a *sum*, results are
``[..., N]``; what padded entries (mask 0) hold never matters. ``log_ratio`` comes from
:func:`~lit_metarl.estimators.off_policy.log_importance_ratio` with the graph of the policy; all else is constant data.

Where a surrogate takes an advantage, ``gamma`` is the γ of its weight γ^t: 1 drops the weight as practice does, which
biases all orders towards late steps. Where it takes rewards, ``gamma`` must be the true discount.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_metarl.estimators.off_policy import before, step_wise_is
from lit_metarl.estimators.returns import discounted_suffix_sum, discounts


def log_likelihood(log_prob: Tensor, advantage: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_t γ^t log π_θ(a_t|s_t) A_t, the policy gradient of Williams (1992) and the inner loss of Finn et al. 2017.

    Order 0: meaningless. Order 1: unbiased. Order 2: biased, Σ_t ∇²log π_t A_t lacks every product of scores; use
    :func:`loaded_dice` or TayPO-2 where Hessians of J matter. It is the right inner surrogate where the dependence of
    the data on θ is accounted for elsewhere, as the score term of SG-MRL does (Fallah et al. 2021, Eq. 13).

    Args:
        log_prob: ``[..., N, T]`` with its graph.
        advantage: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: of the weight γ^t.

    Returns:
        ``[..., N]``.
    """
    weight = discounts(log_prob.shape[-1], gamma, log_prob)
    return (weight * torch.where(mask > 0, log_prob * advantage, 0.0)).sum(-1)


def likelihood_ratio(log_ratio: Tensor, advantage: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_t γ^t ρ_t A_t: LVC (Rothfuss et al. 2019; Liu et al. 2019, Eq. 6), TayPO-1 up to a constant (Tang et al. 2021).

    Order 1: unbiased. Order 2: biased, the products of scores of different steps are missing; low variance. Off-policy
    all orders are biased to first order in π − μ. Use TayPO-2 for the missing terms.

    Args:
        log_ratio: ``[..., N, T]``.
        advantage: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: of the weight γ^t.

    Returns:
        ``[..., N]``.
    """
    ratio = torch.where(mask > 0, log_ratio, 0.0).exp()
    weight = discounts(ratio.shape[-1], gamma, ratio)
    return (weight * ratio * torch.where(mask > 0, advantage, 0.0)).sum(-1)


def dice(log_ratio: Tensor, reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_t γ^t (Π_{s≤t} ρ_s) r_t (Foerster et al. 2018; Liu et al. 2019, Eq. 5): step-wise importance sampling.

    Order 0, 1, 2: unbiased, off-policy too; high variance. Use :func:`tmaml` or :func:`loaded_dice` instead.

    Args:
        log_ratio: ``[..., N, T]``.
        reward: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: the discount.

    Returns:
        ``[..., N]``.
    """
    return step_wise_is(log_ratio, reward, mask, gamma)


def loaded_dice(log_ratio: Tensor, advantage: Tensor, mask: Tensor, gamma: float, decay: float = 1.0) -> Tensor:
    """Σ_t γ^t (e^{w_t} − e^{v_t}) A_t with w_t = Σ_{s≤t} λ^{t−s} log ρ_s, v_t = w_t − log ρ_t (Farquhar et al. 2019).

    Their Algorithm 1, with the decay λ of the influence of earlier actions. Order 1: unbiased. Order 2: unbiased if
    λ = 1, off-policy too if A is reward-to-go − b(s), when it is the doubly robust estimate up to a constant; biased
    for λ < 1, towards LVC at λ = 0, with less variance.

    Args:
        log_ratio: ``[..., N, T]``.
        advantage: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: of the weight γ^t.
        decay: λ in [0, 1].

    Returns:
        ``[..., N]``.
    """
    valid = mask > 0
    log_ratio = torch.where(valid, log_ratio, 0.0)
    until = discounted_suffix_sum(log_ratio.flip(-1), decay).flip(-1)
    weight = discounts(log_ratio.shape[-1], gamma, log_ratio)
    return (weight * (until - log_ratio).exp() * log_ratio.expm1() * torch.where(valid, advantage, 0.0)).sum(-1)


def tmaml(
    log_ratio: Tensor, reward: Tensor, value: Tensor, mask: Tensor, gamma: float, eq7_printed: bool = False
) -> Tensor:
    """DiCE with baselines at both orders: :func:`dice` − Σ_t γ^t (1 − P_t)(1 − ρ_t) b_t + Σ_t γ^t (1 − ρ_t) b_t.

    P_t = Π_{s<t} ρ_s, and b_t = V(s_t) in the units of the discounted reward-to-go. The first sum is the control
    variate of Liu et al. 2019, Eq. 7, with the steps *before* t and a minus sign; the second is the usual baseline of
    the gradient. Together they are Σ_t γ^t P_t (1 − ρ_t) b_t, and with them DiCE is the doubly robust estimate, written
    in another way. Order 0, 1, 2: unbiased, off-policy too.

    ``eq7_printed`` adds Σ_t γ^t (1 − P_t ρ_t)(1 − ρ_t) b_t to DiCE, as the paper prints. Order 1: unbiased, with all
    the variance of DiCE. Order 2: biased by 2 Σ_t γ^t E[b_t ∇log π_t ∇log π_tᵀ], since the factor of t itself is
    squared, and more variance than DiCE, since the sign is wrong.

    Args:
        log_ratio: ``[..., N, T]``.
        reward: ``[..., N, T]``.
        value: b_t, ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: the discount.
        eq7_printed: the printed control variate instead of the right ones.

    Returns:
        ``[..., N]``.
    """
    valid = mask > 0
    log_ratio = torch.where(valid, log_ratio, 0.0)
    baseline = discounts(value.shape[-1], gamma, value) * torch.where(valid, value, 0.0)
    if eq7_printed:
        variate = log_ratio.cumsum(-1).expm1() * log_ratio.expm1() * baseline
    else:
        variate = -before(log_ratio).exp() * log_ratio.expm1() * baseline
    return dice(log_ratio, reward, mask, gamma) + variate.sum(-1)


def anova(log_ratio: Tensor, reward: Tensor, value: Tensor, effect: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """DiCE with action-dependent baselines of a factorised policy π = Π_i π^i, by inclusion and exclusion.

    :func:`dice` + Σ_t γ^t P_t [(1 − ρ_t) V_t + Σ_i (ρ_t^i − ρ_t) d_i(s_t, a_t^i)], P_t = Π_{s<t} ρ_s, ρ_t = Π_i ρ_t^i.

    The baseline of coordinate i is b_i(s, a^{−i}) = V + Σ_{j≠i} d_j (Liu et al. 2019, Eq. 11; Wu et al. 2018). Let b_S
    be the critic with the coordinates S averaged out; Σ_{S≠∅} Π_{j∉S} ρ^j Π_{i∈S} (1 − ρ^i) b_S is the projection of
    the critic, 2^A − 1 terms. Where b_S = V + Σ_{j∉S} d_j they collapse to the sum above, linear in A: exact for two
    dimensions and any critic, and for any number if the critic is additive over coordinates, as a regression on
    [s, a, a², s·a] is; interactions of three and more dimensions are left out, which costs variance, not bias.

    Order 0, 1, 2: unbiased, off-policy too, whatever function of (s, a^i) alone d_i is: E[ρ^i d_i] = E[ρ d_i].

    Args:
        log_ratio: log ρ_t^i, ``[..., N, T, A]``.
        reward: ``[..., N, T]``.
        value: V_t, ``[..., N, T]``.
        effect: d_i, ``[..., N, T, A]``.
        mask: ``[..., N, T]``.
        gamma: the discount.

    Returns:
        ``[..., N]``.
    """
    each = torch.where(mask[..., None] > 0, log_ratio, 0.0)
    whole = each.sum(-1)
    excess = whole.expm1()
    by_effect = (torch.where(mask[..., None] > 0, effect, 0.0) * (each.expm1() - excess[..., None])).sum(-1)
    step = by_effect - excess * torch.where(mask > 0, value, 0.0)
    return _with_variates(whole, reward, step, mask, gamma)


def ordered(log_ratio: Tensor, reward: Tensor, baseline: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """DiCE with action-dependent baselines b_i(s, a^{−i}) of a factorised policy, coordinate after coordinate.

    :func:`dice` + Σ_t γ^t P_t Σ_i (Π_{j<i} ρ_t^j) (1 − ρ_t^i) b_i, P_t = Π_{s<t} ρ_s (Liu et al. 2019, Eq. 7 put right
    and Eq. 11). It is :func:`loaded_dice` on the sequence flattened to (step, coordinate) with A = G_t − b_i, and
    :func:`tmaml` if all b_i are V. Order 0, 1, 2: unbiased, off-policy too, as E_{a^i}[1 − ρ^i] = 0 given all that the
    other factors depend on; biased at every order if b_i sees its own coordinate. :func:`anova` depends on no order
    of the coordinates; which of the two has less variance differs by MDP (``lit-metarl study control_variates``).

    Args:
        log_ratio: log ρ_t^i, ``[..., N, T, A]``.
        reward: ``[..., N, T]``.
        baseline: b_i, ``[..., N, T, A]``.
        mask: ``[..., N, T]``.
        gamma: the discount.

    Returns:
        ``[..., N]``.
    """
    each = torch.where(mask[..., None] > 0, log_ratio, 0.0)
    baseline = torch.where(mask[..., None] > 0, baseline, 0.0)
    step = -(before(each).exp() * each.expm1() * baseline).sum(-1)
    return _with_variates(each.sum(-1), reward, step, mask, gamma)


def _with_variates(log_ratio: Tensor, reward: Tensor, step: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """DiCE + Σ_t γ^t P_t step_t, ``[..., N]``."""
    weight = discounts(step.shape[-1], gamma, step)
    return dice(log_ratio, reward, mask, gamma) + (weight * before(log_ratio).exp() * step).sum(-1)


def clipped_ratio(log_ratio: Tensor, advantage: Tensor, mask: Tensor, gamma: float, clip: float) -> Tensor:
    """Σ_t γ^t min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) (Schulman et al. 2017, Eq. 7).

    Order 1: unbiased at ρ = 1, a lower bound of :func:`likelihood_ratio` elsewhere. Order 2: as biased as that. For
    outer updates over several epochs, not for derivatives of J.

    Args:
        log_ratio: ``[..., N, T]``.
        advantage: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: of the weight γ^t.
        clip: ε > 0.

    Returns:
        ``[..., N]``.
    """
    valid = mask > 0
    ratio, advantage = torch.where(valid, log_ratio, 0.0).exp(), torch.where(valid, advantage, 0.0)
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
    weight = discounts(ratio.shape[-1], gamma, ratio)
    return (weight * torch.minimum(ratio * advantage, clipped)).sum(-1)
