"""SAC whose critics are preconditioned before they learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lit_metarl.algorithms.sac import SAC
from lit_metarl.losses.preconditioning import LogCosine, MetaObjective, SarsaBatch, meta_gradient
from lit_metarl.processes import average_gradients, mean_over_processes
from lit_metarl.types import ConfigError, DivergenceError, Params, ReplayBlock, State, Transition, require


class PreconditionedSAC(SAC):
    """Meta-preconditioned SAC (Evmorfos & Petropulu 2024, Algorithm 1): two phases of one run.

    In the first, the DataModule's warm-up, a uniformly random policy acts, and each of ``data.warmup_updates`` moves
    the critics by w ← w − β ∇L_m(w'), where w' = w − η ∇L_bell(w) is a Bellman step. Then the target critics are copied
    and SAC begins. Both phases count environment steps; the paper's plots leave the first one out. The fair control is
    :class:`SAC` with as many more ``data.warmup_steps``, or ``data.keep_warmup`` false in this arm.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        objective: L_m; :class:`~lit_metarl.losses.preconditioning.LogCosine` if None.
        meta_lr: β of plain gradient descent. Published: 1e-8, for an objective of another scale. What counts is roughly
            the product of β and ``data.warmup_updates`` (published: 50,000): 6 learned best of what was tried; beyond
            20 the ratio gains little and the diagonal grows.
        bellman_lr: η.
        second_order: differentiate through the Bellman step too.
        sac: everything else, as of :class:`SAC`.

    Raises:
        ConfigError: a value outside its range, or a critic that the objective's kernel cannot treat.
        DivergenceError: the objective, its gradient or a critic would not be finite. ``diverged.ckpt`` gets the last
            critics whose meta-gradient was finite (since the process started), ``last.ckpt`` stays that of the last
            whole epoch.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        objective: MetaObjective | None = None,
        meta_lr: float = 0.02,
        bellman_lr: float = 1e-4,
        second_order: bool = False,
        **sac: Any,
    ) -> None:
        super().__init__(obs_dim, action_dim, **sac)
        for key, value in {"meta_lr": meta_lr, "bellman_lr": bellman_lr}.items():
            require(value >= 0 and math.isfinite(value), f"model.{key}", value, "it must be a finite number, 0 or more")
        self.objective = objective or LogCosine()
        self.meta_lr, self.bellman_lr, self.second_order = meta_lr, bellman_lr, second_order
        self.meta_updates = 0
        self._good: Params = {}  # the critics before the last meta-update: their meta-gradient was finite
        self._check_critic()

    def _check_critic(self) -> None:
        """Raise :class:`ConfigError` if the objective cannot treat the critic, tried on two made-up transitions.

        Otherwise it would fail after the warm-up. The global streams are not touched.
        """
        generator = torch.Generator().manual_seed(0)
        obs, next_obs = torch.randn(2, 2, self.sizes.obs, generator=generator)
        action, next_action = torch.randn(2, 2, self.sizes.action, generator=generator)
        batch = SarsaBatch(obs, action, torch.zeros(2), torch.ones(2), next_obs, next_action)
        params = {name: value.detach() for name, value in self.critic.named_parameters()}
        rest = self.gamma, self.bellman_lr, self.second_order
        try:
            meta_gradient(self.critic, params, batch, self.objective, generator, *rest)
        except (ValueError, RuntimeError) as error:
            critic = type(self.critic).__name__
            raise ConfigError(
                f"model.critic = {critic} cannot be preconditioned by {self.objective}: {error}"
            ) from error

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        return super().step_sizes | {"model.meta_lr": self.meta_lr, "model.bellman_lr": self.bellman_lr}

    def training_step(self, batch: ReplayBlock, batch_idx: int) -> None:
        """``U`` meta-updates of the critics in the warm-up, ``U`` updates of SAC afterwards."""
        if batch.warm_up:
            for minibatch in batch.minibatches():
                self.metrics.add(self.precondition(minibatch))
            self.finish_step(batch.env_steps, batch.episode_returns, batch.episode_lengths)
            return
        if self.updates == 0:
            self._end_preconditioning(batch.minibatches()[0])
        super().training_step(batch, batch_idx)

    def _end_preconditioning(self, batch: Transition) -> None:
        remedy = "the critics are preconditioned by the updates of the warm-up; give it some, or train SAC"
        require(self.meta_updates > 0, "data.warmup_updates", 0, remedy)
        self._meta_step(batch)  # not taken: it is to be finite, else the update before it destroyed the critics
        self._good = {}
        self.update_targets(polyak=1.0)
        self.log_means()  # the phases have different metrics

    def precondition(self, batch: Transition) -> dict[str, Tensor]:
        """w ← w − β ∇L_m(w'), for all critics at once; returns detached scalars."""
        moved, metrics = self._meta_step(batch)
        self._good = {name: value.detach().clone() for name, value in self.critic.named_parameters()}
        self.critic.load_state_dict(moved, strict=False)
        self.meta_updates += 1
        return metrics

    @torch.no_grad()
    def _meta_step(self, batch: Transition) -> tuple[Params, dict[str, Tensor]]:
        """w − β ∇L_m(w') and metrics; the next action is a fresh draw of the random policy.

        The averaged gradient and objective decide for all processes alike whether they leave the finite numbers.
        """
        next_action = self.sizes.uniform_actions(batch.next_obs)
        sarsa = SarsaBatch(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, next_action)
        parameters = dict(self.critic.named_parameters())
        params = {name: value.detach() for name, value in parameters.items()}
        generator = _default_generator(self.device)
        meta = meta_gradient(
            self.critic, params, sarsa, self.objective, generator, self.gamma, self.bellman_lr, self.second_order
        )
        for name, parameter in parameters.items():
            parameter.grad = meta.gradient[name]
        average_gradients(parameters.values())
        moved = {name: p - self.meta_lr * p.grad for name, p in parameters.items() if p.grad is not None}
        for parameter in parameters.values():
            parameter.grad = None
        objective = mean_over_processes(meta.objective.mean())
        if not math.isfinite(float(objective + sum(value.abs().sum() for value in moved.values()))):
            self.critic.load_state_dict(self._good, strict=False)
            raise DivergenceError(
                f"meta-update {self.meta_updates + 1} would leave critics that are not finite. Resume from last.ckpt, "
                "which is that of the last whole epoch, or from diverged.ckpt, which has the last critics whose "
                f"meta-gradient was finite, with a lower model.meta_lr (now {self.meta_lr}) or with LogCosine, which "
                "knows no scale.",
                state_is_finite=True,
            )
        return moved, {
            "meta_objective": meta.objective.mean(),
            "meta_gradient_norm": meta.norm,
            "bellman_loss": meta.bellman_loss.mean(),
        }

    def counters(self) -> State:
        """The counters of SAC and the number of meta-updates."""
        return super().counters() | {"meta_updates": self.meta_updates}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        super().load_counters(state)
        self.meta_updates = state["meta_updates"]


def _default_generator(device: torch.device) -> torch.Generator:
    """The device's own stream, which the checkpoint holds: random directions are drawn where the critics are."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
