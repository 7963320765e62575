"""Outer updates, which move the initial parameters along the meta-objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_metarl.estimators import clipped_ratio, likelihood_ratio, log_importance_ratio, log_likelihood
from lit_metarl.optim.fisher import AdaptedPolicies
from lit_metarl.optim.inner_loop import Unrolled, detached
from lit_metarl.optim.iteration import Iteration
from lit_metarl.optim.trust_region import trust_region_step
from lit_metarl.types import ConfigError, Signals, State, require, require_positive


class OuterUpdate(ABC):
    """A rule that moves the initial parameters: in a config a frozen dataclass, of which every module has a copy."""

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer | None:
        """Optimizer of the parameters; None if the update needs none."""
        return None

    @property
    def kind(self) -> str:
        """The name of its class, and of its optimizer's if there is a choice: what decides whether states fit."""
        return type(self).__qualname__

    def continues(self, kind: str) -> bool:
        """Whether the states of an update of this kind, and of its optimizer, are of use; if not, it starts afresh."""
        return kind in (self.kind, type(self).__qualname__)  # which older checkpoints name alone

    @abstractmethod
    def update(self, iteration: Iteration) -> dict[str, Tensor]:
        """Move the parameters on this iteration's data; returns detached scalars to log, ``objective`` among them."""

    def state(self) -> State:
        """Tensors and Python scalars that the next update depends on, besides the optimizer's; empty if none.

        The same on all processes: the checkpoint holds that of the first.
        """
        return {}

    def load_state(self, state: State) -> None:  # noqa: B027 - an update without state has nothing to do
        """Inverse of :meth:`state`."""


def _log_ratio(log_prob: Tensor, signals: Signals) -> Tensor:
    return log_importance_ratio(log_prob, signals.behaviour_log_prob, signals.mask)


def likelihood(log_prob: Tensor, signals: Signals, gamma: float) -> Tensor:
    """Σ_t γ^t log π_t A_t, ``[B, N]``: its gradient is the policy gradient."""
    return log_likelihood(log_prob, signals.advantage, signals.mask, gamma)


def ratio(log_prob: Tensor, signals: Signals, gamma: float) -> Tensor:
    """Σ_t γ^t ρ_t A_t, ``[B, N]``: the same gradient at the old parameters, a meaningful value beside them."""
    return likelihood_ratio(_log_ratio(log_prob, signals), signals.advantage, signals.mask, gamma)


def mean_kl(old: Any, new: Any, mask: Tensor) -> Tensor:
    """Mean over valid steps of all tasks of KL(old ‖ new), a scalar; distributions with fields ``[B, N, T, ...]``."""
    return (old.kl(new) * mask).sum() / mask.sum()


@dataclass(frozen=True)
class VPG(OuterUpdate):
    """Vanilla policy gradient with any torch optimizer (Finn et al. 2017, Alg. 3; Fallah et al. 2021, Alg. 1).

    Attributes:
        lr: outer step size β.
        optimizer_class: name in ``torch.optim``, of one that needs no closure.
        optimizer_args: its other arguments.
    """

    lr: float = 1e-3
    optimizer_class: str = "Adam"
    optimizer_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_positive("outer", lr=self.lr)
        known = isinstance(getattr(torch.optim, self.optimizer_class, None), type)
        require(known, "outer.optimizer_class", self.optimizer_class, "it must be the name of a class in torch.optim")
        self._try_out()

    def _try_out(self) -> None:
        """Raise ``ConfigError`` for a class that takes no plain steps, and for arguments that it does not know."""
        name = self.optimizer_class
        weights: list[Tensor] = [nn.Parameter(torch.zeros(size)) for size in ((2,), (2, 2))]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        try:  # without the arguments, which may be for another device
            getattr(torch.optim, name)(weights, lr=self.lr).step()
        except Exception as error:  # each class has its own
            remedy = "take one that steps along any dense gradient and needs no closure, such as Adam or SGD"
            raise ConfigError(f"outer.optimizer_class = {name!r} cannot be used: {error}; {remedy}.") from error
        try:
            self.optimizer(weights)
        except Exception as error:
            given, remedy = self.optimizer_args, f"they must be arguments of torch.optim.{name}, without lr"
            raise ConfigError(f"outer.optimizer_args = {given} cannot be used: {error}; {remedy}.") from error

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The torch optimizer, with ``lr``."""
        return getattr(torch.optim, self.optimizer_class)(parameters, lr=self.lr, **(self.optimizer_args or {}))

    @property
    def kind(self) -> str:
        """The name of the class, and of the optimizer."""
        return f"{super().kind} with {self.optimizer_class}"

    def update(self, iteration: Iteration) -> dict[str, Tensor]:
        """Take one step of the optimizer along the likelihood surrogate's gradient."""
        value = iteration.objective(iteration.unroll(), likelihood)
        iteration.ascend(value)
        return {"objective": value.detach()}


