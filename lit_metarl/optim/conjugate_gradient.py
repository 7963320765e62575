"""Linear systems of which only products with the matrix are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    hvp: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int = 10,
    damping: float = 0.0,
    residual_tol: float = 1e-10,
) -> Tensor:
    """x ≈ (H + damping·I)⁻¹ b from ``x = 0`` (Hestenes & Stiefel 1952), H symmetric and positive semi-definite.

    The k-th iterate minimises xᵀHx/2 − bᵀx over a space of dimension k, so it is a direction of ascent for b at every
    k and equals the solution after as many iterations as H has distinct eigenvalues.

    Args:
        hvp: v ``[P]`` → Hv ``[P]``.
        b: ``[P]``.
        iterations: at most this many products with H.
        damping: added to the diagonal of H; bounds the step where H is singular.
        residual_tol: stop once |b − Hx|² ≤ residual_tol·|b|².

    Returns:
        ``[P]`` without a graph; 0 for ``b = 0``. A direction without positive, finite curvature, along which the
        quadratic has no minimum, ends the iteration at the last good iterate.
    """
    b = b.detach()
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    squared = residual.dot(residual)
    limit = residual_tol * squared
    for _ in range(iterations):
        if squared <= limit:
            break
        product = hvp(direction).detach() + damping * direction
        step = squared / direction.dot(product)
        if not (torch.isfinite(step) and step > 0.0):
            break
        x = x + step * direction
        residual = residual - step * product
        previous, squared = squared, residual.dot(residual)
        direction = residual + (squared / previous) * direction
    return x
