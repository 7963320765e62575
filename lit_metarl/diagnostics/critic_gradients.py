"""Whether a critic's action gradient points where the return rises, the measure of Sarafian et al. 2021, Fig. 3.

At S states, K actions around the policy's own are tried; a linear fit of their returns is the "true" gradient, and its
cosine with ∇_a Q of the critic says how well the critic leads the actor. Actions are ``[S, K, A]``, returns ``[S, K]``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class FittedGradient(NamedTuple):
    """Least-squares gradient of returns ``[S, K]`` in actions at every state, and how much of them it explains.

    As Sarafian et al. 2021 estimate the true gradient.
    """

    gradient: Tensor  # [S, A]
    r_squared: Tensor  # [S], adjusted for the A directions; NaN where all returns are the same, or K ≤ A + 1


def fitted_gradient(action: Tensor, value: Tensor) -> FittedGradient:
    """g minimising Σ_{i<j} (R_i − R_j − g·(a_i − a_j))² at every state (Sarafian et al. 2021).

    The regression of all pairwise differences without an intercept is that of the deviations from the mean, as
    Σ_{i<j} (x_i − x_j)² = K Σ_i (x_i − x̄)²: one least-squares problem with K rows, in float64. With fewer different
    actions than K = A + 1 the smallest solution. The curvature of the return enters where the actions are not
    symmetric: R² says how far a plane is from it, 1 − (Σ e²/(K − 1 − A)) / (Σ (R − R̄)²/(K − 1)) with the residuals e.
    Not adjusted for A it would be A/(K − 1) on average of returns that are nothing but noise.

    Args:
        action: ``[S, K, A]``.
        value: returns, ``[S, K]``.
    """
    action, value = action.double(), value.double()  # deviations rounded to float32 add up to a direction of their own
    a, r = action - action.mean(1, keepdim=True), value - value.mean(1, keepdim=True)
    gradient = torch.linalg.lstsq(a, r.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    rest = r - torch.einsum("ska,sa->sk", a, gradient)
    _, tried, directions = a.shape
    free = tried - 1 - directions
    left = rest.square().sum(-1) / free if free > 0 else torch.full_like(r[:, 0], torch.nan)
    return FittedGradient(gradient, 1.0 - left * (tried - 1) / r.square().sum(-1))


class Agreement(NamedTuple):
    """Cosines ``[S]`` summed up: their mean, and the shares above two thresholds, as Sarafian et al. 2021, Fig. 3."""

    cosine: Tensor  # scalar
    above_quarter: Tensor  # scalar, the share above 0.25
    above_three_quarters: Tensor  # scalar, the share above 0.75


def agreement(gradient: Tensor, other: Tensor) -> Agreement:
    """Cosine g·h/(|g||h|) of two gradients ``[S, A]`` at every state, summed up (Sarafian et al. 2021, Fig. 3).

    Near a maximum both are noise: the shares are less affected by such states than the mean.
    """
    cosine = F.cosine_similarity(gradient.double(), other.double(), dim=-1)
    return Agreement(cosine.mean(), (cosine > 0.25).double().mean(), (cosine > 0.75).double().mean())


def chance_above(threshold: float, directions: int) -> float:
    """Share of random directions whose cosine with a given one is above a threshold.

    ∫_0^φ sin^(A−2) θ dθ / ∫_0^π sin^(A−2) θ dθ with φ = arccos of the threshold, of directions that are uniform on the
    sphere in A dimensions; ½ for A = 1. Summed over 100,000 values of θ: right to 1e-5. The shares in Fig. 3 of
    Sarafian et al. 2021 are as large for a critic that tells nothing.

    Args:
        threshold: in [0, 1).
        directions: A ≥ 1, of gradients ``[A]``.
    """
    if directions == 1:
        return 0.5
    angle = (np.arange(100_000) + 0.5) * (np.pi / 100_000)
    density = np.sin(angle) ** (directions - 2)
    return float(density[angle < np.arccos(threshold)].sum() / density.sum())
