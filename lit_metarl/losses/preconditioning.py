"""Meta-preconditioning of critics (Evmorfos & Petropulu 2024, "A meta-preconditioning approach for deep Q-learning").

Before any Q-learning, on transitions of a random policy, the critic's parameters w are moved so that *after* a Bellman
step w' = w − η ∇L_bell(w) its tangent kernel K = J Jᵀ has a strong diagonal: w ← w − β ∇L_m(w') (Eq. 3–4, 11,
Algorithm 1). :func:`meta_gradient` is that gradient; the step with β is the caller's. What L_m is and how K is had are
injected: a :class:`MetaObjective` and, in it, a :class:`~lit_metarl.diagnostics.kernels.KernelEstimate`.

=====================  ======================================================================================
:class:`LogCosine`     the one to use: log of the mean cosine between gradients of two samples
:class:`LogRatio`      log of mean off-diagonal over mean diagonal; good for some hundred steps, then collapses
:class:`Eq10`          as Eq. 10; unbounded below, −‖∇Q‖² rewards ever larger gradients
:class:`Contraction`   hinge on Eq. 8, relative to the diagonal
:class:`Eq14Printed`   as Eq. 14 is printed; its published step size destroys the critic in one step
=====================  ======================================================================================

A critic is a module ``(obs [M, O], action [M, A]) → [E, M]`` of E independent members, evaluated with parameters
given by name; losses of members are summed, so that each has the gradient it would have alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad

from lit_metarl.diagnostics.kernels import (
    FiniteDifference,
    KernelEstimate,
    Layerwise,
    Sketch,
    action_values,
    member_blocks,
    normal_directions,
)
from lit_metarl.diagnostics.ntk import mean_magnitudes, off_diagonal
from lit_metarl.types import Params


class SarsaBatch(NamedTuple):
    """Transitions with the action that followed: the tuples ``(s, a, r, s', a')`` of Algorithm 1, ``[M, ...]``."""

    obs: Tensor  # [M, O]
    action: Tensor  # [M, A]
    reward: Tensor  # [M]
    discount: Tensor  # [M] 0 where the MDP terminated, 1 elsewhere
    next_obs: Tensor  # [M, O]
    next_action: Tensor  # [M, A] of the random policy


class MetaGradient(NamedTuple):
    """∇L_m ``[as the parameters]`` and what shows whether it can be used: check ``objective`` and ``norm``."""

    gradient: Params
    objective: Tensor  # L_m(w') of every member, [E]; not finite once training has diverged
    bellman_loss: Tensor  # L_bell(w) of every member, [E]
    norm: Tensor  # of the whole gradient, scalar; not finite if any element of it is


class MetaObjective(ABC):
    """L_m, to be minimised: a value per member, ``[E]``, differentiable in the parameters."""

    @abstractmethod
    def value(
        self, critic: nn.Module, params: Params, batch: SarsaBatch, gamma: float, generator: torch.Generator
    ) -> Tensor:
        """L_m of every member at ``params``, ``[E]``; all randomness comes from ``generator``."""


@dataclass(frozen=True)
class KernelObjective(MetaObjective):
    """A function of the kernel over the batch, ``[E, M, M]`` → ``[E]``.

    Attributes:
        derivative: how the kernel is had.
    """

    derivative: KernelEstimate = field(default_factory=Layerwise)

    @abstractmethod
    def of_kernel(self, kernel: Tensor, gamma: float) -> Tensor:
        """The objective of a kernel, ``[E, M, M]`` → ``[E]``; M ≥ 2."""

    def value(
        self, critic: nn.Module, params: Params, batch: SarsaBatch, gamma: float, generator: torch.Generator
    ) -> Tensor:
        """The kernel's objective, :meth:`of_kernel`, at the batch's observations and actions, ``[E]``."""
        return self.of_kernel(self.derivative.kernel(critic, params, batch.obs, batch.action, generator), gamma)


@dataclass(frozen=True)
class LogCosine(KernelObjective):
    """log mean_{i≠j} |K_ij| / √(K_ii K_jj), ``[E]``: the mean cosine between the gradients of two samples.

    :class:`LogRatio` with every pair relative to its own diagonal elements: blind to the scale of Q and to the scale of
    every single gradient, so that samples whose gradients vanish are no gain. Needs a positive diagonal.
    """

    def of_kernel(self, kernel: Tensor, gamma: float) -> Tensor:
        """The log of the mean cosine, ``[E, M, M]`` → ``[E]``; −inf for a diagonal kernel."""
        scale = kernel.diagonal(dim1=-2, dim2=-1).sqrt()
        return mean_magnitudes(kernel / (scale.unsqueeze(-1) * scale.unsqueeze(-2)))[1].log()


@dataclass(frozen=True)
class LogRatio(KernelObjective):
    """log( mean_{i≠j} |K_ij| / mean_i K_ii ), ``[E]``: the ratio of Fig. 3 as a number without unit.

    The same for Q and for c·Q, so it cannot be lowered by blowing all gradients up or by shrinking them. It is a ratio
    of means, though, and falls as well when a few samples get all of the diagonal and the critic dies on the rest: the
    ratio then looks excellent, with an effective rank of 3. It gets there when β times the number of updates passes 30
    or so, by a sketch sooner. :class:`LogCosine` has no such end.
    """

    def of_kernel(self, kernel: Tensor, gamma: float) -> Tensor:
        """The log of the ratio of means, ``[E, M, M]`` → ``[E]``; −inf for a diagonal kernel."""
        diagonal, others = mean_magnitudes(kernel)
        return others.log() - diagonal.log()


@dataclass(frozen=True)
class Eq10(KernelObjective):
    """mean_{i≠j} |K_ij| − mean_i K_ii, ``[E]``: Eq. 10 over all pairs of the batch, in the units of K.

    Unbounded below: with a step size that does anything, gradients grow until they overflow.
    """

    def of_kernel(self, kernel: Tensor, gamma: float) -> Tensor:
        """The difference of the means, ``[E, M, M]`` → ``[E]``."""
        diagonal, others = mean_magnitudes(kernel)
        return others - diagonal


@dataclass(frozen=True)
class Contraction(KernelObjective):
    """mean_i max(0, (1 + γ) Σ_{j≠i} |K_ij|/K_ii − (1 − γ)), ``[E]``: what is missing to Eq. 8 with ρ_i = 1/M.

    Both sides are divided by K_ii ρ_i: K → 0 would satisfy Eq. 8 itself, and now every sample counts relative to its
    own diagonal element. A sum over the batch is compared with 1 − γ, so it is far from 0 for any usual critic, and
    its unit is the number of samples: step sizes are about M times smaller than those of :class:`LogRatio`.
    """

    def of_kernel(self, kernel: Tensor, gamma: float) -> Tensor:
        """The mean hinge, ``[E, M, M]`` → ``[E]``."""
        diagonal = kernel.diagonal(dim1=-2, dim2=-1)
        neighbours = off_diagonal(kernel).abs().sum(-1)
        return ((1.0 + gamma) * neighbours / diagonal - (1.0 - gamma)).relu().mean(-1)


@dataclass(frozen=True)
class Eq14Printed(MetaObjective):
    """mean over M and U of ‖d' UᵀU d‖² − ‖d U‖², ``[E]``, d and d' along U at (s, a) and (s', a'): Eq. 14 as printed.

    A negative control. With n parameters ‖U‖² is about n, so that the terms are n and n² times those of Eq. 10, the
    second in squared units; it is squared before the mean over directions, and the pairs are successive samples. With
    the published β = 1e-8 one step from a usual initialisation multiplies the kernel by more than 1e20.

    Attributes:
        derivative: d; the printed difference by default, :class:`~lit_metarl.diagnostics.kernels.JVP` for its limit.
    """

    derivative: Sketch = field(default_factory=FiniteDifference)

    def value(
        self, critic: nn.Module, params: Params, batch: SarsaBatch, gamma: float, generator: torch.Generator
    ) -> Tensor:
        """Eq. 14 along fresh directions, ``[E]``."""
        directions = normal_directions(params, self.derivative.directions, generator)
        obs, action = torch.cat([batch.obs, batch.next_obs]), torch.cat([batch.action, batch.next_action])
        here, there = self.derivative.along(critic, params, obs, action, directions).chunk(2, dim=-1)
        members = here.shape[1]
        squares = [block.square().sum(-1) for block in member_blocks(directions, members)]
        length = torch.stack(squares).sum(0).to(here.dtype).unsqueeze(-1)
        return ((there * length * here).square() - here.square() * length).mean((0, 2))


def bellman_step(
    critic: nn.Module, params: Params, batch: SarsaBatch, gamma: float, inner_lr: float
) -> tuple[Params, Tensor]:
    """w' = w + η mean_M (y − Q_w(s, a)) ∇Q_w(s, a), y = r + γ·discount·Q_w(s', a'): Eq. 3 for the random policy.

    A random a' stands where Eq. 3 has a maximum over actions (Algorithm 1 stores one with the transition; the caller
    may draw it afresh, which has the same mean and less dependence), there is no target network, and each member
    bootstraps from itself. It is the gradient step on L_bell = ½ mean (Q − y)² with y held constant, the semi-gradient
    of Q-learning: Eq. 4 without the ½ would double η, and its full gradient is another algorithm. Seen as a map w → w'
    the step is differentiable with everything in it, y included.

    Args:
        critic: see the module.
        params: w by name.
        batch: transitions of the random policy, ``[M, ...]``.
        gamma: γ.
        inner_lr: η.

    Returns:
        w', and L_bell(w) ``[E]``.
    """
    next_value = action_values(critic, params, batch.next_obs, batch.next_action)
    target = batch.reward + gamma * batch.discount * next_value

    def loss(p: Params) -> tuple[Tensor, Tensor]:
        per_member = 0.5 * (action_values(critic, p, batch.obs, batch.action) - target).square().mean(-1)
        return per_member.sum(), per_member

    gradient, per_member = grad(loss, has_aux=True)(params)
    return {name: value - inner_lr * gradient[name] for name, value in params.items()}, per_member


@torch.no_grad()
def meta_gradient(
    critic: nn.Module,
    params: Params,
    batch: SarsaBatch,
    objective: MetaObjective,
    generator: torch.Generator,
    gamma: float = 0.99,
    inner_lr: float = 1e-4,
    second_order: bool = False,
) -> MetaGradient:
    """∇L_m for the update w ← w − β ∇L_m (Eq. 11), without a graph.

    In the parameters' precision under autocast too: kernels are made of differences that bf16 rounds away.

    Args:
        critic: see the module.
        params: w by name.
        batch: transitions of the random policy, ``[M, ...]``, M ≥ 2.
        objective: L_m.
        generator: of random directions.
        gamma: γ.
        inner_lr: η of the Bellman step; 0 preconditions w itself.
        second_order: False: the gradient with respect to w', taken at w' (Algorithm 1). True: the derivative of
            L_m(w'(w)) in w, through the step; it differs by terms of order η.

    Returns:
        Values are returned as they are, finite or not: check ``objective`` and ``norm`` before stepping.
    """

    def at(adapted: Params) -> tuple[Tensor, Tensor]:
        value = objective.value(critic, adapted, batch, gamma, generator)
        return value.sum(), value

    def after_step(start: Params) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        adapted, bellman_loss = bellman_step(critic, start, batch, gamma, inner_lr)
        total, value = at(adapted)
        return total, (value, bellman_loss)

    with torch.autocast(batch.obs.device.type, enabled=False):
        if second_order:
            gradient, (value, bellman_loss) = grad(after_step, has_aux=True)(params)
        else:
            adapted, bellman_loss = bellman_step(critic, params, batch, gamma, inner_lr)
            gradient, value = grad(at, has_aux=True)(adapted)
    norm = torch.stack([block.norm() for block in gradient.values()]).norm()
    return MetaGradient(gradient, value, bellman_loss, norm)
