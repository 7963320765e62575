"""Multi-layer perceptrons, single and as a batched ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers ``sizes[0] → … → sizes[-1]`` with ReLU between them.

    Weights orthogonal with gain 1, biases 0, output layer included (the initialisation of pytorch_sac).
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class EnsembleLinear(nn.Module):
    """``E`` linear layers as one batched product: ``[E, M, in] → [E, M, out]``.

    Each member has the initialisation of :func:`mlp`; ``weight`` is ``[E, in, out]``, ``bias`` ``[E, 1, out]``.
    """

    def __init__(self, members: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        weight = torch.empty(members, fan_in, fan_out)
        for member in weight:
            nn.init.orthogonal_(member.T)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(members, 1, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[-1] == 1:
            # A batched product with one column costs ten times this inner product, forward and backward.
            return torch.linalg.vecdot(x, self.weight.mT).unsqueeze(-1) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


def ensemble_mlp(members: int, sizes: Sequence[int]) -> nn.Sequential:
    """``E`` independent MLPs evaluated together: ``[E, M, sizes[0]] → [E, M, sizes[-1]]``, ReLU between layers."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [EnsembleLinear(members, fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