@dataclass(frozen=True)
class PPO(OuterUpdate):
    """Clipped ratios over several epochs with a KL penalty on the inner rounds (Rothfuss et al. 2019, Eq. 11–13).

    After the first epoch the inner data is off-policy too. Surrogates of ratios allow for that (likelihood ratio,
    TayPO, DiCE and its kin); the log-likelihood and the scores of a sampling correction do not: give these one epoch.

    Attributes:
        lr: Adam step size.
        clip: ε of the clipped ratio of the last round.
        epochs: gradient steps on the same data.
        kl_penalty: coefficient η of KL(old ‖ new), a mean over the steps of an inner round and over the K rounds; 0
            for none.
        adaptive_kl: start there, and halve (double) a round's coefficient when its KL ends below (above)
            ``kl_target`` by more than a factor of 1.5.
        kl_target: in nats.
        penalties: coefficients of the K inner rounds as they stand, state of the run.
    """

    lr: float = 1e-3
    clip: float = 0.3
    epochs: int = 5
    kl_penalty: float = 5e-4
    adaptive_kl: bool = False
    kl_target: float = 1e-2
    penalties: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_positive("outer", lr=self.lr, kl_target=self.kl_target)
        require(self.clip > 0, "outer.clip", self.clip, "it must be positive")
        require(self.epochs >= 1, "outer.epochs", self.epochs, "it must be at least 1")
        require(self.kl_penalty >= 0, "outer.kl_penalty", self.kl_penalty, "it must not be negative")

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam, whose state is kept over iterations."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def state(self) -> State:
        """Coefficients of an adaptive KL penalty."""
        return {"penalties": list(self.penalties)}

    def load_state(self, state: State) -> None:
        """Inverse of :meth:`state`."""
        self.penalties[:] = state["penalties"]

    def update(self, iteration: Iteration) -> dict[str, Tensor]:
        """Take ``epochs`` steps on the same data."""
        inner_rounds = len(iteration.masks) - 1
        if not self.adaptive_kl or len(self.penalties) != inner_rounds:
            self.penalties[:] = [self.kl_penalty] * inner_rounds
        old: list[Any] = []
        for _ in range(self.epochs):
            unrolled = iteration.unroll()
            old = old or [detached(distribution) for distribution in unrolled.distributions]
            value = iteration.objective(unrolled, self._clipped)
            kls = _inner_kls(iteration, old, unrolled)
            penalty = sum(c * kl for c, kl in zip(self.penalties, kls, strict=True)) / max(inner_rounds, 1)
            iteration.ascend(value - penalty)
        metrics = {"objective": value.detach()}
        if inner_rounds:
            metrics["inner_kl"] = torch.stack(kls).mean().detach()
        if self.adaptive_kl and inner_rounds:
            self._adapt_penalties(iteration, old)
            metrics["kl_penalty"] = value.new_tensor(self.penalties).mean()
        return metrics

    def _clipped(self, log_prob: Tensor, signals: Signals, gamma: float) -> Tensor:
        return clipped_ratio(_log_ratio(log_prob, signals), signals.advantage, signals.mask, gamma, self.clip)

    def _adapt_penalties(self, iteration: Iteration, old: list[Any]) -> None:
        with torch.no_grad():
            kls = iteration.reduce(torch.stack(_inner_kls(iteration, old, iteration.unroll()))).tolist()
        for k, kl in enumerate(kls):
            if kl < self.kl_target / 1.5:
                self.penalties[k] /= 2.0
            elif kl > self.kl_target * 1.5:
                self.penalties[k] *= 2.0


def _inner_kls(iteration: Iteration, old: list[Any], new: Unrolled) -> list[Tensor]:
    """Mean KL(old ‖ new) of each of the K inner rounds, scalars; ``old`` are the distributions of all K + 1."""
    rounds = list(zip(old, new.distributions, iteration.masks, strict=True))
    return [mean_kl(*signals) for signals in rounds[:-1]]


@dataclass(frozen=True)
class TRPO(OuterUpdate):
    """Natural gradient with a KL constraint on the adapted policies (Finn et al. 2017, section 5.3).

    Products with the Fisher matrix are exact, through the adaptation steps (:mod:`lit_metarl.optim.fisher`).

    Attributes:
        max_kl: bound on the mean KL between the adapted policies that collected the last round and the new ones.
        cg_iterations: conjugate-gradient iterations.
        damping: added to the diagonal of the Fisher matrix; the released code of ProMP has 0, rllab 1e-5.
        backtrack_ratio: factor of the line search.
        backtrack_steps: its number of tries; a step that does not improve within the constraint is not taken.
    """

    max_kl: float = 0.01
    cg_iterations: int = 10
    damping: float = 1e-5
    backtrack_ratio: float = 0.8
    backtrack_steps: int = 15

    def __post_init__(self) -> None:
        require_positive("outer", max_kl=self.max_kl)
        require(self.cg_iterations >= 1, "outer.cg_iterations", self.cg_iterations, "it must be at least 1")
        require(self.damping >= 0, "outer.damping", self.damping, "it must not be negative")
        require(0 < self.backtrack_ratio < 1, "outer.backtrack_ratio", self.backtrack_ratio, "it must be in (0, 1)")
        require(self.backtrack_steps >= 1, "outer.backtrack_steps", self.backtrack_steps, "it must be at least 1")

    def update(self, iteration: Iteration) -> dict[str, Tensor]:
        """Take one step within the trust region."""
        policies = AdaptedPolicies(iteration, ratio)
        params, step = trust_region_step(
            policies.params,
            policies.gradient,
            policies.fisher_product,
            policies.evaluate,
            policies.value,
            self.max_kl,
            self.cg_iterations,
            self.damping,
            self.backtrack_ratio,
            self.backtrack_steps,
            iteration.reduce,
        )
        iteration.assign(params)
        scalars = {"outer_kl": step.kl, "step_fraction": step.fraction}
        value = policies.value
        return {"objective": value} | {name: value.new_tensor(number) for name, number in scalars.items()}
