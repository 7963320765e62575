"""Adaptation by inference: PEARL, and Hyper-PEARL by other networks."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_metarl.algorithms.base import policy_state_of
from lit_metarl.algorithms.metrics import adaptation_metrics
from lit_metarl.algorithms.off_policy import OffPolicy
from lit_metarl.losses import pearl as losses
from lit_metarl.losses.critics import bellman_target, critic_loss
from lit_metarl.losses.sac import actor_loss, soft_target, temperature_loss
from lit_metarl.nn import (
    ActorFactory,
    ContextEncoderFactory,
    CriticFactory,
    EnsembleCriticMLP,
    ProductOfGaussians,
    TanhGaussianMLP,
)
from lit_metarl.nn.conditioning import condition, told_call
from lit_metarl.nn.context_encoder import Evidence, Posterior
from lit_metarl.nn.distributions import TanhGaussian
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.processes import world_size
from lit_metarl.types import (
    Adaptation,
    MetaEpisodes,
    Sizes,
    State,
    TaskMinibatch,
    TaskReplayBlock,
    Trajectories,
    Transition,
    require,
    require_positive,
)


class PEARL(OffPolicy):
    """Probabilistic embeddings for actor-critic RL (Rakelly et al. 2019): a task is inferred, not learned.

    An encoder makes a posterior over z out of transitions of a task; policy and critics are told z. All are trained by
    soft actor-critic, from replay. The encoder learns what critics need to know: the gradient reaches it through the
    critics' loss alone, and through the KL divergence to the prior N(0, 1).

    One update: z from a context of the same tasks; critics and encoder; the ``value`` network, where there is one; the
    policy; the slow copy of ``value``, or of the critics. Every part sees what the parts before it left. Two forms:

    ====================  ==========================================================================================
    ``value`` given       V(s, z) with a slow copy makes the critics' targets, the temperature stays what it is
                          initially: the released algorithm, whose ``reward_scale`` (5 for robots) sets the entropy
    ``value`` None        slow copies of the critics do, and the temperature is learned: today's soft actor-critic
    ====================  ==========================================================================================

    With ``data.oracle_context`` the policy is told the task in place of z, without an encoder: the ceiling of what
    inference can reach. With the networks of Sarafian et al. 2021
    (:class:`~lit_metarl.nn.HyperActor` of z, :class:`~lit_metarl.nn.HyperCritic` of the observation) it is Hyper-PEARL.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        num_actions: number of discrete actions, which there must not be; likewise.
        context_dim: D, entries of the context that the policy is told; likewise.
        action_scale: factor between the policy's actions and the simulator's range; likewise.
        actor: policy network; the released :class:`~lit_metarl.nn.TanhGaussianMLP` of 3 × 300 if None.
        critic: action-value networks; :class:`~lit_metarl.nn.EnsembleCriticMLP` of 3 × 300 if None.
        value: state-value network of the released form, a critic of no action with ``members: 1``.
        encoder: of contexts; :class:`~lit_metarl.nn.ProductOfGaussians` with its defaults if None.
        actor_lr: Adam step size of the policy.
        critic_lr: Adam step size of the critics.
        value_lr: Adam step size of ``value``.
        encoder_lr: Adam step size of the encoder.
        temperature_lr: Adam step size of the temperature, which is learned where there is no ``value``.
        initial_temperature: α at the start; 1 in the released form.
        target_entropy: of a learned temperature, in nats; −A if None.
        reward_scale: factor of rewards in the critics' targets; contexts and returns know nothing of it.
        kl_weight: λ of the KL divergence.
        kl_reduction: ``sum`` over tasks and entries of z, as released, while the critics' loss is a mean: another
            ``data.meta_batch`` is then another weight. ``mean`` of them: λ = 0.1 in sum is 0.1·B·Z here.
        policy_penalty: weight of mean μ² + mean (log σ)² in the policy's loss.
        evidence_limit: largest number of transitions that count when a task is inferred to act in it. Precisions add
            up, so that the posterior of a test, from whole episodes, is narrower than any of training, from
            ``data.context_size`` transitions. None: all count, as released.
        deterministic_evaluation: evaluate with the most likely actions, given z, as released.
        off_policy: everything else, as of :class:`~lit_metarl.algorithms.OffPolicy`.

    Raises:
        ConfigError: a value outside its range, networks that do not fit, or a policy that could not be loaded again.
    """

    actor: nn.Module
    critic: nn.Module
    target_critic: nn.Module
    target_value: nn.Module
    encoder: Any

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_actions: int | None = None,
        context_dim: int = 0,
        action_scale: float = 1.0,
        actor: ActorFactory | None = None,
        critic: CriticFactory | None = None,
        value: CriticFactory | None = None,
        encoder: ContextEncoderFactory | None = None,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        value_lr: float = 3e-4,
        encoder_lr: float = 3e-4,
        temperature_lr: float = 3e-4,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        reward_scale: float = 1.0,
        kl_weight: float = 0.1,
        kl_reduction: Literal["sum", "mean"] = "sum",
        policy_penalty: float = 1e-3,
        evidence_limit: int | None = None,
        deterministic_evaluation: bool = True,
        **off_policy: Any,
    ) -> None:
        super().__init__(**off_policy)
        require(num_actions is None, "data.env", f"{num_actions} discrete actions", "PEARL acts in a continuous box")
        require_positive("model", actor_lr=actor_lr, critic_lr=critic_lr, value_lr=value_lr, encoder_lr=encoder_lr)
        require_positive("model", temperature_lr=temperature_lr, initial_temperature=initial_temperature)
        require_positive("model", reward_scale=reward_scale)
        for key, weight in {"kl_weight": kl_weight, "policy_penalty": policy_penalty}.items():
            require(0.0 <= weight < math.inf, f"model.{key}", weight, "a weight is not negative")
        require(kl_reduction in ("sum", "mean"), "model.kl_reduction", kl_reduction, "choose sum or mean")
        remedy = "with a value network the temperature is no target's but model.initial_temperature: leave it null"
        require(target_entropy is None or value is None, "model.target_entropy", target_entropy, remedy)
        some = evidence_limit is None or evidence_limit >= 1
        require(some, "model.evidence_limit", evidence_limit, "1 or more transitions, or null for all")
        remedy = "the task is told, so there is nothing to infer: set it null, or data.oracle_context false"
        require(encoder is None or context_dim == 0, "model.encoder", encoder, remedy)
        inference = None if context_dim else encoder or ProductOfGaussians()
        self.context_dim, self.action_scale = context_dim, action_scale
        self.sizes = Sizes(obs_dim, action_dim, None, context_dim if inference is None else inference.latent)
        actor = actor or TanhGaussianMLP((300, 300, 300), "torch", output_bound=1e-3, clamp_log_std=True)
        self.recipe = recipe_of(actor)
        self.actor = actor.build(self.sizes)
        remedy = "PEARL samples actions of a squashed Gaussian: take TanhGaussianMLP or HyperActor"
        tried = self._distribution(torch.zeros(1, 1, obs_dim), torch.zeros(1, self.sizes.context))
        require(isinstance(tried, TanhGaussian), "model.actor", actor, remedy)
        self.critic = (critic or EnsembleCriticMLP((300, 300, 300))).build(self.sizes)
        self.value = None if value is None else value.build(self.sizes._replace(action=0))
        self.follow("critic" if value is None else "value")
        self.encoder = None if inference is None else inference.build(Sizes(obs_dim, action_dim))
        if inference is not None:
            made = self.encoder.nothing(1).precision.shape[-1]
            remedy = f"the module that it builds makes a z of {made} entries; the two must be one number"
            require(made == inference.latent, "model.encoder.latent", inference.latent, remedy)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial_temperature)), requires_grad=value is None)
        self.actor_lr, self.critic_lr, self.value_lr = actor_lr, critic_lr, value_lr
        self.encoder_lr, self.temperature_lr = encoder_lr, temperature_lr
        self.target_entropy = float(-action_dim) if target_entropy is None else target_entropy
        self.reward_scale, self.kl_weight, self.kl_reduction = reward_scale, kl_weight, kl_reduction
        self.policy_penalty = policy_penalty
        self.evidence_limit, self.deterministic_evaluation = evidence_limit, deterministic_evaluation

    # Optimization --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for critics and encoder, for policy and temperature, and for the value network, where there are such."""
        critics = [{"params": list(self.critic.parameters()), "lr": self.critic_lr}]
        actors = [{"params": list(self.actor.parameters()), "lr": self.actor_lr}]
        if self.encoder is not None:
            critics.append({"params": list(self.encoder.parameters()), "lr": self.encoder_lr})
        if self.value is None:
            actors.append({"params": [self.log_temperature], "lr": self.temperature_lr})
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(critics, fused=True),
            torch.optim.Adam(actors, fused=True),
        ]
        if self.value is not None:
            optimizers.append(torch.optim.Adam(self.value.parameters(), lr=self.value_lr, fused=True))
        return optimizers

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        names = ["actor_lr", "critic_lr"]
        names += ["temperature_lr"] if self.value is None else ["value_lr"]
        names += [] if self.encoder is None else ["encoder_lr"]
        return {f"model.{name}": getattr(self, name) for name in names}

    def training_step(self, batch: TaskReplayBlock, batch_idx: int) -> None:
        """``U`` updates, one for each minibatch of the block."""
        remedy = "PEARL learns from replays of tasks; take TaskReplayDataModule"
        require(isinstance(batch, TaskReplayBlock), "data", type(batch).__name__, remedy)
        super().training_step(batch, batch_idx)

    def update(self, batch: TaskMinibatch) -> dict[str, Tensor]:
        """One update on a minibatch of ``B`` tasks; returns detached scalars."""
        self.updates += 1
        data = batch.transitions
        z, divergence, metrics = self._infer(batch)
        told = z.detach()
        policy = self._distribution(data.obs, told)
        action, log_prob = policy.sample(torch.randn_like(policy.mean))
        metrics |= self._update_critic(data, z, divergence)
        constants = {name: value.detach() for name, value in self.critic.named_parameters()}
        value = functional_call(
            self.critic, constants, (data.obs, action, told)
        )  # [E, B, M], graph to the action alone
        if self.value is not None:
            metrics |= self._update_value(data.obs, told, value.detach(), log_prob.detach())
        metrics |= self._update_actor(policy, log_prob, value)
        if self.updates % self.target_update_every == 0:
            self.update_targets()
        return metrics

    def _infer(self, batch: TaskMinibatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """z ``[B, Z]`` with a graph, λ·KL, and scalars to log."""
        if self.encoder is None:
            return batch.told, batch.told.new_zeros(()), {}
        posterior = self.encoder.posterior(self.encoder(batch.context))
        z = posterior.sample(torch.randn_like(posterior.mean))
        spread = {"z_mean": posterior.mean.detach().abs().mean()}
        if self.encoder.deterministic:
            return z, z.new_zeros(()), spread
        divergence = losses.kl_to_prior(*posterior)
        # Processes have their own tasks, and gradients are averaged: that of a sum over all tasks has to be a sum.
        total = divergence.mean() if self.kl_reduction == "mean" else divergence.sum() * world_size()
        spread |= {"kl": divergence.detach().sum(-1).mean(), "z_variance": posterior.variance.detach().mean()}
        return z, self.kl_weight * total, spread

    def _update_critic(self, data: Transition, z: Tensor, divergence: Tensor) -> dict[str, Tensor]:
        """Step of critics and encoder."""
        with torch.no_grad():
            target = self._target(data, z)
        value = self.critic(data.obs, data.action, z)
        loss = critic_loss(value, target)
        self.minimise(loss + divergence, self.optimizer(0))
        return {"critic_loss": loss.detach(), "q_value": value.detach().mean()}

    def _target(self, data: Transition, z: Tensor) -> Tensor:
        """Regression target of the critics, ``[B, M]``."""
        reward = self.reward_scale * data.reward
        if self.value is not None:
            following = self.target_value(data.next_obs, no_action(data.next_obs), z).amin(0)
            return bellman_target(reward, data.discount, following, self.gamma)
        policy = self._distribution(data.next_obs, z)
        action, log_prob = policy.sample(torch.randn_like(policy.mean))
        following = self.target_critic(data.next_obs, action, z)
        return soft_target(reward, data.discount, following, log_prob, self.log_temperature.exp(), self.gamma)

    def _update_value(self, obs: Tensor, told: Tensor, value: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
        """Step of the value network towards the lower critic's value of the policy's action."""
        assert self.value is not None
        target = losses.soft_value_target(value, log_prob, self.log_temperature.detach().exp())
        loss = critic_loss(self.value(obs, no_action(obs), told), target)
        self.minimise(loss, self.optimizer(2))
        return {"value_loss": loss.detach()}

    def _update_actor(self, policy: TanhGaussian, log_prob: Tensor, value: Tensor) -> dict[str, Tensor]:
        """Step of the policy, and of the temperature where it is learned."""
        temperature = self.log_temperature.exp().detach()
        loss = actor_loss(value, log_prob, temperature)
        whole = loss + self.policy_penalty * losses.policy_penalty(policy.mean, policy.log_std)
        if self.value is None:  # the two losses share no parameter
            whole = whole + temperature_loss(self.log_temperature, log_prob.detach(), self.target_entropy)
        self.minimise(whole, self.optimizer(1))
        return {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean(), "temperature": temperature}

    def _distribution(self, obs: Tensor, z: Tensor) -> TanhGaussian:
        """The policy at ``obs [B, M, O]``, told ``z [B, Z]``: a hypernetwork makes weights once per task."""
        params = dict(self.actor.named_parameters())
        return told_call(self.actor, params, obs, condition(self.actor, params, z))

    # MetaPolicy ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_adaptation(self, context: Tensor) -> Adaptation:
        """No evidence about ``B`` tasks; or the tasks themselves, where they are told, ``context [B, D]``."""
        tasks, entries = context.shape
        remedy = f"the tasks are told with {entries} numbers; give the module the DataModule's context_dim"
        require(entries == self.context_dim, "model.context_dim", self.context_dim, remedy)
        if self.encoder is None:
            return {"z": context.to(self.device)}
        return self.encoder.nothing(tasks)._asdict()

    @torch.no_grad()
    def begin_round(self, adaptation: Adaptation, trajectories: int, generator: torch.Generator) -> Adaptation:
        """The policy's arguments besides observations for one z per episode, ``[B, N, ...]``: a draw of the posterior.

        Of a hypernetwork these are weights, so that its primary network runs once per round.
        """
        with self._precision():
            if self.encoder is None:
                z = adaptation["z"].unsqueeze(1)
            else:
                posterior = self.posterior(adaptation)
                tasks, latent = posterior.mean.shape
                noise = torch.randn(tasks, trajectories, latent, generator=generator, dtype=posterior.mean.dtype)
                z = type(posterior)(*(x.unsqueeze(1) for x in posterior)).sample(noise.to(posterior.mean.device))
            return condition(self.actor, dict(self.actor.named_parameters()), z)

    @torch.no_grad()
    def posterior(self, adaptation: Adaptation) -> Posterior:
        """The posterior over z of ``B`` tasks, fields ``[B, Z]``, of a module with an encoder."""
        return self.encoder.posterior(Evidence(**adaptation), self.evidence_limit)

    @torch.no_grad()
    def adapt(self, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
        """Evidence so far, plus that of all transitions of one more round; nothing changes where z is told."""
        if self.encoder is None:
            return adaptation
        data, unread = trajectories, trajectories.mask > 0  # an encoder reads no ends of episodes
        fields = data.obs, data.action, data.reward, data.next_obs, unread, unread
        with self._precision():
            evidence = self.encoder(Transition(*(x.flatten(1, 2) for x in fields)), data.mask.flatten(1, 2))
        return Evidence(**adaptation).plus(evidence)._asdict()

    @torch.no_grad()
    def sample_actions(self, adaptation: Adaptation, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions of the policy for ``obs [B, N, O]``, which in an evaluation are the most likely ones, if so set."""
        policy = self._acting(adaptation, obs)
        noise = torch.randn(policy.mean.shape, generator=generator, dtype=policy.mean.dtype)
        if self.deterministic_evaluation and not self.training:
            noise = torch.zeros_like(noise)
        return policy.sample(noise.to(policy.mean.device))

    @torch.no_grad()
    def mode_actions(self, adaptation: Adaptation, obs: Tensor) -> Tensor:
        """The most likely actions, given z, for ``obs [B, N, O]``."""
        return self._acting(adaptation, obs).mode_action

    def _acting(self, adaptation: Adaptation, obs: Tensor) -> TanhGaussian:
        with self._precision():
            return told_call(self.actor, dict(self.actor.named_parameters()), obs, adaptation)

    def _precision(self) -> AbstractContextManager[Any]:
        """The precision of the training step, also where data is collected."""
        return nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()

    # Evaluation and resume -----------------------------------------------------------------------------------------

    def evaluation_metrics(self, batch: MetaEpisodes) -> dict[str, Tensor]:
        """Means over all processes' tasks, as :func:`~lit_metarl.algorithms.metrics.adaptation_metrics` names them."""
        return adaptation_metrics(batch, self.gather)

    def policy_state(self) -> State:
        """Recipe and weights of the policy, which is told z."""
        return policy_state_of(self.recipe, self.actor, self.sizes, self.action_scale)


def no_action(obs: Tensor) -> Tensor:
    """Actions of no entry for ``obs [..., O]``, ``[..., 0]``: with these a critic is a state-value network."""
    return obs[..., :0]
