"""Readings of the tangent kernels of :mod:`lit_metarl.diagnostics.kernels`: magnitudes, spectrum, margins.

Evmorfos & Petropulu 2024, "A meta-preconditioning approach for deep Q-learning", Eq. 7–9. All functions are of kernels
``[..., M, M]`` over M samples, and differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def off_diagonal(kernel: Tensor) -> Tensor:
    """``kernel`` ``[..., M, M]`` with zeros on its diagonal."""
    return kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1))


def mean_magnitudes(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """mean_i |K_ii| and mean_{i≠j} |K_ij| (Eq. 9), ``[..., M, M]`` → two ``[...]``.

    Raises:
        ValueError: fewer than two samples.
    """
    size = kernel.shape[-1]
    if size < 2:
        raise ValueError(f"A kernel of {size} sample has no off-diagonal elements: pass at least two samples.")
    diagonal = kernel.diagonal(dim1=-2, dim2=-1).abs()
    return diagonal.mean(-1), off_diagonal(kernel).abs().sum((-2, -1)) / (size * (size - 1))


def ntk_ratio(kernel: Tensor) -> Tensor:
    """mean_i |K_ii| / mean_{i≠j} |K_ij|, the ratio of Evmorfos & Petropulu 2024, Fig. 3. ``[..., M, M]`` → ``[...]``.

    Above 1 where steps generalise little; it does not depend on the scale of Q.

    Raises:
        ValueError: fewer than two samples.
    """
    diagonal, others = mean_magnitudes(kernel)
    return diagonal / others


def spectrum(kernel: Tensor) -> Tensor:
    """Eigenvalues of symmetric kernels in descending order, ``[..., M, M]`` → ``[..., M]``.

    Along the eigenvector of λ, a gradient step of size η on Σ_i (y_i − Q_i)²/2M removes the share ηλ/M of the error
    (Jacot et al. 2018, section 5, to first order in η). Rounding can make the least ones negative.
    """
    return torch.linalg.eigvalsh(kernel).flip(-1)


def effective_rank(kernel: Tensor) -> Tensor:
    """exp(−Σ_k p_k log p_k) with p_k = λ_k / Σ_l λ_l (Roy & Vetterli 2007). ``[..., M, M]`` → ``[...]`` in [1, M].

    M for a multiple of the identity, 1 for a kernel of rank one. Continuous and without a threshold, unlike the
    srank_δ of Kumar et al. 2021. Negative eigenvalues (rounding) count as zero; a kernel of zeros gives nan, and so
    does one that is not finite.
    """
    finite = kernel.isfinite().all(-1).all(-1)
    eigenvalues = spectrum(kernel.where(finite[..., None, None], 0.0)).clamp_min(0.0)
    return torch.special.entr(eigenvalues / eigenvalues.sum(-1, keepdim=True)).sum(-1).exp()


class Margin(NamedTuple):
    """Right minus left side of an inequality over M samples, each ``[...]``: positive where it holds with room."""

    mean: Tensor
    worst: Tensor
    satisfied: Tensor  # share of the samples for which the inequality holds


class ContractionMargins(NamedTuple):
    """Room in the conditions of Theorem 1, ``[...]``, sufficient for Q-learning to contract in the sup norm."""

    step_size: Margin  # Eq. 7, without unit
    dominance: Margin  # Eq. 8, in the units of K


def contraction_margins(
    kernel: Tensor, gamma: float, eta: float, frequencies: Tensor | None = None
) -> ContractionMargins:
    """Room left by Theorem 1 (Achiam et al. 2019; Evmorfos & Petropulu 2024, Eq. 7 and 8), right minus left side.

    Eq. 7: 1 − 2η K_ii ρ_i ≥ 0. Eq. 8: (1 − γ) K_ii ρ_i − (1 + γ) Σ_{j≠i} |K_ij| ρ_j ≥ 0. The theorem speaks of all
    state-action pairs; a minibatch checks it on a sample of them as if nothing else were stored.

    Args:
        kernel: ``[..., M, M]``.
        gamma: γ.
        eta: step size η of Eq. 3.
        frequencies: ρ ``[..., M]``, how often each sample is drawn; 1/M if None.

    Returns:
        A :class:`Margin` of each condition, fields ``[...]``.
    """
    diagonal = kernel.diagonal(dim1=-2, dim2=-1)
    rho = torch.full_like(diagonal, 1.0 / kernel.shape[-1]) if frequencies is None else frequencies.to(diagonal)
    neighbours = (off_diagonal(kernel).abs() * rho.unsqueeze(-2)).sum(-1)
    step_size = 1.0 - 2.0 * eta * diagonal * rho
    dominance = (1.0 - gamma) * diagonal * rho - (1.0 + gamma) * neighbours
    return ContractionMargins(_margin(step_size), _margin(dominance))


def _margin(room: Tensor) -> Margin:
    return Margin(room.mean(-1), room.amin(-1), (room >= 0.0).to(room.dtype).mean(-1))
