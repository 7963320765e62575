"""The base of actor-critic algorithms of single tasks: critics, targets, and the order of an update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call

from lit_metarl.algorithms.base import parameters_of, policy_state_of
from lit_metarl.algorithms.cuda_graphs import GraphedGradients, gradients_of
from lit_metarl.algorithms.off_policy import OffPolicy
from lit_metarl.losses.critics import critic_loss
from lit_metarl.nn import ActorFactory, CriticFactory
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.types import Episodes, Sizes, State, Transition, require, require_positive


class ActorCritic(OffPolicy, ABC):
    """A policy and an ensemble of critics that learn from replayed transitions, with slowly moving targets.

    One update: the critics regress on :meth:`target`, then :meth:`update_actor`, then the Polyak step of the targets.
    A subclass is its target, its actor's loss and how it explores; more networks get a target by :meth:`follow`, other
    optimizers belong in :meth:`configure_optimizers`, the critics' first.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        actor: policy network.
        critic: action-value networks.
        actor_lr: Adam step size of the policy.
        critic_lr: Adam step size of the critics.
        gamma: discount γ per agent step.
        polyak: τ of the targets, target ← (1 − τ)·target + τ·network.
        target_update_every: updates between two target steps.
        share_weights: whether the actor's loss uses the weights that a hypernetwork of observations made for the
            critics' loss. It saves a pass through the primary network, the larger part of a hypernetwork's cost in the
            actor's step, and changes what is learned from: the actor sees the critics as they were *before* their step.
        cuda_graphs: whether a GPU replays each loss with its gradient as one CUDA graph: the same numbers, in a
            fraction of the time while networks are small. What :meth:`update` returns is then overwritten by the next.

    Raises:
        ConfigError: a value outside its range, or an actor that could not be loaded again; in a fit, CUDA graphs
            without a GPU.
    """

    critic: Any
    target_critic: nn.Module

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        actor: ActorFactory,
        critic: CriticFactory,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        gamma: float = 0.99,
        polyak: float = 0.005,
        target_update_every: int = 1,
        share_weights: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(gamma, polyak, target_update_every)
        require_positive("model", actor_lr=actor_lr, critic_lr=critic_lr)
        self.sizes = Sizes(obs_dim, action_dim)
        self.recipe = recipe_of(actor)
        self.actor = actor.build(self.sizes)
        self.critic = critic.build(self.sizes)
        self.follow("critic")
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        made_of_obs = "action" not in getattr(self.critic, "meta", ["action"])
        remedy = "only a HyperCritic whose meta input is not the action makes weights that can be shared"
        require(made_of_obs or not share_weights, "model.share_weights", share_weights, remedy)
        self.share_weights = share_weights
        self.cuda_graphs = cuda_graphs
        self._graphs: dict[str, GraphedGradients] = {}
        self._weights: dict[str, Tensor] | None = None  # of this update, where they are shared

    # What an algorithm adds ----------------------------------------------------------------------------------------

    @abstractmethod
    def target(self, batch: Transition) -> Tensor:
        """Regression target y of the critics on a minibatch, ``[M]``; called without a graph."""

    @abstractmethod
    def actor_objective(self, batch: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of :meth:`actor_parameters` on a minibatch, and detached scalars to log."""

    @abstractmethod
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Action for training ``[E, A]``; all randomness comes from ``generator`` (on the CPU)."""

    def setup(self, stage: str) -> None:
        """Refuse to train by CUDA graphs without a GPU; capture them afresh, as parameters may have moved."""
        super().setup(stage)
        device = self.trainer.strategy.root_device.type
        remedy = f"graphs are a GPU's, and this run is on {device}; leave it out, or see trainer.accelerator"
        possible = not self.cuda_graphs or stage != "fit" or device == "cuda"
        require(possible, "model.cuda_graphs", self.cuda_graphs, remedy)
        self._graphs.clear()

    # Optimization --------------------------------------------------------------------------------------------------

    def actor_parameters(self) -> list[dict[str, object]]:
        """Parameter groups of the optimizer that the actor step uses."""
        return [{"params": list(self.actor.parameters()), "lr": self.actor_lr}]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the critics, and one for :meth:`actor_parameters`."""
        return [
            torch.optim.Adam(self.critic.parameters(), lr=self.critic_lr, fused=True),
            torch.optim.Adam(self.actor_parameters(), fused=True),
        ]

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        return {"model.actor_lr": self.actor_lr, "model.critic_lr": self.critic_lr}

    def update(self, batch: Transition) -> dict[str, Tensor]:
        """One update on a minibatch, fields ``[M, ...]``; returns detached scalars."""
        self.updates += 1
        metrics = self.update_critic(batch) | self.update_actor(batch)
        self._weights = None
        if self.updates % self.target_update_every == 0:
            self.update_targets()
        return metrics

    def update_critic(self, batch: Transition) -> dict[str, Tensor]:
        """Step of the critics towards :meth:`target`; detached scalars to log."""
        metrics, self._weights = self._step("critic_objective", batch, self.optimizer(0))
        return metrics

    def update_actor(self, batch: Transition) -> dict[str, Tensor]:
        """Step of the policy; detached scalars to log, none where update number ``updates`` leaves the policy alone."""
        (metrics,) = self._step("actor_objective", batch, self.optimizer(1))
        return metrics

    def _step(self, name: str, batch: Transition, optimizer: LightningOptimizer) -> tuple[Any, ...]:
        """Step of ``optimizer`` on the objective ``name``, whose other results are returned."""
        parameters, objective = parameters_of(optimizer), getattr(self, name)
        if self.cuda_graphs:
            gradients, *results = self._graphs.setdefault(name, GraphedGradients(objective))(batch, parameters)
        else:
            gradients, *results = gradients_of(objective, batch, parameters)
        self.descend(parameters, gradients, optimizer)
        return tuple(results)

    def critic_objective(self, batch: Transition) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor] | None]:
        """Loss of the critics on a minibatch, detached scalars to log, and the weights that the actor's loss shares."""
        with torch.no_grad():
            target = self.target(batch)
        shared = None
        if self.share_weights:
            weights = self.critic.weights(batch.obs, batch.action)
            value = self.critic.value(weights, batch.obs, batch.action)
            shared = {name: weight.detach() for name, weight in weights.items()}
        else:
            value = self.critic(batch.obs, batch.action)
        loss = critic_loss(value, target)
        return loss, {"critic_loss": loss.detach(), "q_value": value.detach().mean()}, shared

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Critics ``[E, M]`` for the actor's loss at the batch's ``obs``: a gradient reaches ``action``, nothing else.

        With the critics' parameters as constants, whatever a critic makes of observations alone has no backward pass:
        of a hypernetwork only the dynamic network does.
        """
        if self._weights is not None:
            return self.critic.value(self._weights, obs, action)
        constants = {name: value.detach() for name, value in self.critic.named_parameters()}
        return functional_call(self.critic, constants, (obs, action))

    # Policy, evaluation and resume ---------------------------------------------------------------------------------

    def act(self, obs: Tensor) -> Tensor:
        """Deterministic action for evaluation, ``[E, A]``."""
        return self.actor(obs).mode_action

    def evaluated_action(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action ``[..., A]`` of the policy that the critics evaluate, and what it is paid besides rewards, ``[...]``.

        Args:
            obs: ``[..., O]``.
            noise: standard normal, ``[..., A]``; a deterministic policy, as here, reads none of it.
        """
        return self.act(obs), noise.new_zeros(noise.shape[:-1])

    def evaluation_metrics(self, batch: Episodes) -> dict[str, Tensor]:
        """Mean, spread and extremes of the return and the mean length of all processes' episodes; scalars."""
        returns, lengths = self.gather(batch.returns.float()), self.gather(batch.lengths.float())
        return {
            "return": returns.mean(),
            "return_std": returns.std(correction=0),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "episode_length": lengths.mean(),
        }

    def policy_state(self) -> State:
        """Recipe and weights of the actor."""
        return policy_state_of(self.recipe, self.actor, self.sizes)
