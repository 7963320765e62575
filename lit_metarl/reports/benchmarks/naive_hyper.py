"""A plain SAC with two hypernetwork critics, written as such code usually is: what the benchmark compares with.

A linear layer for every head, in the update of :mod:`lit_metarl.reports.benchmarks.naive_sac`. It computes the same as
:class:`~lit_metarl.algorithms.SAC` with :class:`~lit_metarl.nn.HyperCritic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lit_metarl.reports.benchmarks.naive_sac import PlainSAC


class Block(nn.Module):
    """x + L₂(relu(L₁(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class NaiveHyperQ(nn.Module):
    """One action-value network with meta input observation and base input action, ``[M, O], [M, A] → [M]``."""

    def __init__(self, obs: int, widths: Sequence[int], blocks: int, layers: Sequence[int]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for fan_in, width in pairwise([obs, *widths]):
            stages += [nn.Linear(fan_in, width), *(Block(width) for _ in range(blocks))]
        self.primary = nn.Sequential(*stages)
        z = widths[-1]
        self.layers = list(pairwise(layers))
        self.heads: Any = nn.ModuleList(
            nn.ModuleList([nn.Linear(z, i * o), nn.Linear(z, o), nn.Linear(z, o)]) for i, o in self.layers
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        z, x = self.primary(obs), action.unsqueeze(-1)
        for number, (fan_in, fan_out) in enumerate(self.layers):
            weight, bias, gain = self.heads[number]
            matrices = weight(z).view(-1, fan_in, fan_out).transpose(1, 2)
            x = torch.bmm(matrices, x) * (1.0 + gain(z)).unsqueeze(-1) + bias(z).unsqueeze(-1)
            x = torch.relu(x) if number < len(self.layers) - 1 else x
        return x[:, 0, 0]


def naive_hyper_sac(sac: Any) -> PlainSAC:
    """A plain SAC with the networks and settings of ``sac``, which has SA-Hyper critics, from the same parameters."""
    return PlainSAC(sac, [naive_critic(sac, member) for member in range(sac.critic.members)])


@torch.no_grad()
def naive_critic(sac: Any, member: int) -> NaiveHyperQ:
    """The network of one member of SA-Hyper critics, with its parameters."""
    hyper = sac.critic.hypernetwork
    layers = list(hyper.layers.values())
    primary = [layer for layer in hyper.primary.modules() if hasattr(layer, "bias")]
    stages = [layer.weight.shape[2] for layer in hyper.primary if hasattr(layer, "bias")]
    blocks = len(hyper.primary) // len(stages) - 1
    sizes = [layers[0].inputs, *(layer.outputs for layer in layers)]
    critic = NaiveHyperQ(sac.sizes.obs, stages, blocks, sizes).to(sac.device)
    own = [layer for layer in critic.primary.modules() if isinstance(layer, nn.Linear)]
    for linear, layer in zip(own, primary, strict=True):
        linear.weight.copy_(layer.weight[member].T)
        linear.bias.copy_(layer.bias[member, 0])
    parts = [size for layer in layers for size in layer.parts]
    heads = [head for triple in critic.heads for head in triple]
    weights, biases = hyper.heads.weight[member].split(parts, -1), hyper.heads.bias[member, 0].split(parts)
    for head, weight, bias in zip(heads, weights, biases, strict=True):
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
    return critic
