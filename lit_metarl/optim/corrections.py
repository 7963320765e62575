"""Sampling corrections: what the meta-gradient owes to the dependence of the inner data on the initial parameters.

V_K(θ) = E_{D_0 … D_{K−1}} J(θ_K) has the gradient E[ (dθ_K/dθ)ᵀ ∇J(θ_K) + J(θ_K) Σ_k Σ_{τ ∈ D_k} ∇_θ log π(τ; θ_k) ]
(Fallah et al. 2021, "On the convergence theory of debiased model-agnostic meta-reinforcement learning", Eq. 10 and
appendix C). A correction is the second term: a credit for every inner trajectory, which multiplies its score. Any
credit from which something independent of the trajectory is subtracted leaves the mean as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from lit_metarl.estimators import doubly_robust, log_importance_ratio, log_likelihood, step_wise_is
from lit_metarl.optim.inner_loop import tasks_at_once
from lit_metarl.optim.iteration import Iteration
from lit_metarl.types import Params, Signals, Trajectories, require


class SamplingCorrection(ABC):
    """Credits of the inner trajectories; the objective gains Σ_k Σ_n credit_kn · Σ_t log π(a_t|s_t; θ_k)."""

    @abstractmethod
    def credits(self, iteration: Iteration) -> list[Tensor]:
        """K credits ``[B, N]`` without a graph; an empty list for none."""


@dataclass(frozen=True)
class NoCorrection(SamplingCorrection):
    """MAML (Finn et al. 2017): the inner data is treated as if it did not depend on θ, ``[B, N]``. Biased for V_K."""

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """No credits: ``[]``."""
        return []


@dataclass(frozen=True)
class EMAMLCorrection(SamplingCorrection):
    """E-MAML (Al-Shedivat et al. 2018; Stadie et al. 2018) much as its users run it, ``[B, N]``.

    One credit for all of a task's inner trajectories: its return after adaptation, in the units of the surrogate it is
    added to (divided by the deviation of the task's own advantages where they are normalised), standardised over the
    tasks of this process, divided by N. The mean over trajectories where Eq. 10 has the sum makes the term N times too
    small, and the standardisation gives it an arbitrary scale: a heuristic, biased for V_K. The released code of ProMP
    and SG-MRL divides by the deviation of single rewards of all tasks, not of returns: its term is smaller yet.
    """

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """(J̃_i − mean)/std/N for every inner round, ``[B, N]``. ``ConfigError`` if there is only one task."""
        value = iteration.adapted_return
        _require_several(value)
        standardised = (value - value.mean()) / (value.std(correction=0) + 1e-8)
        trajectories_per_task = iteration.signals[0].reward.shape[-2]
        return _for_everyone(iteration, standardised / trajectories_per_task)


@dataclass(frozen=True)
class Plain(SamplingCorrection):
    """J̃_i(θ_K), as Fallah et al. 2021 print Eq. 13, ``[B, N]``: no bias, and noise orders above the gradient."""

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """J̃_i(θ_K) for every inner round, ``[B, N]``."""
        return _for_everyone(iteration, iteration.adapted_return)


@dataclass(frozen=True)
class CrossTask(SamplingCorrection):
    """J̃_i(θ_K) minus the mean of the other tasks of this process, ``[B, N]`` (Fallah et al. 2021, Eq. 13).

    Unbiased, no extra cost, less noise than :class:`Plain` and more than :class:`LeaveOneOut`.
    """

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """The difference for every inner round, ``[B, N]``. ``ConfigError`` if there is only one task."""
        return _for_everyone(iteration, minus_other_tasks(iteration.adapted_return))


def _path(iteration: Iteration, steps: int) -> list[Params]:
    """θ_0 … θ_steps of every task, ``[B, ...]``."""
    params, sizes = iteration.start
    path = [params]
    for trajectories, signals in zip(iteration.trajectories[:steps], iteration.signals[:steps], strict=True):
        path.append(iteration.inner.adapt(path[-1], sizes, trajectories, signals))
    return path


@dataclass(frozen=True)
class LeaveOneOut(SamplingCorrection):
    """J̃(θ_K) − J̃(θ_K without τ_j), ``[B, N]``: SG-MRL (Fallah et al. 2021, Eq. 13) without the return's noise.

    The second policy, θ_K − (α/N) g_j, is evaluated on the same last-round trajectories by per-decision importance
    weights without clipping, so the noise that the two estimates share cancels. Unbiased if every g_i depends on τ_i
    alone; a baseline fitted across a task's trajectories (``held_out`` or not) and advantages normalised across them
    couple them, at a bias of the size of their influence. N extra evaluations of the last round.

    With several adaptation steps earlier rounds have :class:`CrossTask` credits, as leaving out an earlier trajectory
    changes what later rounds would have sampled: no bias, but where tasks differ in their returns nothing but noise,
    with which nothing is learned (``configs/sweep/half_cheetah_velocity_steps.yaml``). Take
    :class:`LinearisedLeaveOneOut` there.

    Attributes:
        doubly_robust: evaluate left-out policies with the last round's baseline as control variate, rather than by
            step-wise importance weights of the raw rewards. Less variance where the baseline is of any use
            (`lit-metarl study meta_gradient`), and the same mean if it does not depend on the trajectory that it is
            applied to (exact, or ``held_out``); fitted to that trajectory too, it shrinks the credit by O(1/N).
    """

    doubly_robust: bool = True

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """J̃(θ_K) − J̃(θ_K − (α/N) g_j) for every j of the last inner round, ``[B, N]``; :class:`CrossTask` before."""
        inner, last, sizes = iteration.inner, iteration.signals[-1], iteration.start[1]
        earlier = CrossTask().credits(iteration)[:-1] if len(iteration.signals) > 2 else []
        params = _path(iteration, len(iteration.signals) - 2)[-1]
        gradients = inner.trajectory_gradients(params, iteration.trajectories[-2], iteration.signals[-2])
        number, value = iteration.signals[-2].reward.shape[-2], iteration.adapted_return
        adapted = {name: p + sizes[name] * gradients[name].mean(1) for name, p in params.items()}
        evaluate = vmap(inner.log_prob, chunk_size=tasks_at_once(last.reward))
        credits = []
        for j in range(number):
            without = {name: p - sizes[name] * gradients[name][:, j] / number for name, p in adapted.items()}
            log_prob = evaluate(without, iteration.trajectories[-1])
            log_ratio = log_importance_ratio(log_prob, last.behaviour_log_prob, last.mask)
            if self.doubly_robust:
                left_out = doubly_robust(log_ratio, last.reward, last.value, last.mask, inner.gamma)
            else:
                left_out = step_wise_is(log_ratio, last.reward, last.mask, inner.gamma)
            credits.append(value - left_out.mean(-1))
        return [*earlier, torch.stack(credits, dim=-1)]


@dataclass(frozen=True)
class LinearisedLeaveOneOut(SamplingCorrection):
    """(α/N) g_jᵀ ∇V(θ_{k+1}): :class:`LeaveOneOut` to first order in α/N, of every round, ``[B, N]``.

    V(θ_{k+1}) is the return after the adaptation steps that are left, J(θ_K) for the last one. Its gradient is
    estimated as the meta-gradient is, sampling correction included (Fallah et al. 2021, Eq. 13), backwards from round
    to round: λ_K = ∇J(θ_K), then λ_k = λ_{k+1} + α ∇²[surrogate] λ_{k+1} + Σ_j credit_kj ∇log π(τ_j; θ_k). One
    Jacobian-vector product for each round instead of N evaluations, and one gradient of it; a credit is off by
    O(α²/N²), the meta-gradient biased at second order in α (`lit-metarl study meta_gradient`).
    """

    def credits(self, iteration: Iteration) -> list[Tensor]:
        """(α/N) g_jᵀ λ_{k+1} for every j of every round k, ``[B, N]``."""
        inner, sizes = iteration.inner, iteration.start[1]

        def value(params: Params, data: Trajectories, last: Signals) -> Tensor:
            return log_likelihood(inner.log_prob(params, data), last.advantage, last.mask, inner.gamma).mean()

        def left(params: Params, slope: Params, data: Trajectories, seen: Signals) -> tuple[Tensor, Tensor]:
            """A scalar whose gradient is λ_k − λ_{k+1}; the credits."""
            direction = {name: sizes[name] * each for name, each in slope.items()}
            effects = jvp(lambda p: inner.values(p, data, seen), (params,), (direction,))[1]
            credits = effects / len(effects)
            score = (inner.log_prob(params, data) * seen.mask).sum(-1)
            return credits.sum() + (credits.detach() * score).sum(), credits

        *path, adapted = _path(iteration, len(iteration.signals) - 1)
        some = tasks_at_once(iteration.signals[0].reward)
        slope = vmap(grad(value), chunk_size=some)(adapted, iteration.trajectories[-1], iteration.signals[-1])
        first, *others = zip(path, iteration.trajectories, iteration.signals, strict=False)
        found = []
        for params, data, seen in reversed(others):
            change, credits = vmap(grad(left, has_aux=True), chunk_size=some)(params, slope, data, seen)
            slope = {name: each + change[name] for name, each in slope.items()}
            found.append(credits)
        params, data, seen = first
        return [vmap(left, chunk_size=some)(params, slope, data, seen)[1], *reversed(found)]


def minus_other_tasks(value: Tensor) -> Tensor:
    """``value [B, ...]`` minus the mean of the other tasks' values, ``[B, ...]``.

    Raises:
        ConfigError: there is only one task.
    """
    _require_several(value)
    return value - (value.sum(0) - value) / (len(value) - 1)


def _for_everyone(iteration: Iteration, value: Tensor) -> list[Tensor]:
    """``value [B]`` for each of the N trajectories of every inner round, K of ``[B, N]``."""
    return [value.unsqueeze(-1).expand(signals.reward.shape[:-1]) for signals in iteration.signals[:-1]]


def _require_several(value: Tensor) -> None:
    tasks = len(value)
    require(tasks > 1, "data.num_tasks", tasks, "a credit across tasks needs at least two tasks in every process")
