"""The inner loop of gradient-based meta-RL as functions of parameters: one task in the mathematics, mapped over tasks.

θ_{k+1} = θ_k + α ∇_θk (1/N) Σ_n surrogate_n(θ_k; D_k), for k = 0 … K − 1, on given rounds of data D_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from lit_metarl.estimators import InnerSurrogate
from lit_metarl.nn.conditioning import condition, told_call
from lit_metarl.types import Params, Signals, Trajectories

StepSizes = Mapping[str, float | Tensor]
"""α by parameter name: a number, or a tensor of the parameter's shape."""

SAMPLES_AT_ONCE = 16_000
"""On a CPU tasks are unrolled a few at a time, so that a layer's activations stay in its cache."""


def tasks_at_once(reward: Tensor) -> int | None:
    """The number of tasks of ``reward [B, N, T]`` to be computed at a time; None, which is all, but on a CPU."""
    return max(1, SAMPLES_AT_ONCE // reward[0].numel()) if reward.device.type == "cpu" else None


class Unrolled(NamedTuple):
    """Every round k's data under the parameters θ_k that adaptation reaches, with the graph to θ_0."""

    distributions: tuple[Any, ...]  # K + 1 of them, fields [B, N, T, ...]
    log_probs: tuple[Tensor, ...]  # K + 1 of them, [B, N, T]
    params: tuple[Params, ...]  # θ_0 … θ_K, [B, ...]
    gradients: tuple[Params, ...]  # g_0 … g_{K−1}, along which the parameters moved, [B, ...]


def detached(distribution: Any) -> Any:
    """``distribution``, a named tuple of tensors, without a graph."""
    return type(distribution)(*(field.detach() for field in distribution))


@dataclass(frozen=True)
class InnerLoop:
    """The adaptation of a policy: gradient steps on each task's surrogate.

    Attributes:
        policy: observations ``[..., O]`` → distribution; called with given parameters, never changed.
        surrogate: the estimate of J(θ) whose gradient is followed (Finn et al. 2017, Alg. 3, line 6).
        gamma: γ.
        discounted: weight advantages at step t by γ^t.
        time_average: divide by the horizon T, so that step sizes mean the same at every T (as released code does).
        first_order: treat the inner gradient as a constant (Finn et al. 2017, section 5.2).
    """

    policy: nn.Module
    surrogate: InnerSurrogate
    gamma: float
    discounted: bool = False
    time_average: bool = True
    first_order: bool = False

    def distribution(self, params: Params, trajectories: Trajectories) -> Any:
        """π at one task's observations, fields ``[N, T, ...]``."""
        return told_call(self.policy, params, trajectories.obs, condition(self.policy, params, trajectories.context))

    def log_prob(self, params: Params, trajectories: Trajectories) -> Tensor:
        """log π of one task's actions, ``[N, T]``."""
        return self.distribution(params, trajectories).log_prob(trajectories.action)

    def scale(self, signals: Signals) -> float:
        """1/T, or 1 without ``time_average``; T is the padded horizon, so trajectories stay independent."""
        return 1.0 / signals.mask.shape[-1] if self.time_average else 1.0

    def values(self, params: Params, trajectories: Trajectories, signals: Signals) -> Tensor:
        """The surrogate of each of one task's trajectories, ``[N]``."""
        return self._values(self.distribution(params, trajectories), trajectories, signals)[0]

    def _values(self, distribution: Any, trajectories: Trajectories, signals: Signals) -> tuple[Tensor, Tensor]:
        """The surrogate ``[N]``, and log π of the actions ``[N, T]``."""
        if signals.dimensions:
            each = distribution.dimension_log_prob(trajectories.action)
            value = self.surrogate.per_trajectory_by_dimension(each, signals, self.gamma, self.discounted)
            return self.scale(signals) * value, each.sum(-1)
        log_prob = distribution.log_prob(trajectories.action)
        value = self.surrogate.per_trajectory(log_prob, signals, self.gamma, self.discounted)
        return self.scale(signals) * value, log_prob

    def step(
        self, params: Params, step_sizes: StepSizes, trajectories: Trajectories, signals: Signals
    ) -> tuple[Params, Params, Any, Tensor]:
        """One step of one task, with the graph.

        Returns:
            θ + α g; g; the distribution at θ, fields ``[N, T, ...]``; log π_θ of the actions, ``[N, T]``.
        """

        def value(params: Params) -> tuple[Tensor, tuple[Any, Tensor]]:
            distribution = self.distribution(params, trajectories)
            values, log_prob = self._values(distribution, trajectories, signals)
            return values.mean(), (distribution, log_prob)

        gradient, (distribution, log_prob) = grad(value, has_aux=True)(params)
        if self.first_order:
            gradient = {name: g.detach() for name, g in gradient.items()}
        adapted = {name: value + step_sizes[name] * gradient[name] for name, value in params.items()}
        return adapted, gradient, distribution, log_prob

    def unroll(
        self, params: Params, step_sizes: StepSizes, trajectories: Sequence[Trajectories], rounds: Sequence[Signals]
    ) -> Unrolled:
        """K steps of all tasks on the first K of K + 1 rounds of data, fields ``[B, N, T, ...]``; θ_0 is shared."""
        rewards = rounds[0].reward
        at_once = tasks_at_once(rewards)
        step = vmap(lambda p, data, seen: self.step(p, step_sizes, data, seen), chunk_size=at_once)
        # A round is one map, so that every θ_k is a value outside of the maps, which derivatives can be taken in.
        path = [{name: value.expand(len(rewards), *value.shape) for name, value in params.items()}]
        gradients, distributions, log_probs = [], [], []
        for data, signals in zip(trajectories[:-1], rounds, strict=False):
            adapted, gradient, distribution, log_prob = step(path[-1], data, signals)
            path.append(adapted)
            gradients.append(gradient)
            distributions.append(distribution)
            log_probs.append(log_prob)

        def act(params: Params, data: Trajectories) -> tuple[Any, Tensor]:
            distribution = self.distribution(params, data)
            return distribution, distribution.log_prob(data.action)

        distribution, log_prob = vmap(act, chunk_size=at_once)(path[-1], trajectories[-1])
        return Unrolled((*distributions, distribution), (*log_probs, log_prob), tuple(path), tuple(gradients))

    @torch.no_grad()
    def adapt(self, params: Params, step_sizes: StepSizes, trajectories: Trajectories, signals: Signals) -> Params:
        """One :meth:`step` of every task without a graph, ``[B, ...]`` in and out."""
        step = vmap(lambda p, data, seen: self.step(p, step_sizes, data, seen)[0])
        return step(params, trajectories, signals)

    @torch.no_grad()
    def trajectory_gradients(self, params: Params, trajectories: Trajectories, signals: Signals) -> Params:
        """g_n, the gradient of each trajectory's own surrogate, ``[B, N, ...]``; θ is ``[B, ...]``."""

        def one(params: Params, trajectory: Trajectories, signals: Signals) -> Tensor:
            fields = {name: x.unsqueeze(0) for name, x in trajectory._asdict().items()}
            alone = (
                Trajectories(**fields | {"context": trajectory.context}),
                signals.map(lambda x: x.unsqueeze(0)),
            )
            return self.values(params, *alone)[0]

        each = Trajectories(0, 0, 0, 0, 0, 0, 0, context=None)  # type: ignore[arg-type]
        return vmap(vmap(grad(one), in_dims=(None, each, 0)))(params, trajectories, signals)

    @torch.no_grad()
    def hessian_vector(self, params: Params, vector: Params, trajectories: Trajectories, signals: Signals) -> Params:
        """∇²[(1/N) Σ_n surrogate_n] v of every task, ``[B, ...]``; θ is ``[B, ...]``, v is shared."""

        def one_task(params: Params, trajectories: Trajectories, signals: Signals) -> Params:
            gradient = grad(lambda params: self.values(params, trajectories, signals).mean())
            # A vector from the left, which for a symmetric matrix is one from the right.
            return vjp(gradient, params)[1](vector)[0]

        return vmap(one_task)(params, trajectories, signals)
