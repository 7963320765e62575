"""Hypernetworks: a primary network that makes the weights of a small dynamic network out of its input.

As Sarafian et al. 2021 ("Recomposing the reinforcement learning building blocks with hypernetworks") build them: the
*meta* input goes through a residual primary network to z, linear heads turn z into weights, biases and gains, and the
dynamic network with these maps the *base* input to the output. Any of observation, action and context may be either.

Weights are values, a dictionary of tensors by ``<layer>.<weight, bias or gain>``, so that they are made once for as
many base inputs as share a meta input (once per task, where it is the task's context), may be detached, and go through
``torch.func``. All networks are batched over E independent members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_metarl.nn.hyper_initialisation import DynamicLayer, HyperInitialisation, Released
from lit_metarl.nn.mlp import EnsembleLinear, Initialisation, check_layer
from lit_metarl.types import require


class LayerWeights(NamedTuple):
    """The weights of a dynamic layer; ``lead`` are the axes that meta inputs differ along, of members at first."""

    weight: Tensor  # [*lead, in, out]
    bias: Tensor  # [*lead, out]
    gain: Tensor  # [*lead, out], 1 + s


def dynamic_linear(weights: LayerWeights, x: Tensor) -> Tensor:
    """y = (x W) ∘ (1 + s) + b, Eq. (1) of Sarafian et al. 2021.

    Args:
        weights: of the layer, ``[*lead, ...]``.
        x: ``[*lead, in]``, one input for each meta input; or ``[*lead, ..., in]``, as many as there are for each. An
            axis of ``lead`` may be 1, for the same input everywhere.

    Returns:
        ``[*lead, out]`` or ``[*lead, ..., out]``.
    """
    weight, bias, gain = weights
    lead = weight.ndim - 2
    if x.ndim > lead + 1:
        rows = x.flatten(lead, -2) @ weight * gain.unsqueeze(-2) + bias.unsqueeze(-2)
        return rows.unflatten(lead, x.shape[lead:-1])
    if weight.shape[-1] == 1:  # a batched product with a single column costs ten times this
        product = (weight.squeeze(-1) * x).sum(-1, keepdim=True)
    else:
        product = (x.unsqueeze(-2) @ weight).squeeze(-2)
    return product * gain + bias


def dynamic_mlp(weights: Mapping[str, Tensor], x: Tensor, layers: Sequence[str]) -> Tensor:
    """The dynamic layers named ``layers``, one after the other with ReLU between them, :func:`dynamic_linear` each."""
    for number, name in enumerate(layers):
        x = dynamic_linear(layer_weights(weights, name), torch.relu(x) if number else x)
    return x


def layer_weights(weights: Mapping[str, Tensor], layer: str) -> LayerWeights:
    """The weights of one layer out of those of all."""
    return LayerWeights(weights[f"{layer}.weight"], weights[f"{layer}.bias"], weights[f"{layer}.gain"])


def mlp_layers(widths: Sequence[int]) -> dict[str, DynamicLayer]:
    """Layers "0", "1", … of a dynamic MLP ``widths[0] → … → widths[-1]``, for :func:`dynamic_mlp`."""
    last = len(widths) - 2
    return {str(n): DynamicLayer(*sizes, n > 0, n == last) for n, sizes in enumerate(pairwise(widths))}


class ResidualBlock(nn.Module):
    """x + L₂(relu(L₁(relu(x)))), two layers n → n of ``E`` members: ``[E, M, n] → [E, M, n]``."""

    def __init__(self, members: int, width: int, initialisation: Initialisation) -> None:
        super().__init__()
        self.first = EnsembleLinear(members, width, width, initialisation)
        self.second = EnsembleLinear(members, width, width, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class ResidualNetwork(nn.Sequential):
    """For every width a linear layer to it and that many residual blocks: ``[E, M, in] → [E, M, widths[-1]]``.

    No activation after the last block, no normalisation. With the defaults of :class:`Hypernetwork` the primary network
    of Sarafian et al. 2021.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        widths: Sequence[int],
        blocks: int,
        initialisation: Initialisation = "torch",
    ) -> None:
        require(bool(widths) and min(widths) >= 1, "widths", widths, "a residual network needs stages of 1 or more")
        require(blocks >= 0, "blocks", blocks, "it must not be negative")
        stages: list[nn.Module] = []
        for fan_in, width in pairwise([inputs, *widths]):
            stages.append(EnsembleLinear(members, fan_in, width, initialisation))
            stages += [ResidualBlock(members, width, initialisation) for _ in range(blocks)]
        super().__init__(*stages)


class Hypernetwork(nn.Module):
    """Meta inputs → weights of dynamic layers, for ``E`` independent members.

    Far from the data weights and gains grow in proportion to the meta input, so what L dynamic layers make of them
    grows with its 2L-th power, where an MLP's output grows in proportion.

    Args:
        inputs: length of the meta input.
        layers: the dynamic layers by name, such as those of :func:`mlp_layers`.
        members: E; 0 for one network whose weights have no axis of members, as policies need.
        widths: of the stages of the primary network; the last is the length of z.
        blocks: residual blocks of a stage.
        initialisation: of primary network and heads; :class:`~lit_metarl.nn.Released` if None.

    Raises:
        ConfigError: there is no width, or one below 1, of the primary network or of a dynamic layer.
    """

    def __init__(
        self,
        inputs: int,
        layers: Mapping[str, DynamicLayer],
        members: int = 0,
        widths: Sequence[int] = (256, 512, 1024),
        blocks: int = 2,
        initialisation: HyperInitialisation | None = None,
    ) -> None:
        super().__init__()
        for layer in layers.values():
            check_layer(layer.inputs, layer.outputs)
        self.members = members
        self.layers = dict(layers)
        self.primary = ResidualNetwork(members or 1, inputs, widths, blocks)
        # All heads in one product; the layers' parts lie one after the other, in the order of :class:`LayerWeights`.
        size = sum(sum(layer.parts) for layer in self.layers.values())
        self.heads = EnsembleLinear(members or 1, widths[-1], size, "torch")
        (initialisation or Released()).fill(self.primary, self.heads, self.layers)

    def forward(self, meta: Tensor) -> dict[str, Tensor]:
        """Weights by name, ``[E, *lead, ...]`` for ``meta [*lead, inputs]``; without E where ``members`` is 0.

        Under autocast the matrix products are bf16, the weights float32.
        """
        return self.weights_of(meta.unsqueeze(0))

    def weights_of(self, meta: Tensor) -> dict[str, Tensor]:
        """Weights by name of a meta input of each member, ``[E, *lead, inputs]``, or one for all, ``[1, *lead, …]``."""
        members, lead = self.members or 1, meta.shape[1:-1]
        rows = meta.reshape(meta.shape[0], -1, meta.shape[-1]).expand(members, -1, -1)
        flat = self.heads(self.primary(rows)).reshape(members, *lead, -1)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        flat = flat if self.members else flat.squeeze(0)
        parts = flat.split([size for layer in self.layers.values() for size in layer.parts], dim=-1)
        weights = {}
        for number, (name, layer) in enumerate(self.layers.items()):
            weight, bias, shift = parts[3 * number : 3 * number + 3]
            weights[f"{name}.weight"] = weight.unflatten(-1, (layer.inputs, layer.outputs))
            weights[f"{name}.bias"] = bias
            weights[f"{name}.gain"] = 1.0 + shift
        return weights
