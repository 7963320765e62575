"""One step of trust-region policy optimization (Schulman et al. 2015, "Trust Region Policy Optimization", appendix C).

Maximises objective(θ) subject to KL(θ_old ‖ θ) ≤ max_kl: a natural-gradient direction scaled to the boundary of the
quadratic model of the constraint, then a line search on the true objective and the true KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_metarl.optim.conjugate_gradient import conjugate_gradient
from lit_metarl.types import Params

Reduce = Callable[[Tensor], Tensor]
"""Mean of a tensor over processes; the identity on one process."""


class TrustRegionStep(NamedTuple):
    """The outcome of a step; all zero where it was rejected and the parameters are the old ones."""

    improvement: float  # of the objective, in its own units
    kl: float  # of the new parameters, in nats
    fraction: float  # of the full natural-gradient step: backtrack_ratio^j
    accepted: bool


REJECTED = TrustRegionStep(improvement=0.0, kl=0.0, fraction=0.0, accepted=False)


def hessian_vector_product(kl: Callable[[Params], Tensor], params: Params) -> Callable[[Tensor], Tensor]:
    """v ``[P]`` → ∇²kl(params)·v ``[P]``, exact, by a second backward pass through the graph of the gradient.

    That graph is built once here and kept as long as the returned function: a product costs one backward pass. Where
    ``kl`` is a mean KL(θ_old ‖ θ) at θ = θ_old, its Hessian is the Fisher matrix.

    Args:
        kl: parameters → scalar, twice differentiable.
        params: P numbers in all, flattened in the order of the dictionary. Those that ``kl`` does not read have
            zero rows and columns.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    inputs = list(leaves.values())
    with torch.enable_grad():
        gradient = _flatten(torch.autograd.grad(kl(leaves), inputs, create_graph=True, materialize_grads=True))

    def product(vector: Tensor) -> Tensor:
        return _flatten(torch.autograd.grad(gradient, inputs, vector, retain_graph=True, materialize_grads=True))

    return product


def trust_region_step(
    params: Params,
    gradient: Params,
    kl: Callable[[Params], Tensor],
    objective: Callable[[Params], Tensor],
    max_kl: float = 0.01,
    cg_iterations: int = 10,
    damping: float = 1e-5,
    backtrack_ratio: float = 0.8,
    backtrack_steps: int = 15,
    reduce: Reduce = lambda tensor: tensor,
) -> tuple[Params, TrustRegionStep]:
    """θ ← θ + β^j·√(2·max_kl / gᵀs)·s with s ≈ (F + damping·I)⁻¹ g, for the least j = 0, 1, … that is accepted.

    Accepted means that the objective is finite and larger than at θ and that KL ≤ max_kl.

    Args:
        params: θ.
        gradient: g = ∇objective(θ), by the names of ``params``.
        kl: parameters → mean KL(θ ‖ ·) in nats, a scalar; 0 and minimal at ``params``. Called with a graph once, then
            without one: inner derivatives in it come from ``torch.func``.
        objective: parameters → scalar to maximise; called without a graph.
        max_kl: radius of the trust region, nats.
        cg_iterations: products with the Fisher matrix F.
        damping: see :func:`conjugate_gradient`.
        backtrack_ratio: β in (0, 1).
        backtrack_steps: lengths to try, the full one included.
        reduce: applied to the gradient, to every product with F and to the scalars of the line search, so that all
            processes take the same step.

    Returns:
        New parameters without a graph, and what the step did. The very ``params`` that came in if no length is
        accepted, or if the gradient is zero or not finite.
    """
    g = reduce(_flatten(gradient[name].detach() for name in params))
    product = hessian_vector_product(kl, params)
    direction = conjugate_gradient(lambda v: reduce(product(v)), g, cg_iterations, damping)
    # Conjugate gradients leave a residual orthogonal to the iterate, so gᵀs = sᵀ(F + damping·I)s without a product.
    slope = float(g.dot(direction))
    if not (math.isfinite(slope) and slope > 0.0):
        return params, REJECTED
    full_step = math.sqrt(2.0 * max_kl / slope) * direction
    fractions = [backtrack_ratio**j for j in range(backtrack_steps)]
    return _line_search(params, full_step, fractions, kl, objective, max_kl, reduce)


@torch.no_grad()
def _line_search(
    params: Params,
    full_step: Tensor,
    fractions: Iterable[float],
    kl: Callable[[Params], Tensor],
    objective: Callable[[Params], Tensor],
    max_kl: float,
    reduce: Reduce,
) -> tuple[Params, TrustRegionStep]:
    """The longest of ``fractions`` of ``full_step [P]`` that raises the objective within the trust region."""
    start, before = _flatten(params.values()), objective(params)
    for fraction in fractions:
        candidate = _unflatten(start + fraction * full_step, params)
        improvement, distance = reduce(torch.stack([objective(candidate) - before, kl(candidate)])).tolist()
        if 0.0 < improvement < math.inf and -math.inf < distance <= max_kl:
            return candidate, TrustRegionStep(improvement, distance, fraction, True)
    return params, REJECTED


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(vector: Tensor, like: Params) -> Params:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, like.items(), strict=True)}
