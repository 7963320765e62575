"""Sampling corrections: what the meta-gradient owes to the dependence of the inner data on the initial parameters.

V_K(θ) = E_{D_0 … D_{K−1}} J(θ_K) has the gradient E[ (dθ_K/dθ)ᵀ ∇J(θ_K) + J(θ_K) Σ_k Σ_{τ ∈ D_k} ∇_θ log π(τ; θ_k) ]
(Fallah et al. 2021, "On the convergence theory of debiased model-agnostic meta-reinforcement learning", Eq. 10 and
appendix C). A correction is the second term: a credit for every inner trajectory, which multiplies its score. Any
credit from which something independent of the trajectory is subtracted leaves the mean as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from lit_metarl.estimators import doubly_robust, log_importance_ratio, log_likelihood, step_wise_is
from lit_metarl.optim.inner_loop import InnerLoop, StepSizes
from lit_metarl.types import Params, Round, Trajectories, require

Credit = Literal["leave_one_out", "first_order", "cross_task", "none"]


class SamplingCorrection(ABC):
    """Credits of the inner trajectories; the objective gains Σ_k Σ_n credit_kn · Σ_t log π(a_t|s_t; θ_k)."""

    @abstractmethod
    def credits(
        self,
        inner: InnerLoop,
        params: Params,
        step_sizes: StepSizes,
        trajectories: Sequence[Trajectories],
        rounds: Sequence[Round],
    ) -> list[Tensor]:
        """K credits ``[B, N]`` without a graph; an empty list for none.

        Args:
            inner: how a policy adapts.
            params: θ_0, shared by the tasks.
            step_sizes: α.
            trajectories: K + 1 rounds, fields ``[B, N, T, ...]``.
            rounds: the same as estimators see them.
        """


@dataclass(frozen=True)
class NoCorrection(SamplingCorrection):
    """MAML (Finn et al. 2017): the inner data is treated as if it did not depend on θ, ``[B, N]``. Biased for V_K."""

    def credits(
        self,
        inner: InnerLoop,
        params: Params,
        step_sizes: StepSizes,
        trajectories: Sequence[Trajectories],
        rounds: Sequence[Round],
    ) -> list[Tensor]:
        """No credits: ``[]``."""
        return []


@dataclass(frozen=True)
class EMAMLCorrection(SamplingCorrection):
    """E-MAML (Al-Shedivat et al. 2018; Stadie et al. 2018) as its users run it, ``[B, N]``.

    One credit for all of a task's inner trajectories: its return after adaptation, standardised over the tasks of
    this process, divided by N. The mean over trajectories where Eq. 10 has the sum makes the term N times too small,
    and the standardisation gives it an arbitrary scale: a heuristic, biased for V_K.
    """

    def credits(
        self,
        inner: InnerLoop,
        params: Params,
        step_sizes: StepSizes,
        trajectories: Sequence[Trajectories],
        rounds: Sequence[Round],
    ) -> list[Tensor]:
        """(J̃_i − mean)/std/N for every inner round, ``[B, N]``."""
        value = adapted_return(rounds[-1], inner.gamma)
        standardised = (value - value.mean()) / (value.std(correction=0) + 1e-8)
        trajectories_per_task = rounds[0].reward.shape[-2]
        return [_everyone(standardised / trajectories_per_task, round) for round in rounds[:-1]]


@dataclass(frozen=True)
class SGMRLCorrection(SamplingCorrection):
    """SG-MRL (Fallah et al. 2021, Eq. 13): the score term that makes the meta-gradient unbiased for V_K, ``[B, N]``.

    Attributes:
        credit: what multiplies the score of trajectory τ_j, for an adapted return J̃ measured on the last round:

            ``leave_one_out``: J̃(θ') − J̃(θ' without τ_j). The second policy, θ' − (α/N) g_j, is evaluated on the same
            last-round trajectories by per-decision importance weights without clipping, so the noise that the two
            estimates share cancels. Unbiased if every g_i depends on τ_i alone; a baseline fitted across a task's
            trajectories (``held_out`` or not) and advantages normalised across them couple them, at a bias of the
            size of their influence. N extra evaluations of the last round.

            ``first_order``: (α/N) g_jᵀ ∇J(θ'), its linearisation, one Jacobian-vector product; bias O(α²/N²).

            ``cross_task``: J̃_i(θ') minus the mean of the other tasks of this process. Unbiased, no extra cost, more
            variance; needs two tasks.

            ``none``: J̃_i(θ'), as Eq. 13 prints it. Unbiased, with a variance that swamps the gradient by orders of
            magnitude.

            Only the last inner round has the first two: leaving out an earlier trajectory changes what later rounds
            would have sampled. Earlier rounds then use ``cross_task``.
        doubly_robust: evaluate left-out policies with the last round's baseline as control variate rather than by
            step-wise importance weights alone.
    """

    credit: Credit = "leave_one_out"
    doubly_robust: bool = False

    def __post_init__(self) -> None:
        known = ("leave_one_out", "first_order", "cross_task", "none")
        require(self.credit in known, "credit", self.credit, f"choose one of {', '.join(known)}")

    def credits(
        self,
        inner: InnerLoop,
        params: Params,
        step_sizes: StepSizes,
        trajectories: Sequence[Trajectories],
        rounds: Sequence[Round],
    ) -> list[Tensor]:
        """One credit for every inner trajectory, ``[B, N]`` a round."""
        value = adapted_return(rounds[-1], inner.gamma)
        if self.credit == "none":
            return [_everyone(value, round) for round in rounds[:-1]]
        if self.credit == "cross_task":
            return [_everyone(minus_other_tasks(value), round) for round in rounds[:-1]]
        earlier = [_everyone(minus_other_tasks(value), round) for round in rounds[:-2]]
        before = _expand(params, len(value))
        for trajectory, round in zip(trajectories[:-2], rounds[:-2], strict=True):
            before = adapt(inner, before, step_sizes, trajectory, round)
        exact = self.credit == "leave_one_out"
        last = self._leave_one_out if exact else _first_order
        return [*earlier, last(inner, before, step_sizes, trajectories, rounds)]

    def _leave_one_out(
        self,
        inner: InnerLoop,
        params: Params,
        step_sizes: StepSizes,
        trajectories: Sequence[Trajectories],
        rounds: Sequence[Round],
    ) -> Tensor:
        """J̃(θ') − J̃(θ' − (α/N) g_j) for every j, ``[B, N]``; ``params`` is θ_{K−1} ``[B, ...]``."""
        gradients = inner.trajectory_gradients(params, trajectories[-2], rounds[-2])
        number = rounds[-2].reward.shape[-2]
        adapted = {name: value + step_sizes[name] * gradients[name].mean(1) for name, value in params.items()}
        outer, data = trajectories[-1], rounds[-1]
        value = adapted_return(data, inner.gamma)
        credits = []
        for j in range(number):
            without = {n: value - step_sizes[n] * gradients[n][:, j] / number for n, value in adapted.items()}
            log_ratio = log_importance_ratio(vmap(inner.log_prob)(without, outer), data.behaviour_log_prob, data.mask)
            if self.doubly_robust:
                left_out = doubly_robust(log_ratio, data.reward, data.value, data.mask, inner.gamma)
            else:
                left_out = step_wise_is(log_ratio, data.reward, data.mask, inner.gamma)
            credits.append(value - left_out.mean(-1))
        return torch.stack(credits, dim=-1)


def _first_order(
    inner: InnerLoop,
    params: Params,
    step_sizes: StepSizes,
    trajectories: Sequence[Trajectories],
    rounds: Sequence[Round],
) -> Tensor:
    """(α/N) g_jᵀ ∇J̃(θ') for every j, ``[B, N]``; ``params`` is θ_{K−1} ``[B, ...]``."""
    adapted = adapt(inner, params, step_sizes, trajectories[-2], rounds[-2])

    def one_task(
        params: Params, adapted: Params, before: Trajectories, after: Trajectories, inner_data: Round, data: Round
    ) -> Tensor:
        def value(params: Params) -> Tensor:
            return log_likelihood(inner.log_prob(params, after), data.advantage, data.mask, inner.gamma).mean()

        direction = {name: step_sizes[name] * g for name, g in grad(value)(adapted).items()}
        return jvp(lambda p: inner.values(p, before, inner_data), (params,), (direction,))[1]

    (before, after), (inner_data, data) = trajectories[-2:], rounds[-2:]
    credits = vmap(one_task)(params, adapted, before, after, inner_data, data)
    return credits / credits.shape[-1]


def adapted_return(round: Round, gamma: float) -> Tensor:
    """J̃ = (1/N) Σ_n Σ_t γ^t r_t, ``[B]``: the plain estimate of J(θ_K) on the last round."""
    return step_wise_is(torch.zeros_like(round.reward), round.reward, round.mask, gamma).mean(-1)


def minus_other_tasks(value: Tensor) -> Tensor:
    """``value [B, ...]`` minus the mean of the other tasks' values, ``[B, ...]``.

    Raises:
        ConfigError: there is only one task.
    """
    tasks = len(value)
    require(tasks > 1, "data.num_tasks", tasks, "a credit across tasks needs at least two tasks in every process")
    return value - (value.sum(0) - value) / (tasks - 1)


@torch.no_grad()
def adapt(inner: InnerLoop, params: Params, step_sizes: StepSizes, trajectories: Trajectories, round: Round) -> Params:
    """One adaptation step of every task without a graph, ``[B, ...]`` in and out."""
    step = vmap(lambda p, data, seen: inner.step(p, step_sizes, data, seen)[0])
    return step(params, trajectories, round)


def _expand(params: Params, tasks: int) -> Params:
    return {name: value.detach().expand(tasks, *value.shape) for name, value in params.items()}


def _everyone(value: Tensor, round: Round) -> Tensor:
    """``value [B]`` for each of the N trajectories, ``[B, N]``."""
    return value.unsqueeze(-1).expand(round.reward.shape[:-1])
