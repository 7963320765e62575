"""Returns and advantages of trajectories, before any derivative is asked for.

Axes: any leading ones, then ``N`` trajectories and ``T`` steps. ``mask`` is 1 while an episode ran and 0 after its end;
what padded entries hold never matters, and the value after the end of an episode is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def discounts(num_steps: int, gamma: float, like: Tensor) -> Tensor:
    """γ^t for t = 0 … T−1, the weight of step t in J(θ) = E Σ_t γ^t r_t (Sutton & Barto 2018, Eq. 3.8).

    Args:
        num_steps: T.
        gamma: γ in [0, 1]; 1 gives ones, which is how practice drops the weight of an advantage (biased for γ < 1).
        like: a tensor whose dtype and device are taken.

    Returns:
        ``[T]``.
    """
    return gamma ** torch.arange(num_steps, dtype=like.dtype, device=like.device)


def discounted_suffix_sum(x: Tensor, factor: float) -> Tensor:
    """y_t = Σ_{s≥t} factor^{s−t} x_s, the recursion y_t = x_t + factor·y_{t+1} (Schulman et al. 2016, Eq. 16).

    Sums of 2, 4, 8 … steps are built from each other (Hillis & Steele 1986, "Data parallel algorithms"): ⌈log₂ T⌉
    vector operations, no ``[T, T]`` matrix and no division by small powers of ``factor``.

    Args:
        x: ``[..., T]``.
        factor: in [0, 1].

    Returns:
        ``[..., T]``.
    """
    span, num_steps = 1, x.shape[-1]
    while span < num_steps:
        x = x + factor**span * pad(x[..., span:], (0, span))
        span *= 2
    return x


def reward_to_go(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = Σ_{s≥t} γ^{s−t} r_s (Sutton & Barto 2018, Eq. 3.8).

    Order 0: unbiased for Q(s_t, a_t) of the policy that acted. High variance: subtract a value (:func:`gae`).

    Args:
        reward: ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: γ in [0, 1].

    Returns:
        ``[..., N, T]``, 0 at padded entries.
    """
    return discounted_suffix_sum(torch.where(mask > 0, reward, 0.0), gamma)


def following_value(value: Tensor, mask: Tensor, bootstrap: Tensor | None = None) -> Tensor:
    """V(s_{t+1}), with 0 after the end of an episode (the ``V(s_{t+1})`` of Schulman et al. 2016, Eq. 10).

    Args:
        value: V(s_t), ``[..., N, T]``.
        mask: ``[..., N, T]``.
        bootstrap: V(s_T) of episodes that ran through all T steps, ``[..., N]``; 0 if None. Of those that ended
            earlier it does not matter; give 0 for one that terminated exactly at the last step.

    Returns:
        ``[..., N, T]``; of no meaning at padded entries.
    """
    last = torch.zeros_like(value[..., 0]) if bootstrap is None else bootstrap
    return torch.cat([torch.where(mask > 0, value, 0.0)[..., 1:], last.unsqueeze(-1)], dim=-1)


def gae(
    reward: Tensor, value: Tensor, mask: Tensor, gamma: float, gae_lambda: float, bootstrap: Tensor | None = None
) -> Tensor:
    """A_t = Σ_{s≥t} (γλ)^{s−t} δ_s with δ_t = r_t + γ·V(s_{t+1}) − V(s_t) (Schulman et al. 2016, Eq. 16).

    Order 0: with λ = 1 it is reward-to-go − V(s_t), in expectation Q(s_t, a_t) − V(s_t), so surrogates stay unbiased
    whatever V is; with λ < 1 they are biased unless V is exact, with less variance.

    Args:
        reward: ``[..., N, T]``.
        value: V(s_t), ``[..., N, T]``.
        mask: ``[..., N, T]``.
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1].
        bootstrap: V(s_T), ``[..., N]``, see :func:`following_value`.

    Returns:
        ``[..., N, T]``, 0 at padded entries. Not normalised: see :func:`normalise`.
    """
    error = reward + gamma * following_value(value, mask, bootstrap) - value
    return discounted_suffix_sum(torch.where(mask > 0, error, 0.0), gamma * gae_lambda)


def normalise(advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(A − mean)/std over all valid entries of one task, as practice does (Andrychowicz et al. 2021).

    It rescales the step size per task; subtracting the mean biases every surrogate (by an amount that vanishes as N
    grows) and makes any sum of advantages over a task 0. Where several signals belong together (reward, value),
    divide them by the same ``scale``.

    Args:
        advantage: ``[..., N, T]``.
        mask: ``[..., N, T]``.

    Returns:
        The normalised advantage ``[..., N, T]``, 0 at padded entries, and ``scale`` ``[...]``: the standard deviation
        over N and T, or 1 where the advantages are equal up to rounding.
    """
    valid = mask > 0
    count = valid.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = torch.where(valid, advantage, 0.0).sum((-2, -1), keepdim=True) / count
    centred = torch.where(valid, advantage - mean, 0.0)
    std = (centred.square().sum((-2, -1), keepdim=True) / count).sqrt()
    rounding = 8 * torch.finfo(advantage.dtype).eps * mean.abs()
    scale = torch.where(std > rounding, std, 1.0)
    return centred / scale, scale[..., 0, 0]
