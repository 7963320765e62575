"""Twin delayed deterministic policy gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_metarl.algorithms.actor_critic import ActorCritic
from lit_metarl.losses.td3 import actor_loss, clipped_target, smoothed_action
from lit_metarl.nn import ActorFactory, CriticFactory, DeterministicMLP, EnsembleCriticMLP
from lit_metarl.types import Transition, require


class TD3(ActorCritic):
    """Twin delayed deterministic policy gradients (Fujimoto et al. 2018), defaults of the authors' code.

    One update: the critics towards the lower target of a smoothed action; at every ``policy_delay``-th update also the
    actor, by the gradient of the first critic, and then all targets. Noise is in units of the largest action.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        actor: policy network; :class:`~lit_metarl.nn.DeterministicMLP` with its defaults if None. Of a distribution the
            mode is used.
        critic: action-value networks; :class:`~lit_metarl.nn.EnsembleCriticMLP`, initialised as ``nn.Linear``, if None.
        policy_delay: updates of the critics for one of the actor and of the targets.
        exploration_noise: standard deviation of the noise on actions for training.
        target_noise: standard deviation of the noise on actions in targets.
        target_noise_clip: largest magnitude of the latter.
        actor_critic: everything else, as of :class:`~lit_metarl.algorithms.ActorCritic`, but ``target_update_every``,
            which is ``policy_delay``.

    Raises:
        ConfigError: a value outside its range, or an actor that could not be loaded again.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        actor: ActorFactory | None = None,
        critic: CriticFactory | None = None,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **actor_critic: Any,
    ) -> None:
        require(policy_delay >= 1, "model.policy_delay", policy_delay, "it must be at least 1")
        super().__init__(
            obs_dim,
            action_dim,
            actor or DeterministicMLP(),
            critic or EnsembleCriticMLP(initialisation="torch"),
            target_update_every=policy_delay,
            **actor_critic,
        )
        noise = {"exploration_noise": exploration_noise, "target_noise": target_noise}
        for key, value in (noise | {"target_noise_clip": target_noise_clip}).items():
            require(0.0 <= value <= 2.0, f"model.{key}", value, "actions lie in [-1, 1]: it must lie in [0, 2]")
        self.policy_delay = policy_delay
        self.exploration_noise = exploration_noise
        self.target_noise, self.target_noise_clip = target_noise, target_noise_clip
        self.follow("actor")

    def target(self, batch: Transition) -> Tensor:
        """Clipped double Q target ``[M]`` with a smoothed action of the target policy."""
        noise = torch.randn_like(batch.action)
        mode = self.target_actor(batch.next_obs).mode_action
        next_action = smoothed_action(mode, noise, self.target_noise, self.target_noise_clip)
        next_value = self.target_critic(batch.next_obs, next_action)
        return clipped_target(batch.reward, batch.discount, next_value, self.gamma)

    def update_actor(self, batch: Transition) -> dict[str, Tensor]:
        """Step of the policy at every ``policy_delay``-th update; no scalars at the others."""
        return {} if self.updates % self.policy_delay else super().update_actor(batch)

    def actor_objective(self, batch: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss that raises the first critic's value of the policy's action."""
        loss = actor_loss(self.action_value(batch.obs, self.actor(batch.obs).mode_action))
        return loss, {"actor_loss": loss.detach()}

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The policy's action with Gaussian noise, ``[E, A]``, clipped to [-1, 1]."""
        mode = self.actor(obs).mode_action
        noise = self.exploration_noise * torch.randn(mode.shape, generator=generator)
        return (mode + noise.to(mode.device)).clamp(-1.0, 1.0)
