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

Evaluate = Callable[[Params], tuple[Tensor, Tensor]]
"""Parameters → objective and KL divergence, scalars."""


class TrustRegionStep(NamedTuple):
    """The outcome of a step; all zero where it was rejected and the parameters are the old ones."""

    improvement: float  # of the objective, in its own units
    kl: float  # of the new parameters, in nats
    fraction: float  # of the full natural-gradient step: backtrack_ratio^j
    accepted: bool


REJECTED = TrustRegionStep(improvement=0.0, kl=0.0, fraction=0.0, accepted=False)


def trust_region_step(
    params: Params,
    gradient: Params,
    product: Callable[[Params], Params],
    evaluate: Evaluate,
    value: Tensor,
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
        product: v by the names of ``params`` → F v, with F the Hessian at θ of the mean KL(θ ‖ ·).
        evaluate: parameters → the objective, a scalar to maximise, and the mean KL(θ ‖ ·) in nats; called without a
            graph.
        value: the objective at θ.
        max_kl: radius of the trust region, nats.
        cg_iterations: products with F.
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
    direction = conjugate_gradient(
        lambda v: reduce(_flatten(product(_unflatten(v, params)).values())), g, cg_iterations, damping
    )
    # Conjugate gradients leave a residual orthogonal to the iterate, so gᵀs = sᵀ(F + damping·I)s without a product.
    slope = float(g.dot(direction))
    if not (math.isfinite(slope) and slope > 0.0):
        return params, REJECTED
    full_step = math.sqrt(2.0 * max_kl / slope) * direction
    fractions = [backtrack_ratio**j for j in range(backtrack_steps)]
    return _line_search(params, full_step, fractions, evaluate, value, max_kl, reduce)


@torch.no_grad()
def _line_search(
    params: Params,
    full_step: Tensor,
    fractions: Iterable[float],
    evaluate: Evaluate,
    value: Tensor,
    max_kl: float,
    reduce: Reduce,
) -> tuple[Params, TrustRegionStep]:
    """The longest of ``fractions`` of ``full_step [P]`` that raises the objective within the trust region."""
    start = _flatten(params.values())
    for fraction in fractions:
        candidate = _unflatten(start + fraction * full_step, params)
        after, distance = evaluate(candidate)
        improvement, distance = reduce(torch.stack([after - value, distance])).tolist()
        if 0.0 < improvement < math.inf and -math.inf < distance <= max_kl:
            return candidate, TrustRegionStep(improvement, distance, fraction, True)
    return params, REJECTED


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(vector: Tensor, like: Params) -> Params:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, like.items(), strict=True)}
