"""The Fisher matrix of adapted policies, as products: the curvature of the KL divergence in what is meta-learned.

KL(θ_old ‖ θ) = (1/M) Σ_i Σ_s KL(π(θ_K^i; s) ‖ π(θ_K^i(θ); s)) over the M valid steps s of the last round has, at
θ = θ_old where its gradient is 0, the Hessian Σ_i J_iᵀ F_i J_i: J_i = dθ_K^i/dθ is the chain of adaptation steps, and
F_i = Σ_s Dᵀ M D is the Gauss–Newton matrix of D, the derivative of the distribution's own numbers (means, logits, …) in
θ_K^i, and M, the Hessian of the KL in these numbers. No derivative of the KL through the adaptation is needed, of which
the third-order terms are 0 and most of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from lit_metarl.optim.inner_loop import Unrolled, detached
from lit_metarl.optim.iteration import Iteration, OuterSurrogate
from lit_metarl.types import Params


class AdaptedPolicies:
    """The objective of an iteration around its parameters: gradient, Fisher products, values elsewhere.

    All from one unrolled adaptation, a few tasks at a time: their activations stay in a cache, and the memory of one
    part's is used again by the next.

    Args:
        iteration: data and parameters θ.
        surrogate: outer surrogate of the objective.

    Attributes:
        params: θ without a graph.
        value: the objective at θ, a scalar.
        gradient: its gradient, by name.
    """

    def __init__(self, iteration: Iteration, surrogate: OuterSurrogate) -> None:
        self.surrogate = surrogate
        self.params = {name: value.detach() for name, value in iteration.parameters.items()}
        self._leaves = list(iteration.parameters.values())
        self._parts = iteration.parts()
        self._tasks, self._steps = len(iteration.masks[-1]), iteration.masks[-1].sum()
        unrolled = [part.unroll() for part in self._parts]
        values = [self._objective(*part) for part in zip(self._parts, unrolled, strict=True)]
        self.value = torch.stack(values).sum().detach()
        self.gradient = self._sum([_pull([value], self._leaves, [torch.ones_like(value)]) for value in values])
        self._old = [detached(part.distributions[-1]) for part in unrolled]
        self._fisher = [
            _Part(part, its, partial(self._kl, part, old))
            for part, its, old in zip(self._parts, unrolled, self._old, strict=True)
        ]

    def fisher_product(self, vector: Params) -> Params:
        """Σ_i J_iᵀ F_i J_i v, by name: exact, at the cost of two products with the Hessian of every inner surrogate."""
        return self._sum([part.product(vector, self._leaves) for part in self._fisher])

    @torch.no_grad()
    def evaluate(self, params: Params) -> tuple[Tensor, Tensor]:
        """The objective at ``params``, and the mean KL divergence of the policies adapted from them; scalars."""
        value = distance = torch.zeros_like(self.value)
        for part, old in zip(self._parts, self._old, strict=True):
            unrolled = part.unroll(params)
            value = value + self._objective(part, unrolled)
            distance = distance + self._kl(part, old, unrolled.distributions[-1])
        return value, distance

    def _objective(self, part: Iteration, unrolled: Unrolled) -> Tensor:
        return part.task_objectives(unrolled, self.surrogate).sum() / self._tasks

    def _kl(self, part: Iteration, old: Any, new: Any) -> Tensor:
        return (old.kl(new) * part.masks[-1]).sum() / self._steps

    def _sum(self, parts: Sequence[Sequence[Tensor]]) -> Params:
        return {
            name: torch.stack(each).sum(0) for name, each in zip(self.params, zip(*parts, strict=True), strict=True)
        }


class _Part:
    """Fisher products of a few tasks, by passes through graphs that are built once.

    Args:
        part: their iteration.
        unrolled: its adaptation, with the graph.
        kl: distributions of the last round → the KL divergence of them from those unrolled, a scalar.
    """

    def __init__(self, part: Iteration, unrolled: Unrolled, kl: Callable[[Any], Tensor]) -> None:
        self.part, self.unrolled = part, unrolled
        self.fields = list(unrolled.distributions[-1])
        self.new = [field.detach().requires_grad_() for field in self.fields]
        new = type(unrolled.distributions[-1])(*self.new)
        self.slope = torch.autograd.grad(kl(new), self.new, create_graph=True)
        # Dᵀc is linear in c, so its derivative in c, backwards, is D: a graph in which all else is constant.
        self.weights = [torch.zeros_like(field, requires_grad=True) for field in self.fields]
        adapted = {name: value.detach() for name, value in unrolled.params[-1].items()}
        act = vmap(part.inner.distribution)
        pull = vjp(lambda params: tuple(act(params, part.trajectories[-1])), adapted)[1]
        self.pulled = list(pull(tuple(self.weights))[0].values())

    def product(self, vector: Params, leaves: list[Tensor]) -> list[Tensor]:
        """Σ_i J_iᵀ Dᵀ M D J_i v of these tasks."""
        moved = _pull(self.pulled, self.weights, self._adapted(vector))
        # One pass backwards through the policy and through all adaptation steps.
        return _pull(self.fields, leaves, _pull(self.slope, self.new, moved))

    def _adapted(self, vector: Params) -> list[Tensor]:
        """J_i v, ``[B, ...]``: v ← v + α∘(H v) + dα∘g step by step; H, the inner surrogate's Hessian, is symmetric."""

        def start(parameters: Params) -> tuple[Params, Params]:
            initial, sizes = self.part.split(parameters)
            return initial, {name: size for name, size in sizes.items() if isinstance(size, Tensor)}

        values = {name: value.detach() for name, value in self.part.parameters.items()}
        shared, learned = jvp(start, (values,), (vector,))[1]
        sizes = self.part.start[1]
        moves = [name for name in shared if isinstance(sizes[name], Tensor) or sizes[name] != 0.0]
        tangent = {name: x.expand(len(self.fields[0]), *x.shape) for name, x in shared.items()}
        for params, gradient in zip(self.unrolled.params, self.unrolled.gradients, strict=False):
            inputs = [params[name] for name in moves]
            curved = _pull(list(gradient.values()), inputs, [tangent[name] for name in gradient])
            tangent |= {name: tangent[name] + sizes[name] * x for name, x in zip(moves, curved, strict=True)}
            tangent |= {name: tangent[name] + x * gradient[name].detach() for name, x in learned.items()}
        return list(tangent.values())


def _pull(outputs: Sequence[Tensor], inputs: list[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Σ_j (d output_j/d input)ᵀ cotangent_j by input; the graph is kept. Outputs without a graph are constants."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    y, c = zip(*pairs, strict=True)
    return list(torch.autograd.grad(y, inputs, c, retain_graph=True, materialize_grads=True))
