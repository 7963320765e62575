"""The ways a network is told the task, by a context that belongs to a task and not to a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

HYPERNETWORK = "hypernetwork"


def with_context(x: Tensor, context: Tensor | None) -> Tensor:
    """``x [..., O]`` with the context appended to its last axis, ``[..., O + C]``; ``x`` itself without one.

    Args:
        x: ``[..., O]``.
        context: ``[C]``, or ``[*lead, C]`` where ``lead`` is how the axes of ``x`` begin; None for none.
    """
    if context is None:
        return x
    missing = x.ndim - context.ndim
    rows = context.view(*context.shape[:-1], *[1] * missing, context.shape[-1])
    return torch.cat([x, rows.expand(*x.shape[:-1], -1)], dim=-1)


def named_inputs(
    names: Collection[str], obs: Tensor | None = None, action: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The inputs ``names`` out of ``obs``, ``action`` and ``context``, in this order, along one axis.

    Args:
        names: at least one; what they name is given.
        obs: ``[..., O]``.
        action: ``[..., A]``.
        context: of :func:`with_context`.

    Returns:
        ``[..., n]`` with the axes of ``obs`` and ``action``; with those of ``context`` where it is all that is named.
    """
    given = {"obs": obs, "action": action, "context": context}
    rows = [x for name, x in given.items() if name in names and name != "context" and x is not None]
    told = context if "context" in names else None
    if rows:
        return with_context(torch.cat(rows, dim=-1), told)
    assert told is not None
    return told


def condition(policy: nn.Module, params: Mapping[str, Tensor], context: Tensor) -> dict[str, Tensor]:
    """Tensors by name that :func:`told_call` hands to ``policy`` besides the observations, ``[*lead, ...]``.

    Nothing where C = 0; the context where the policy has no attribute ``hypernetwork``; else the weights, by name, that
    its hypernetwork makes of the context. Whoever acts asks for them once per task and passes them at every step: most
    of a hypernetwork's cost is in making weights.

    Args:
        policy: network, called with given parameters.
        params: all of its parameters by name, those of ``hypernetwork`` among them.
        context: ``[C]`` of one task, or ``[*lead, C]`` of many that share ``params``.
    """
    if context.shape[-1] == 0:
        return {}
    hypernetwork = getattr(policy, HYPERNETWORK, None)
    if hypernetwork is None:
        return {"context": context}
    prefix = HYPERNETWORK + "."
    own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
    weights: dict[str, Tensor] = functional_call(hypernetwork, own, (context,), strict=True)
    return weights


def told_call(policy: nn.Module, params: Mapping[str, Tensor], obs: Tensor, told: dict[str, Tensor]) -> Any:
    """The policy's distribution at ``obs [..., O]``, given the result of :func:`condition`.

    The policy is called as ``(obs)``, ``(obs, context)``, or ``(obs, weights)`` if it has a ``hypernetwork``.
    """
    if not told:
        return functional_call(policy, dict(params), (obs,))
    return functional_call(policy, dict(params), (obs, told if hasattr(policy, HYPERNETWORK) else told["context"]))
