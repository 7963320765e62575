"""Neural tangent kernel of action-value networks: how far a step on one sample moves the value of another.

K_ij = ∇_w Q(s_i, a_i)ᵀ ∇_w Q(s_j, a_j) (Jacot et al. 2018; Evmorfos & Petropulu 2024, "A meta-preconditioning approach
for deep Q-learning", Eq. 6). K = J Jᵀ with the Jacobian J ``[M, P]`` of one critic with P parameters.

A critic is any module ``(obs [M, O], action [M, A]) → [E, M]``, evaluated with parameters given by name. Its E members
are independent networks, so each has a kernel of its own and the kernel between two of them is zero. Nothing here keeps
a graph; :mod:`lit_metarl.losses.preconditioning` has the kernels that can be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lit_metarl.types import Params


@torch.no_grad()
def exact_kernel(
    critic: nn.Module,
    params: Params,
    obs: Tensor,
    action: Tensor,
    member: int | None = None,
    chunk: int = 32,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """K_e = J_e J_eᵀ from per-sample gradients, without ever holding J.

    Row i is the derivative of all values along the gradient of sample i, a Jacobian-vector product in forward mode
    ("NTK-vector products", Novak et al. 2022). One backward pass of Σ_e Q_e gives a sample's gradients of
    all members at once, and the derivative of Q_e along them reads its own part only, as members share no parameter.
    Time is that of about 2·M²·P multiplications for P parameters in all; memory about 2·chunk·P numbers for any M.

    Args:
        critic: see the module.
        params: parameters by name.
        obs: ``[M, O]``.
        action: ``[M, A]``.
        member: this member's kernel only; for it, members may share parameters.
        chunk: samples whose gradients are held at once; does not change the result beyond rounding.
        dtype: to compute in, inputs and parameters converted to it; as they are if None.

    Returns:
        Symmetric ``[E, M, M]``; ``[1, M, M]`` for one ``member``. In (unit of Q)² per (unit of parameter)².
    """
    if dtype is not None:
        params, obs, action = {name: value.to(dtype) for name, value in params.items()}, obs.to(dtype), action.to(dtype)

    def values(p: Params, some_obs: Tensor, some_action: Tensor) -> Tensor:
        every = functional_call(critic, p, (some_obs, some_action))
        return every if member is None else every[member : member + 1]

    def gradient(one_obs: Tensor, one_action: Tensor) -> Params:
        return grad(lambda p: values(p, one_obs[None], one_action[None]).sum())(params)

    rows = []
    for start in range(0, obs.shape[0], chunk):
        gradients = vmap(gradient)(obs[start : start + chunk], action[start : start + chunk])
        # By symmetry, the samples before this chunk are done.
        remaining = partial(values, some_obs=obs[start:], some_action=action[start:])
        rows.append(nn.functional.pad(_derivatives(remaining, params, gradients), (start, 0)))
    upper = torch.cat(rows).transpose(0, 1).to(next(iter(params.values())).dtype).triu()
    return upper + upper.triu(1).mT


@torch.no_grad()
def sketched_kernel(
    critic: nn.Module,
    params: Params,
    obs: Tensor,
    action: Tensor,
    directions: int,
    generator: torch.Generator,
    chunk: int = 8,
) -> Tensor:
    """K ≈ D Dᵀ / S with D = J U, S standard normal directions U, by Jacobian-vector products in forward mode.

    Unbiased, since E[U Uᵀ] = I: the expectation of Evmorfos & Petropulu 2024, Eq. 13, without its finite difference.
    Var K̂_ij = (K_ij² + K_ii K_jj)/S. So off-diagonal elements smaller than K_ii/√S drown in noise: the ratio and the
    spectrum of a sketch are biased (its rank is at most S). :func:`exact_kernel` has neither fault.

    Args:
        critic: see the module. Members may share parameters.
        params: by name.
        obs: ``[M, O]``.
        action: ``[M, A]``.
        directions: S.
        generator: of the directions, on any device.
        chunk: directions held at once, chunk·(E·P) numbers; does not change the result beyond rounding.

    Returns:
        ``[E, M, M]``.
    """

    def values(p: Params) -> Tensor:
        return functional_call(critic, p, (obs, action))

    products = []
    for start in range(0, directions, chunk):
        drawn = [_direction(params, generator) for _ in range(min(chunk, directions - start))]
        stacked = {name: torch.stack([direction[name] for direction in drawn]) for name in params}
        products.append(_derivatives(values, params, stacked))
    derivative = torch.cat(products)
    return torch.einsum("sem,sen->emn", derivative, derivative) / directions


def ntk_ratio(kernel: Tensor) -> Tensor:
    """mean_i |K_ii| / mean_{i≠j} |K_ij|, the ratio of Evmorfos & Petropulu 2024, Fig. 3. ``[..., M, M]`` → ``[...]``.

    Above 1 where steps generalise little; it does not depend on the scale of Q.

    Raises:
        ValueError: fewer than two samples.
    """
    size = kernel.shape[-1]
    if size < 2:
        raise ValueError(f"A kernel of {size} sample has no off-diagonal elements: pass at least two samples.")
    diagonal = kernel.diagonal(dim1=-2, dim2=-1).abs()
    off_diagonal = _off_diagonal(kernel).abs().sum((-2, -1)) / (size * (size - 1))
    return diagonal.mean(-1) / off_diagonal


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
    """The two conditions of Theorem 1, which are sufficient for the Q-learning update to contract in the sup norm."""

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
    neighbours = (_off_diagonal(kernel).abs() * rho.unsqueeze(-2)).sum(-1)
    step_size = 1.0 - 2.0 * eta * diagonal * rho
    dominance = (1.0 - gamma) * diagonal * rho - (1.0 + gamma) * neighbours
    return ContractionMargins(_margin(step_size), _margin(dominance))


def _margin(room: Tensor) -> Margin:
    return Margin(room.mean(-1), room.amin(-1), (room >= 0.0).to(room.dtype).mean(-1))


def _off_diagonal(kernel: Tensor) -> Tensor:
    return kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1))


def _derivatives(values: Callable[[Params], Tensor], params: Params, directions: Params) -> Tensor:
    """Of ``values`` ``[E, M]`` along ``directions``, fields ``[S, ...]`` like ``params``: ``[S, E, M]``."""
    return vmap(lambda direction: jvp(values, (params,), (direction,))[1])(directions)


def _direction(params: Params, generator: torch.Generator) -> Params:
    """Standard normal numbers like ``params``, drawn where the generator lives."""
    return {
        name: torch.randn(value.shape, generator=generator, device=generator.device, dtype=value.dtype).to(value.device)
        for name, value in params.items()
    }
