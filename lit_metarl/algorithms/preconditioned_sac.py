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

    In the first a uniformly random policy acts, and every update moves the critics by w ← w − β ∇L_m(w'), where
    w' = w − η ∇L_bell(w) is a Bellman step. Then the target critics are copied and SAC begins. Both phases count
    environment steps; the paper's plots leave the first one out.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        preconditioning_updates: meta-updates of the first phase, one per environment step with the usual data settings;
            0 for SAC itself. Published: 50,000.
        objective: L_m; :class:`~lit_metarl.losses.preconditioning.LogCosine` if None.
        meta_lr: β of plain gradient descent. Published: 1e-8, for an objective of another scale. What counts is about
            the product of β and the number of updates: 6 learned best of what was tried; beyond 20 the ratio gains
            little and the diagonal grows.
        bellman_lr: η.
        second_order: differentiate through the Bellman step too.
        keep_random_transitions: whether SAC goes on with the first phase's transitions in the replay, as with a longer
            warm-up: its fair control is :class:`SAC` with as many more ``data.warmup_steps``. Otherwise they are
            forgotten and SAC begins with a warm-up of its own, as without the first phase.
        sac: everything else, as of :class:`SAC`.

    Raises:
        ConfigError: a value outside its range, or a critic that the objective's kernel cannot treat.
        DivergenceError: the objective, its gradient or a critic would not be finite. ``diverged.ckpt`` gets the last
            critics whose meta-gradient was finite, ``last.ckpt`` stays that of the last whole epoch.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        preconditioning_updates: int = 300,
        objective: MetaObjective | None = None,
        meta_lr: float = 0.02,
        bellman_lr: float = 1e-4,
        second_order: bool = False,
        keep_random_transitions: bool = True,
        **sac: Any,
    ) -> None:
        super().__init__(obs_dim, action_dim, **sac)
        require(
            preconditioning_updates >= 0,
            "model.preconditioning_updates",
            preconditioning_updates,
            "it must not be negative",
        )
        for key, value in {"meta_lr": meta_lr, "bellman_lr": bellman_lr}.items():
            require(value >= 0 and math.isfinite(value), f"model.{key}", value, "it must be a finite number, 0 or more")
        self.preconditioning_updates = preconditioning_updates
        self.objective = objective or LogCosine()
        self.meta_lr, self.bellman_lr, self.second_order = meta_lr, bellman_lr, second_order
        self.keep_random_transitions = keep_random_transitions
        self.meta_updates = 0
        self.preconditioned = preconditioning_updates == 0  # final: no setting of a resumed run brings the phase back
        self._meta_block = self.preconditioning
        self._good: Params = {}  # the critics before the last meta-update: their meta-gradient was finite
        if not self.preconditioned:
            self._check_critic()

    def _check_critic(self) -> None:
        """Raise :class:`ConfigError` if the objective cannot treat the critic, tried on two made-up transitions.

        Otherwise it would fail after the warm-up. The global streams are not touched.
        """
        generator = torch.Generator().manual_seed(0)
        obs, next_obs = torch.randn(2, 2, self.obs_dim, generator=generator)
        action, next_action = torch.randn(2, 2, self.action_dim, generator=generator)
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
    def preconditioning(self) -> bool:
        """Whether the first phase is still going on."""
        return not self.preconditioned and self.meta_updates < self.preconditioning_updates

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        return super().step_sizes | {"model.meta_lr": self.meta_lr, "model.bellman_lr": self.bellman_lr}

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform in [-1, 1] in the first phase, a sample of the policy in the second; ``[E, A]``."""
        if self.preconditioning:
            return (2.0 * torch.rand(len(obs), self.action_dim, generator=generator) - 1.0).to(obs.device)
        return super().explore(obs, generator)

    def training_step(self, batch: ReplayBlock, batch_idx: int) -> None:
        """``U`` updates of the phase in which the block begins."""
        self._meta_block = self.preconditioning
        last = Transition(*(field[-1] for field in batch.transitions))
        if not self._meta_block and not self.preconditioned:  # resumed with fewer updates than were made
            self._end_preconditioning(last)
        super().training_step(batch, batch_idx)
        if self._meta_block and not self.preconditioning:
            self._end_preconditioning(last)

    def _end_preconditioning(self, batch: Transition) -> None:
        self._meta_step(batch)  # not taken: it is to be finite, else the update before it destroyed the critics
        self.preconditioned = True
        self._good = {}
        self.copy_targets()
        self.generation = 0 if self.keep_random_transitions else 1
        self.log_means()  # the phases have different metrics

    def update(self, batch: Transition) -> dict[str, Tensor]:
        """One meta-update of the critics, or one update of SAC, on fields ``[M, ...]``; returns detached scalars."""
        return self.precondition(batch) if self._meta_block else super().update(batch)

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
        next_action = 2.0 * torch.rand_like(batch.action) - 1.0
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
        """Adds the number of meta-updates, and whether the first phase is over."""
        return super().counters() | {"meta_updates": self.meta_updates, "preconditioned": self.preconditioned}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        super().load_counters(state)
        self.meta_updates, self.preconditioned = state["meta_updates"], state["preconditioned"]


def _default_generator(device: torch.device) -> torch.Generator:
    """The device's own stream, which the checkpoint holds: random directions are drawn where the critics are."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
