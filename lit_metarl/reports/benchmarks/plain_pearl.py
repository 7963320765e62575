"""A plain PEARL, written as its authors' code is (github.com/katerakelly/oyster): what the benchmark compares with.

One network after the other, one ``torch.optim.Adam`` with its defaults for each, z repeated for every transition of its
task, posteriors and divergences task by task, one backward pass for each loss through all that it touches, targets
parameter by parameter. It computes the same update as :class:`~lit_metarl.algorithms.PEARL` with a ``value`` network.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from lit_metarl.nn.actors import RELEASED_LOG_STD
from lit_metarl.nn.context_encoder import SMALLEST_VARIANCE
from lit_metarl.types import TaskMinibatch, Transition


class PlainPEARL:
    """The released update, from the same parameters.

    Args:
        module: a :class:`~lit_metarl.algorithms.PEARL` with MLPs and a value network.
    """

    def __init__(self, module: Any) -> None:
        state = module.state_dict()
        self.encoder, self.actor = plain_mlp(state, "encoder"), plain_mlp(state, "actor")
        self.critics = [plain_mlp(state, "critic", member) for member in range(module.critic.members)]
        self.value = plain_mlp(state, "value", 0)
        self.target = copy.deepcopy(self.value)
        rates = {"critic": module.critic_lr, "encoder": module.encoder_lr}
        rates |= {"value": module.value_lr, "actor": module.actor_lr}
        networks = {"encoder": [self.encoder], "critic": self.critics, "value": [self.value], "actor": [self.actor]}
        self.optimizers = {
            name: [torch.optim.Adam(network.parameters(), lr=rates[name]) for network in each]
            for name, each in networks.items()
        }
        self.settings = module

    def step(self, *names: str) -> None:
        """A step of the optimizers of these networks, and no gradient any more."""
        for name in names:
            for optimizer in self.optimizers[name]:
                optimizer.step()
                optimizer.zero_grad()

    def infer(self, context: Transition) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance of every task's posterior, ``[Z]`` each."""
        made = self.encoder(torch.cat([context.obs, context.action, context.reward.unsqueeze(-1)], dim=-1))
        means, raw = made.chunk(2, dim=-1)
        variances = F.softplus(raw).clamp(min=SMALLEST_VARIANCE)
        found = []
        for mean, variance in zip(means, variances, strict=True):
            product = 1.0 / torch.sum(torch.reciprocal(variance), dim=0)
            found.append((product * torch.sum(mean / variance, dim=0), product))
        return found

    def act(self, obs: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action ``[n, A]``, its log-density ``[n, 1]``, and mean and log-std before the squash."""
        mean, raw = self.actor(torch.cat([obs, z], dim=-1)).chunk(2, dim=-1)
        log_std = raw.clamp(*RELEASED_LOG_STD)
        u = mean + log_std.exp() * torch.randn_like(mean)
        log_prob = Normal(mean, log_std.exp()).log_prob(u) - torch.log(1.0 - torch.tanh(u).square())
        return torch.tanh(u), log_prob.sum(-1, keepdim=True), mean, log_std

    def update(self, batch: TaskMinibatch) -> None:
        """One update of everything on a minibatch."""
        settings, data = self.settings, batch.transitions
        posteriors = self.infer(batch.context)
        deviations = torch.stack([variance.sqrt() for _, variance in posteriors])
        z = torch.stack([mean for mean, _ in posteriors]) + deviations * torch.randn_like(deviations)
        rows = torch.cat([each.repeat(data.obs.shape[1], 1) for each in z])
        obs, action, _, next_obs, *_ = (field.flatten(0, 1) for field in data)
        reward, discount = data.reward.reshape(-1, 1), data.discount.reshape(-1, 1)
        new_action, log_prob, mean, log_std = self.act(obs, rows.detach())
        prior = Normal(torch.zeros_like(z[0]), torch.ones_like(z[0]))
        divergences = [kl_divergence(Normal(mean, var.sqrt()), prior).sum() for mean, var in posteriors]
        (settings.kl_weight * torch.stack(divergences).sum()).backward(retain_graph=True)
        with torch.no_grad():
            following = self.target(torch.cat([next_obs, rows], dim=-1))
            target = settings.reward_scale * reward + settings.gamma * discount * following
        errors = [critic(torch.cat([obs, rows, action], dim=-1)) - target for critic in self.critics]
        torch.stack([error.square().mean() for error in errors]).sum().backward()
        self.step("critic", "encoder")
        fixed = rows.detach()
        values = [critic(torch.cat([obs, fixed, new_action], dim=-1)) for critic in self.critics]
        lowest = torch.min(*values)
        F.mse_loss(self.value(torch.cat([obs, fixed], dim=-1)), (lowest - log_prob).detach()).backward()
        self.step("value")
        for p, slow in zip(self.value.parameters(), self.target.parameters(), strict=True):
            slow.data.copy_(settings.polyak * p.data + (1.0 - settings.polyak) * slow.data)
        penalty = settings.policy_penalty * (mean.square().mean() + log_std.square().mean())
        ((log_prob - lowest).mean() + penalty).backward()  # through the critics, whose gradients are then dropped
        self.step("actor")
        for optimizer in self.optimizers["critic"]:
            optimizer.zero_grad()


@torch.no_grad()
def plain_mlp(state: dict[str, Tensor], name: str, member: int | None = None) -> nn.Sequential:
    """The ReLU MLP ``name`` of a module's ``state``; of an ensemble its ``member``."""
    numbers = sorted(int(n) for key in state for n in re.findall(rf"^{name}\.trunk\.(\d+)\.weight$", key))
    layers: list[nn.Module] = []
    for number in numbers:
        weight, bias = (state[f"{name}.trunk.{number}.{part}"] for part in ("weight", "bias"))
        if member is not None:
            weight, bias = weight[member].T, bias[member, 0]
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
