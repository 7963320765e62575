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
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from lit_metarl.estimators import doubly_robust, log_importance_ratio, log_likelihood, step_wise_is
from lit_metarl.optim.inner_loop import InnerLoop, StepSizes
from lit_metarl.types import Params, Round, Trajectories, require

Credit = Literal["leave_one_out", "first_order", "cross_task", "none"]


class MetaData(NamedTuple):
    """What a correction looks at."""

    inner: InnerLoop
    params: Params  # θ_0, shared by the tasks
    step_sizes: StepSizes
    trajectories: Sequence[Trajectories]  # K + 1 rounds, fields [B, N, T, ...]
    rounds: Sequence[Round]  # the same as estimators see them

    @property
    def adapted_return(self) -> Tensor:
        """J̃ = (1/N) Σ_n Σ_t γ^t r_t, ``[B]``: the plain estimate of J(θ_K) on the last round."""
        last = self.rounds[-1]
        return step_wise_is(torch.zeros_like(last.reward), last.reward, last.mask, self.inner.gamma).mean(-1)

    def for_everyone(self, value: Tensor) -> list[Tensor]:
        """``value [B]`` for each of the N trajectories of every inner round, K of ``[B, N]``."""
        return [value.unsqueeze(-1).expand(round.reward.shape[:-1]) for round in self.rounds[:-1]]


class SamplingCorrection(ABC):
    """Credits of the inner trajectories; the objective gains Σ_k Σ_n credit_kn · Σ_t log π(a_t|s_t; θ_k)."""

    @abstractmethod
    def credits(self, data: MetaData) -> list[Tensor]:
        """K credits ``[B, N]`` without a graph; an empty list for none."""


@dataclass(frozen=True)
class NoCorrection(SamplingCorrection):
    """MAML (Finn et al. 2017): the inner data is treated as if it did not depend on θ, ``[B, N]``. Biased for V_K."""

    def credits(self, data: MetaData) -> list[Tensor]:
        """No credits: ``[]``."""
        return []


@dataclass(frozen=True)
class EMAMLCorrection(SamplingCorrection):
    """E-MAML (Al-Shedivat et al. 2018; Stadie et al. 2018) as its users run it, ``[B, N]``.

    One credit for all of a task's inner trajectories: its return after adaptation, in the units of the surrogate it is
    added to (divided by the deviation of the task's own advantages where they are normalised), standardised over the
    tasks of this process, divided by N. The mean over trajectories where Eq. 10 has the sum makes the term N times too
    small, and the standardisation gives it an arbitrary scale: a heuristic, biased for V_K.
    """

    def credits(self, data: MetaData) -> list[Tensor]:
        """(J̃_i − mean)/std/N for every inner round, ``[B, N]``. ``ConfigError`` if there is only one task."""
        value = data.adapted_return
        _require_several(value)
        standardised = (value - value.mean()) / (value.std(correction=0) + 1e-8)
        trajectories_per_task = data.rounds[0].reward.shape[-2]
        return data.for_everyone(standardised / trajectories_per_task)


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
        doubly_robust: evaluate left-out policies with the last round's baseline as control variate, rather than by
            step-wise importance weights of the raw rewards. Less variance where the baseline is of any use
            (`lit-metarl study meta_gradient`), and the same mean if it does not depend on the trajectory that it is
            applied to (exact, or ``held_out``); fitted to that trajectory too, it shrinks the credit by O(1/N).
    """

    credit: Credit = "leave_one_out"
    doubly_robust: bool = True

    def __post_init__(self) -> None:
        known = ("leave_one_out", "first_order", "cross_task", "none")
        require(self.credit in known, "credit", self.credit, f"choose one of {', '.join(known)}")

    def credits(self, data: MetaData) -> list[Tensor]:
        """One credit for every inner trajectory, ``[B, N]`` a round."""
        if self.credit == "none":
            return data.for_everyone(data.adapted_return)
        if self.credit == "cross_task":
            return data.for_everyone(minus_other_tasks(data.adapted_return))
        earlier = data.for_everyone(minus_other_tasks(data.adapted_return))[:-1] if len(data.rounds) > 2 else []
        params = {name: p.detach().expand(len(data.rounds[0].reward), *p.shape) for name, p in data.params.items()}
        for trajectories, round in zip(data.trajectories[:-2], data.rounds[:-2], strict=True):
            params = adapt(data.inner, params, data.step_sizes, trajectories, round)
        last = self._leave_one_out if self.credit == "leave_one_out" else _first_order
        return [*earlier, last(data, params)]

    def _leave_one_out(self, data: MetaData, params: Params) -> Tensor:
        """J̃(θ') − J̃(θ' − (α/N) g_j) for every j, ``[B, N]``; ``params`` is θ_{K−1} ``[B, ...]``."""
        inner, last, sizes = data.inner, data.rounds[-1], data.step_sizes
        gradients = inner.trajectory_gradients(params, data.trajectories[-2], data.rounds[-2])
        number, value = data.rounds[-2].reward.shape[-2], data.adapted_return
        adapted = {name: p + sizes[name] * gradients[name].mean(1) for name, p in params.items()}
        credits = []
        for j in range(number):
            without = {name: p - sizes[name] * gradients[name][:, j] / number for name, p in adapted.items()}
            log_prob = vmap(inner.log_prob)(without, data.trajectories[-1])
            log_ratio = log_importance_ratio(log_prob, last.behaviour_log_prob, last.mask)
            if self.doubly_robust:
                left_out = doubly_robust(log_ratio, last.reward, last.value, last.mask, inner.gamma)
            else:
                left_out = step_wise_is(log_ratio, last.reward, last.mask, inner.gamma)
            credits.append(value - left_out.mean(-1))
        return torch.stack(credits, dim=-1)


def _first_order(data: MetaData, params: Params) -> Tensor:
    """(α/N) g_jᵀ ∇J̃(θ') for every j, ``[B, N]``; ``params`` is θ_{K−1} ``[B, ...]``."""
    inner, (before, after), (seen, last) = data.inner, data.trajectories[-2:], data.rounds[-2:]
    adapted = adapt(inner, params, data.step_sizes, before, seen)

    def one_task(
        params: Params, adapted: Params, before: Trajectories, after: Trajectories, seen: Round, last: Round
    ) -> Tensor:
        def value(params: Params) -> Tensor:
            return log_likelihood(inner.log_prob(params, after), last.advantage, last.mask, inner.gamma).mean()

        direction = {name: data.step_sizes[name] * g for name, g in grad(value)(adapted).items()}
        return jvp(lambda p: inner.values(p, before, seen), (params,), (direction,))[1]

    credits = vmap(one_task)(params, adapted, before, after, seen, last)
    return credits / credits.shape[-1]


def minus_other_tasks(value: Tensor) -> Tensor:
    """``value [B, ...]`` minus the mean of the other tasks' values, ``[B, ...]``.

    Raises:
        ConfigError: there is only one task.
    """
    _require_several(value)
    return value - (value.sum(0) - value) / (len(value) - 1)


def _require_several(value: Tensor) -> None:
    tasks = len(value)
    require(tasks > 1, "data.num_tasks", tasks, "a credit across tasks needs at least two tasks in every process")


@torch.no_grad()
def adapt(inner: InnerLoop, params: Params, step_sizes: StepSizes, trajectories: Trajectories, round: Round) -> Params:
    """One adaptation step of every task without a graph, ``[B, ...]`` in and out."""
    step = vmap(lambda p, data, seen: inner.step(p, step_sizes, data, seen)[0])
    return step(params, trajectories, round)
