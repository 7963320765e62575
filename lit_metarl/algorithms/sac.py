"""Soft actor-critic."""

from __future__ import annotations

import math
from typing import cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lit_metarl.algorithms.base import Algorithm, policy_state_of
from lit_metarl.losses.sac import actor_loss, critic_loss, soft_target, temperature_loss
from lit_metarl.nn import ActorFactory, CriticFactory, EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.types import ReplayBlock, State, Transition, require


class SAC(Algorithm):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018), defaults of a laptop-sized run.

    One update: both critics, then actor and temperature on the same fresh actions, then the target critics.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        actor: policy network; :class:`~lit_metarl.nn.TanhGaussianMLP` with its defaults if None.
        critic: action-value networks; :class:`~lit_metarl.nn.EnsembleCriticMLP` with its defaults if None.
        actor_lr: Adam step size of the policy.
        critic_lr: Adam step size of the critics.
        temperature_lr: Adam step size of log α.
        gamma: discount γ per agent step.
        polyak: τ of the target critics, target ← (1 − τ)·target + τ·critic.
        target_update_every: updates between two target steps.
        initial_temperature: α at the start.
        target_entropy: H̄ in nats; −A if None.

    Raises:
        ConfigError: a value outside its range, or an actor that could not be loaded again.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        actor: ActorFactory | None = None,
        critic: CriticFactory | None = None,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        temperature_lr: float = 3e-4,
        gamma: float = 0.99,
        polyak: float = 0.005,
        target_update_every: int = 1,
        initial_temperature: float = 0.1,
        target_entropy: float | None = None,
    ) -> None:
        super().__init__()
        for key, value in {
            "actor_lr": actor_lr,
            "critic_lr": critic_lr,
            "temperature_lr": temperature_lr,
            "initial_temperature": initial_temperature,
        }.items():
            require(value > 0 and math.isfinite(value), f"model.{key}", value, "it must be a positive number")
        require(0.0 <= gamma <= 1.0, "model.gamma", gamma, "a discount lies in [0, 1]")
        require(0.0 < polyak <= 1.0, "model.polyak", polyak, "it must lie in (0, 1]")
        require(target_update_every >= 1, "model.target_update_every", target_update_every, "it must be at least 1")
        self.obs_dim, self.action_dim = obs_dim, action_dim
        actor, critic = actor or TanhGaussianMLP(), critic or EnsembleCriticMLP()
        self.recipe = recipe_of(actor)
        self.actor = actor.build(obs_dim, action_dim)
        self.critic = critic.build(obs_dim, action_dim)
        self.target_critic = critic.build(obs_dim, action_dim)
        self.copy_target()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial_temperature)))
        self.actor_lr, self.critic_lr, self.temperature_lr = actor_lr, critic_lr, temperature_lr
        self.gamma = gamma
        self.polyak = polyak
        self.target_update_every = target_update_every
        self.target_entropy = float(-action_dim) if target_entropy is None else target_entropy
        self.updates = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the critics, and one for actor and temperature, which are updated together."""
        policy = [
            {"params": list(self.actor.parameters()), "lr": self.actor_lr},
            {"params": [self.log_temperature], "lr": self.temperature_lr},
        ]
        return [
            torch.optim.Adam(self.critic.parameters(), lr=self.critic_lr, fused=True),
            torch.optim.Adam(policy, fused=True),
        ]

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        return {f"model.{name}": getattr(self, name) for name in ("actor_lr", "critic_lr", "temperature_lr")}

    def copy_target(self) -> None:
        """target ← critic, exactly."""
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)

    def training_step(self, batch: ReplayBlock, batch_idx: int) -> None:
        """``U`` updates, one for each minibatch of the block."""
        # Autocast keeps its bf16 copies of the weights: without this, update 2 would use those of update 1.
        if torch.is_autocast_enabled(self.device.type):
            torch.set_autocast_cache_enabled(False)
        metrics: dict[str, Tensor] = {}
        for update in range(batch.transitions.reward.shape[0]):
            new = self.update(Transition(*(field[update] for field in batch.transitions)))
            metrics = {name: metrics[name] + value for name, value in new.items()} if metrics else new
        means = {name: value / (update + 1) for name, value in metrics.items()}
        self.record(means, batch.env_steps, batch.episode_returns, batch.episode_lengths)

    def update(self, batch: Transition) -> dict[str, Tensor]:
        """One update on a minibatch, fields ``[M, ...]``; returns detached scalars."""
        critic_optimizer, policy_optimizer = cast(list[LightningOptimizer], self.optimizers())
        metrics = self.update_critic(batch, critic_optimizer)
        metrics |= self.update_actor_and_temperature(batch.obs, policy_optimizer)
        self.updates += 1
        if self.updates % self.target_update_every == 0:
            self.update_target()
        return metrics

    def update_critic(self, batch: Transition, optimizer: LightningOptimizer) -> dict[str, Tensor]:
        """Regress the critics on the soft Bellman target."""
        with torch.no_grad():
            next_action, next_log_prob = self.sample_action(batch.next_obs)
            next_value = self.target_critic(batch.next_obs, next_action)
            target = soft_target(
                batch.reward, batch.discount, next_value, next_log_prob, self.log_temperature.exp(), self.gamma
            )
        value = self.critic(batch.obs, batch.action)
        loss = critic_loss(value, target)
        self.minimise(loss, optimizer)
        return {"critic_loss": loss.detach(), "q_value": value.detach().mean()}

    def update_actor_and_temperature(self, obs: Tensor, optimizer: LightningOptimizer) -> dict[str, Tensor]:
        """Raise the soft value of fresh actions, and move α towards the target entropy of the same actions."""
        temperature = self.log_temperature.exp().detach()
        action, log_prob = self.sample_action(obs)
        loss = actor_loss(self.critic(obs, action), log_prob, temperature)
        # The two losses share no parameter, so the gradient of their sum is each one's own.
        self.minimise(loss + temperature_loss(self.log_temperature, log_prob.detach(), self.target_entropy), optimizer)
        return {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean(), "temperature": temperature}

    @torch.no_grad()
    def update_target(self) -> None:
        """target ← (1 − τ)·target + τ·critic."""
        torch._foreach_lerp_(list(self.target_critic.parameters()), list(self.critic.parameters()), self.polyak)

    def sample_action(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action ``[M, A]`` and its log-density ``[M]``."""
        distribution = self.actor(obs)
        return distribution.sample(torch.randn_like(distribution.mean))

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the policy, ``[E, A]``."""
        distribution = self.actor(obs)
        noise = torch.randn(distribution.mean.shape, generator=generator)
        return distribution.sample_action(noise.to(obs.device))

    def act(self, obs: Tensor) -> Tensor:
        """tanh(mean), ``[E, A]``."""
        return self.actor(obs).mode_action

    def policy_state(self) -> State:
        """Recipe and weights of the actor."""
        return policy_state_of(self.recipe, self.actor, self.obs_dim, self.action_dim)

    def counters(self) -> State:
        """Adds the number of updates, on which the target schedule depends."""
        return super().counters() | {"updates": self.updates}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        super().load_counters(state)
        self.updates = state["updates"]
