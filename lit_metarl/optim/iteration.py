"""One meta-iteration: fixed data, parameters to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lit_metarl.estimators import step_wise_is
from lit_metarl.optim.inner_loop import InnerLoop, StepSizes, Unrolled, tasks_at_once
from lit_metarl.types import Params, Signals, Trajectories, require

OuterSurrogate = Callable[[Tensor, Signals, float], Tensor]
"""(log π ``[B, N, T]`` with its graph, the last round, γ of the γ^t weight) → a value per trajectory, ``[B, N]``."""


class Iteration:
    """K + 1 rounds of data of ``B`` tasks, and the parameters that an outer update moves on them.

    Args:
        inner: how the policy adapts.
        parameters: what is learned, by name: the initial parameters, and step sizes if they are learned.
        split: ``parameters`` → initial parameters θ_0 and step sizes α, by the policy's parameter names.
        trajectories: K + 1 rounds, fields ``[B, N, T, ...]``.
        signals: these rounds as estimators see them, ``[B, N, T]``.
        correction: the iteration → K credits ``[B, N]`` of the inner trajectories, or an empty list.
        ascend: one optimizer step towards a larger scalar, its gradient averaged over processes; None without one.
        reduce: mean of a tensor over processes; the identity on one.
    """

    def __init__(
        self,
        inner: InnerLoop,
        parameters: Params,
        split: Callable[[Params], tuple[Params, StepSizes]],
        trajectories: Sequence[Trajectories],
        signals: Sequence[Signals],
        correction: Callable[[Iteration], list[Tensor]],
        ascend: Callable[[Tensor], None] | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.inner, self.parameters, self.split = inner, parameters, split
        self.trajectories, self.signals = tuple(trajectories), tuple(signals)
        self.reduce = reduce
        self._ascend = ascend
        with torch.no_grad():
            self.credits = correction(self) if len(trajectories) > 1 else []
        remedy = (
            f"it gives {len(self.credits)} credits; none, or one for each of the {len(trajectories) - 1} inner rounds"
        )
        require(
            len(self.credits) in (0, len(trajectories) - 1),
            "model.correction",
            getattr(correction, "__self__", correction),
            remedy,
        )

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Validity of every round, ``[B, N, T]``."""
        return tuple(signals.mask for signals in self.signals)

    @cached_property
    def start(self) -> tuple[Params, StepSizes]:
        """θ_0 of every task, ``[B, ...]``, and α, both without a graph."""
        initial, sizes = self.split({name: value.detach() for name, value in self.parameters.items()})
        tasks = len(self.signals[0].reward)
        return {name: value.expand(tasks, *value.shape) for name, value in initial.items()}, sizes

    @cached_property
    def adapted_return(self) -> Tensor:
        """J̃ = (1/N) Σ_n Σ_t γ^t r_t, ``[B]``: the plain estimate of J(θ_K) on the last round."""
        last = self.signals[-1]
        return step_wise_is(torch.zeros_like(last.reward), last.reward, last.mask, self.inner.gamma).mean(-1)

    def parts(self) -> list[Iteration]:
        """This iteration a few tasks at a time, for sums over tasks in which a part's activations stay in a cache."""
        tasks = len(self.signals[0].reward)
        size = tasks_at_once(self.signals[0].reward) or tasks
        return [self._of(slice(first, first + size)) for first in range(0, tasks, size)]

    def _of(self, tasks: slice) -> Iteration:
        return Iteration(
            self.inner,
            self.parameters,
            self.split,
            [Trajectories(*(field[tasks] for field in data)) for data in self.trajectories],
            [signals.map(lambda field: field[tasks]) for signals in self.signals],
            lambda part: [credit[tasks] for credit in self.credits],
        )

    def unroll(self, parameters: Params | None = None) -> Unrolled:
        """Adaptation on the data, from ``parameters`` (the current ones if None), with the graph."""
        initial, sizes = self.split(self.parameters if parameters is None else parameters)
        return self.inner.unroll(initial, sizes, self.trajectories, self.signals)

    def task_objectives(self, unrolled: Unrolled, surrogate: OuterSurrogate) -> Tensor:
        """(1/N) Σ_n surrogate_n + Σ_k Σ_n credit_kn Σ_t log π(a_t|s_t; θ_k) of every task, ``[B]``."""
        last = self.signals[-1]
        total = surrogate(unrolled.log_probs[-1], last, self.inner.gamma if self.inner.discounted else 1.0).mean(-1)
        for credit, log_prob, mask in zip(self.credits, unrolled.log_probs, self.masks, strict=False):
            total = total + (credit * (log_prob * mask).sum(-1)).sum(-1)
        return self.inner.scale(last) * total

    def objective(self, unrolled: Unrolled, surrogate: OuterSurrogate) -> Tensor:
        """Mean of :meth:`task_objectives` over tasks, a scalar to maximise."""
        return self.task_objectives(unrolled, surrogate).mean()

    def gradient(self, surrogate: OuterSurrogate) -> Params:
        """Gradient of :meth:`objective` in the current parameters, by name; of this process's tasks."""
        value = self.objective(self.unroll(), surrogate)
        gradient = torch.autograd.grad(value, list(self.parameters.values()), materialize_grads=True)
        return dict(zip(self.parameters, gradient, strict=True))

    def ascend(self, value: Tensor) -> None:
        """One optimizer step towards larger ``value``, its gradient averaged over processes."""
        if self._ascend is None:
            raise RuntimeError("this iteration has no optimizer: its update's optimizer() returns None.")
        self._ascend(value)

    @torch.no_grad()
    def assign(self, parameters: Params) -> None:
        """Give the parameters the values of ``parameters``, by name."""
        for name, parameter in self.parameters.items():
            parameter.copy_(parameters[name])
