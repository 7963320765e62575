"""Multi-layer perceptrons, single and as a batched ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_metarl.nn.layers import affine, large_product
from lit_metarl.types import require

Initialisation = Literal["orthogonal", "torch", "glorot"]
"""The distribution of a new linear layer's values.

``orthogonal``: orthogonal weights (pytorch_sac). ``torch``: U(±1/√in) for weights and biases, as of ``nn.Linear``.
``glorot``: weights U(±√(6/(in + out))) (Glorot & Bengio 2010). Biases are 0 but for ``torch``.
"""


@torch.no_grad()
def initialise(weight: Tensor, bias: Tensor, initialisation: Initialisation) -> None:
    """Fill ``weight [out, in]`` and ``bias [out]`` of one linear layer in place.

    Raises:
        ConfigError: there is no such initialisation.
    """
    nn.init.zeros_(bias)
    if initialisation == "orthogonal":
        nn.init.orthogonal_(weight)
    elif initialisation == "torch":
        bound = weight.shape[1] ** -0.5
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)
    else:
        known = ", ".join(get_args(Initialisation))
        require(initialisation == "glorot", "initialisation", initialisation, f"choose from {known}")
        nn.init.xavier_uniform_(weight)


def check_layer(fan_in: int, fan_out: int) -> None:
    """Raise :class:`ConfigError` unless a linear layer of these sizes passes anything on."""
    remedy = "every layer of a network needs 1 or more of either"
    require(min(fan_in, fan_out) >= 1, "inputs, outputs of a layer", (fan_in, fan_out), remedy)


def mlp(sizes: Sequence[int], initialisation: Initialisation = "orthogonal") -> nn.Sequential:
    """Linear layers ``sizes[0] → … → sizes[-1]`` with ReLU between them, all initialised alike."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        check_layer(fan_in, fan_out)
        linear = nn.Linear(fan_in, fan_out)
        initialise(linear.weight, linear.bias, initialisation)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class EnsembleLinear(nn.Module):
    """``E`` linear layers as one batched product: ``[E, M, in] → [E, M, out]``.

    Each member is initialised as a layer of :func:`mlp`; ``weight`` is ``[E, in, out]``, ``bias`` ``[E, 1, out]``.
    """

    def __init__(self, members: int, fan_in: int, fan_out: int, initialisation: Initialisation = "orthogonal") -> None:
        super().__init__()
        require(members >= 1, "members", members, "an ensemble has 1 or more")
        check_layer(fan_in, fan_out)
        self.weight = nn.Parameter(torch.empty(members, fan_in, fan_out))
        self.bias = nn.Parameter(torch.empty(members, 1, fan_out))
        for weight, bias in zip(self.weight.detach(), self.bias.detach(), strict=True):
            initialise(weight.T, bias[0], initialisation)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[-1] == 1:
            # A batched product with one column costs ten times this inner product, forward and backward.
            return torch.linalg.vecdot(x, self.weight.mT).unsqueeze(-1) + self.bias
        # A kernel's derivatives give every row a bias of its own.
        if self.bias.shape[1] == 1 and large_product(x, self.weight):
            return affine(x, self.weight, self.bias.squeeze(1))
        return torch.baddbmm(self.bias, x, self.weight)


def ensemble_mlp(members: int, sizes: Sequence[int], initialisation: Initialisation = "orthogonal") -> nn.Sequential:
    """``E`` independent MLPs evaluated together: ``[E, M, sizes[0]] → [E, M, sizes[-1]]``, ReLU between layers."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [EnsembleLinear(members, fan_in, fan_out, initialisation), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
