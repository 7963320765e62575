"""The size of an adaptation step, measured by how far it moves the policy and not the parameters.

One step size means different things to different networks: an MLP and a hypernetwork that adapt with the same one move
their actions by amounts that are orders of magnitude apart. What adaptation is worth can only be compared at steps that
are equally long in function space.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.func import vmap

from lit_metarl.optim.inner_loop import InnerLoop, StepSizes
from lit_metarl.types import Params, Signals, Trajectories, require

SMALLEST, LARGEST = 1e-8, 1e6  # step sizes that are tried


@torch.no_grad()
def step_kl(
    inner: InnerLoop, params: Params, step_sizes: StepSizes, trajectories: Trajectories, signals: Signals
) -> Tensor:
    """mean KL(π_θ ‖ π_θ') in nats over the steps of all tasks, θ' one adaptation step from θ; a scalar.

    Args:
        inner: the adaptation.
        params: θ, ``[B, ...]``.
        step_sizes: by the parameters' names.
        trajectories: data of the step, ``[B, N, T, ...]``.
        signals: the same as estimators see it.
    """
    adapted = inner.adapt(params, step_sizes, trajectories, signals)
    each = vmap(lambda old, new, data: inner.distribution(old, data).kl(inner.distribution(new, data)))
    mask = trajectories.mask
    return (each(params, adapted, trajectories) * mask).sum() / mask.sum()


def matched_step_size(
    inner: InnerLoop,
    params: Params,
    adapted: Collection[str],
    trajectories: Trajectories,
    signals: Signals,
    kl: float,
    tolerance: float = 0.01,
) -> float:
    """The smallest step size, found by doubling and halving, whose step moves the policy by ``kl``.

    Args:
        inner: the adaptation.
        params: θ, ``[B, ...]``.
        adapted: names of the parameters that adapt; all take the same step size.
        trajectories: data of the step, ``[B, N, T, ...]``.
        signals: the same as estimators see it.
        kl: mean KL(π_θ ‖ π_θ') in nats that the step is to have.
        tolerance: largest relative error of the KL.

    Raises:
        ConfigError: ``kl`` is not positive, or no step size from 1e-8 to 1e6 has such a step.
    """
    require(kl > 0, "kl", kl, "a step has a positive length")

    def measured(size: float) -> float:
        sizes: StepSizes = {name: size if name in adapted else 0.0 for name in params}
        return float(step_kl(inner, params, sizes, trajectories, signals))

    size = SMALLEST
    while not measured(size) >= kl:
        size *= 2.0
        remedy = f"no step size up to {LARGEST:g} moves the policy that far; is there an advantage to follow?"
        require(size <= LARGEST, "kl", kl, remedy)
    low, high = (0.0 if size == SMALLEST else size / 2.0), size
    for _ in range(60):
        found = measured(size)
        if abs(found - kl) <= tolerance * kl:
            break
        low, high = (size, high) if found < kl else (low, size)
        size = (low + high) / 2.0
    return size
