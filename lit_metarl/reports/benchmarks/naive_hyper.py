"""A plain SAC with two hypernetwork critics, written as such code usually is: what the benchmark compares with.

One network after the other, a linear layer for every head, one backward pass for each loss through all that it touches,
``torch.optim.Adam`` with its defaults, targets parameter by parameter. It computes the same update as
:class:`~lit_metarl.algorithms.SAC` with :class:`~lit_metarl.nn.HyperCritic`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lit_metarl.types import Transition


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


class NaiveHyperSAC:
    """SAC with the networks and settings of ``sac``, from the same parameters.

    Args:
        sac: a :class:`~lit_metarl.algorithms.SAC` with SA-Hyper critics.
    """

    def __init__(self, sac: Any) -> None:
        self.actor = copy.deepcopy(sac.actor)
        self.critics = [naive_critic(sac, member) for member in range(sac.critic.members)]
        self.targets = copy.deepcopy(self.critics)
        self.log_temperature = sac.log_temperature.detach().clone().requires_grad_()
        self.gamma, self.polyak, self.target_entropy = sac.gamma, sac.polyak, sac.target_entropy
        parameters = [p for critic in self.critics for p in critic.parameters()]
        self.critic_optimizer = torch.optim.Adam(parameters, lr=sac.critic_lr)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=sac.actor_lr)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=sac.temperature_lr)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """An action ``[M, A]`` and its log-density ``[M]``."""
        distribution = self.actor(obs)
        return distribution.sample(torch.randn_like(distribution.mean))

    def update(self, batch: Transition) -> None:
        """One update of everything on a minibatch."""
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            action, log_prob = self.sample(batch.next_obs)
            lowest = torch.stack([target(batch.next_obs, action) for target in self.targets]).amin(0)
            y = batch.reward + self.gamma * batch.discount * (lowest - temperature * log_prob)
        self.critic_optimizer.zero_grad()
        losses = [(critic(batch.obs, batch.action) - y).square().mean() for critic in self.critics]
        torch.stack(losses).sum().backward()
        self.critic_optimizer.step()
        action, log_prob = self.sample(batch.obs)
        lowest = torch.stack([critic(batch.obs, action) for critic in self.critics]).amin(0)
        self.actor_optimizer.zero_grad()
        (temperature * log_prob - lowest).mean().backward()
        self.actor_optimizer.step()
        self.temperature_optimizer.zero_grad()
        (self.log_temperature.exp() * (-log_prob.detach() - self.target_entropy)).mean().backward()
        self.temperature_optimizer.step()
        for critic, target in zip(self.critics, self.targets, strict=True):
            for p, slow in zip(critic.parameters(), target.parameters(), strict=True):
                slow.data.copy_(self.polyak * p.data + (1.0 - self.polyak) * slow.data)


@torch.no_grad()
def naive_critic(sac: Any, member: int) -> NaiveHyperQ:
    """The network of one member of SA-Hyper critics, with its parameters."""
    hyper = sac.critic.hypernetwork
    layers = list(hyper.layers.values())
    primary = [layer for layer in hyper.primary.modules() if hasattr(layer, "bias")]
    stages = [layer.weight.shape[2] for layer in hyper.primary if hasattr(layer, "bias")]
    blocks = len(hyper.primary) // len(stages) - 1
    sizes = [layers[0].inputs, *(layer.outputs for layer in layers)]
    critic = NaiveHyperQ(sac.sizes.obs, stages, blocks, sizes)
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
