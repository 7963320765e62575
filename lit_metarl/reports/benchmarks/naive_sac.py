"""A plain SAC, written as such code usually is: what the benchmarks compare with.

One network after the other, one backward pass for each loss through all that it touches, ``torch.optim.Adam`` with its
defaults, targets parameter by parameter, one environment of Gymnasium, a replay of arrays (as CleanRL's
``sac_continuous_action.py``, with an update of everything at every step). It computes the same update as
:class:`~lit_metarl.algorithms.SAC`.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import RescaleAction
from torch import Tensor, nn

from lit_metarl.types import Transition


class PlainQ(nn.Module):
    """One action-value network, ``[M, O], [M, A] → [M]``.

    Args:
        layers: linear layers, with ReLU between them.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], 1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)[:, 0]


class PlainSAC:
    """SAC with the networks and settings of ``sac``, from the same parameters.

    Args:
        sac: a :class:`~lit_metarl.algorithms.SAC`.
        critics: its critics, one by one.
    """

    def __init__(self, sac: Any, critics: list[Any]) -> None:
        self.actor, self.critics = copy.deepcopy(sac.actor), critics
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
def plain_critic(sac: Any, member: int) -> PlainQ:
    """The network of one member of MLP critics, with its parameters."""
    layers = []
    for ensemble in sac.critic.modules():
        if hasattr(ensemble, "weight"):
            linear = nn.Linear(*ensemble.weight.shape[1:])
            linear.weight.copy_(ensemble.weight[member].T)
            linear.bias.copy_(ensemble.bias[member, 0])
            layers.append(linear)
    return PlainQ(layers)


class PlainLoop:
    """The loop around it: act, step, store, update.

    Args:
        learner: a :class:`PlainSAC`.
        env_id: of Gymnasium.
        batch_size: transitions of an update.
        capacity: transitions of the replay.
        warmup: random steps without an update, taken at once.
    """

    def __init__(self, learner: PlainSAC, env_id: str, batch_size: int, capacity: int, warmup: int) -> None:
        self.learner, self.batch_size, self.capacity = learner, batch_size, capacity
        self.env: Any = RescaleAction(gymnasium.make(env_id), np.float32(-1), np.float32(1))
        self.stream, self.stored = np.random.default_rng(0), 0
        self.obs, _ = self.env.reset(seed=0)
        self.env.action_space.seed(0)
        sizes = {"obs": len(self.obs), "action": len(self.env.action_space.sample()), "next_obs": len(self.obs)}
        self.replay = {name: np.zeros((capacity, size), np.float32) for name, size in sizes.items()}
        self.reward, self.terminated = np.zeros(capacity, np.float32), np.zeros(capacity, bool)
        for _ in range(warmup):
            self.step(self.env.action_space.sample())

    def run(self, steps: int) -> None:
        """Take ``steps`` steps, each followed by an update."""
        for _ in range(steps):
            with torch.no_grad():
                action, _ = self.learner.sample(torch.as_tensor(self.obs, dtype=torch.float32).unsqueeze(0))
            self.step(action[0].numpy())
            self.learner.update(self.minibatch())

    def step(self, action: np.ndarray) -> None:
        """Take one step and store it."""
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        row = self.stored % self.capacity
        for name, value in {"obs": self.obs, "action": action, "next_obs": next_obs}.items():
            self.replay[name][row] = value
        self.reward[row], self.terminated[row] = reward, terminated
        self.stored += 1
        self.obs = self.env.reset()[0] if terminated or truncated else next_obs

    def minibatch(self) -> Transition:
        """Transitions drawn with replacement."""
        rows = self.stream.integers(min(self.stored, self.capacity), size=self.batch_size)
        obs, action, next_obs = (torch.as_tensor(values[rows]) for values in self.replay.values())
        flags = torch.as_tensor(self.terminated[rows])
        return Transition(obs, action, torch.as_tensor(self.reward[rows]), next_obs, flags, torch.zeros_like(flags))
