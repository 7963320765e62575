"""A loss's gradients as one CUDA graph: a GPU runs the same kernels, without the time Python takes to launch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_metarl.types import Transition

Objective = Callable[[Transition], tuple[Any, ...]]
"""A minibatch → its loss, and more results."""

EAGER = 3
"""Calls before a graph is captured, in which libraries choose kernels and reserve memory."""


def gradients_of(objective: Objective, batch: Transition, parameters: Sequence[Tensor]) -> tuple[Any, ...]:
    """Gradients of the objective's loss with respect to ``parameters``, followed by its other results."""
    loss, *results = objective(batch)
    return torch.autograd.grad(loss, parameters), *results


class GraphedGradients:
    """The function :func:`gradients_of` of one objective on a GPU, a CUDA graph after the first calls.

    A replayed graph computes what the calls of its capture would compute, from what the memory holds that they used: of
    parameters, of what a graph before it computed, and of the device's stream of random numbers, which moves on as by
    those calls. It is the same number by number, so that a run that goes on from a checkpoint without graphs at first
    is the same too. Every replay writes its results where the one before it has; a batch of another size is computed
    without.

    Args:
        objective: what is captured; it does not wait for the GPU, and decides nothing by numbers.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Transition, parameters: Sequence[Tensor]) -> tuple[Any, ...]:
        """Gradients and results, as of :func:`gradients_of`."""
        if self._graph is None and self._calls == EAGER:
            self._capture(batch, parameters)
        self._calls += 1
        if self._graph is None or any(own.shape != given.shape for own, given in zip(self._batch, batch, strict=True)):
            return gradients_of(self.objective, batch, parameters)
        for own, given in zip(self._batch, batch, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._results

    def _capture(self, batch: Transition, parameters: Sequence[Tensor]) -> None:
        self._batch = Transition(*(field.clone() for field in batch))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = gradients_of(self.objective, self._batch, parameters)
        self._graph = graph
