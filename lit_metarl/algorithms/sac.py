"""Soft actor-critic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_metarl.algorithms.actor_critic import ActorCritic
from lit_metarl.losses.sac import actor_loss, soft_target, temperature_loss
from lit_metarl.nn import ActorFactory, CriticFactory, EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.types import Transition, require, require_positive


class SAC(ActorCritic):
    """Soft actor-critic with a learned or fixed temperature (Haarnoja et al. 2018), defaults of a laptop-sized run.

    One update: both critics, then actor and temperature on the same fresh actions, then the target critics.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        actor: policy network; :class:`~lit_metarl.nn.TanhGaussianMLP` with its defaults if None.
        critic: action-value networks; :class:`~lit_metarl.nn.EnsembleCriticMLP` with its defaults if None.
        temperature_lr: Adam step size of log α; with 0 it stays fixed, as in the SAC of Sarafian et al. 2021.
        initial_temperature: α at the start; a run that is resumed goes on with its checkpoint's.
        target_entropy: H̄ in nats; −A if None.
        actor_critic: everything else, as of :class:`~lit_metarl.algorithms.ActorCritic`.

    Raises:
        ConfigError: a value outside its range, or an actor that could not be loaded again.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        actor: ActorFactory | None = None,
        critic: CriticFactory | None = None,
        temperature_lr: float = 3e-4,
        initial_temperature: float = 0.1,
        target_entropy: float | None = None,
        **actor_critic: Any,
    ) -> None:
        actor = actor or TanhGaussianMLP()
        super().__init__(obs_dim, action_dim, actor, critic or EnsembleCriticMLP(), **actor_critic)
        samples = hasattr(self.actor(torch.zeros(1, obs_dim)), "sample")
        require(samples, "model.actor", actor, "SAC samples actions: take TanhGaussianMLP, or train TD3")
        require_positive("model", initial_temperature=initial_temperature)
        steps = temperature_lr >= 0 and math.isfinite(temperature_lr)
        require(steps, "model.temperature_lr", temperature_lr, "it must be a positive number, or 0 for a fixed one")
        self.temperature_lr = temperature_lr
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial_temperature)))
        self.target_entropy = float(-action_dim) if target_entropy is None else target_entropy

    def actor_parameters(self) -> list[dict[str, object]]:
        """Parameter groups of actor and temperature, which are updated together."""
        return [*super().actor_parameters(), {"params": [self.log_temperature], "lr": self.temperature_lr}]

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key; that of a fixed temperature is none."""
        learned = {"model.temperature_lr": self.temperature_lr} if self.temperature_lr else {}
        return super().step_sizes | learned

    def target(self, batch: Transition) -> Tensor:
        """Soft Bellman target ``[M]`` with a fresh next action."""
        next_action, next_log_prob = self.sample_action(batch.next_obs)
        next_value = self.target_critic(batch.next_obs, next_action)
        temperature = self.log_temperature.exp()
        return soft_target(batch.reward, batch.discount, next_value, next_log_prob, temperature, self.gamma)

    def actor_objective(self, batch: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss that raises the soft value of fresh actions, and moves α towards their target entropy."""
        temperature = self.log_temperature.exp().detach()
        action, log_prob = self.sample_action(batch.obs)
        loss = actor_loss(self.action_value(batch.obs, action), log_prob, temperature)
        # The two losses share no parameter, so the gradient of their sum is each one's own.
        both = loss + temperature_loss(self.log_temperature, log_prob.detach(), self.target_entropy)
        scalars = {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean(), "temperature": temperature}
        return both, scalars

    def sample_action(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action ``[M, A]`` and its log-density ``[M]``."""
        distribution = self.actor(obs)
        return distribution.sample(torch.randn_like(distribution.mean))

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the policy, ``[E, A]``."""
        distribution = self.actor(obs)
        noise = torch.randn(distribution.mean.shape, generator=generator)
        return distribution.sample_action(noise.to(obs.device))

    def evaluated_action(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A sample of the policy ``[..., A]`` and its entropy bonus −α·log π ``[...]``, as soft values count it."""
        action, log_prob = self.actor(obs).sample(noise)
        return action, -self.log_temperature.exp() * log_prob
