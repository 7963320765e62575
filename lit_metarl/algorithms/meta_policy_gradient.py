"""Gradient-based meta-RL: one module, injected strategies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_metarl.algorithms.base import Algorithm, policy_state_of
from lit_metarl.estimators import InnerSurrogate, LogLikelihood, gae, normalise, reward_to_go
from lit_metarl.nn import Baseline, CategoricalMLP, GaussianMLP, LinearFeature, PolicyFactory
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.optim.corrections import MetaData, NoCorrection, SamplingCorrection, adapt
from lit_metarl.optim.inner_loop import InnerLoop, StepSizes, Unrolled
from lit_metarl.optim.outer_updates import VPG, OuterSurrogate, OuterUpdate
from lit_metarl.processes import mean_over_processes
from lit_metarl.types import (
    ConfigError,
    MetaBatch,
    MetaEpisodes,
    Params,
    Round,
    State,
    Trajectories,
    require,
)

POLICY, STEP_SIZE = "policy.", "step_size."


class MetaPolicyGradient(Algorithm):
    """Learns initial parameters that a few policy-gradient steps adapt to a task.

    What distinguishes the family is injected: the *inner surrogate* whose gradient adapts, the *sampling correction*
    of the meta-gradient, the *outer update*, and *which parameters adapt*. Where a strategy is None it is the class's
    own: the classes of :mod:`lit_metarl.algorithms.maml` are named choices. How many steps to adapt is the
    DataModule's ``adaptation_steps``.

    Args:
        obs_dim: O; linked from the DataModule by the command line.
        action_dim: A; likewise.
        num_actions: number of discrete actions, None if continuous; likewise.
        policy: network; :class:`~lit_metarl.nn.GaussianMLP` (:class:`~lit_metarl.nn.CategoricalMLP` for discrete
            actions) with its defaults if None.
        baseline: b(s_t), fitted anew to every task's every round; linear in features if None.
        inner: surrogate that an adaptation step ascends.
        correction: what the meta-gradient owes to the sampling of the inner data.
        outer: how the initial parameters move.
        inner_lr: α of every adapted parameter.
        learn_inner_lr: learn a step size for every single adapted parameter, from α on (Li et al. 2017, Meta-SGD).
        adapted: regular expression; parameters whose name it finds adapt, the others are shared by all tasks.
        first_order: ignore how the inner gradient depends on the initial parameters.
        gamma: discount γ per agent step.
        gae_lambda: λ of generalised advantage estimation; values beyond the horizon are 0.
        normalise_advantages: per task and round, zero mean and unit standard deviation; rewards and baseline are
            divided by the same standard deviation, so that all terms of an objective keep one unit.
        discounted: weight advantages at step t by γ^t, as the gradient of J has it and practice has not.
        time_average: divide surrogates by the horizon, inner and outer.

    Raises:
        ConfigError: a value outside its range, or a policy that is for another kind of action space or could not be
            loaded again.
    """

    default_inner: ClassVar[InnerSurrogate] = LogLikelihood()
    default_correction: ClassVar[SamplingCorrection] = NoCorrection()
    default_outer: ClassVar[OuterUpdate] = VPG()
    default_first_order: ClassVar[bool] = False

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_actions: int | None = None,
        policy: PolicyFactory | None = None,
        baseline: Baseline | None = None,
        inner: InnerSurrogate | None = None,
        correction: SamplingCorrection | None = None,
        outer: OuterUpdate | None = None,
        inner_lr: float = 0.1,
        learn_inner_lr: bool = False,
        adapted: str = "",
        first_order: bool | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        normalise_advantages: bool = True,
        discounted: bool = False,
        time_average: bool = True,
    ) -> None:
        super().__init__()
        require(inner_lr > 0 and math.isfinite(inner_lr), "model.inner_lr", inner_lr, "it must be a positive number")
        for key, value in {"gamma": gamma, "gae_lambda": gae_lambda}.items():
            require(0.0 <= value <= 1.0, f"model.{key}", value, "it lies in [0, 1]")
        self.sizes = (obs_dim, action_dim, num_actions)
        policy = policy or (GaussianMLP() if num_actions is None else CategoricalMLP())
        self.recipe = recipe_of(policy)
        self.policy = policy.build(*self.sizes)
        self.baseline = baseline or LinearFeature()
        self.correction = correction or self.default_correction
        self.outer = outer or self.default_outer
        self.gae_lambda, self.normalise_advantages = gae_lambda, normalise_advantages
        first_order = self.default_first_order if first_order is None else first_order
        surrogate = inner or self.default_inner
        self.inner = InnerLoop(self.policy, surrogate, gamma, discounted, time_average, first_order)
        names = [name for name, _ in self.policy.named_parameters()]
        try:
            self.adapted = [name for name in names if re.search(adapted, name)]
        except re.error as error:
            raise ConfigError(f"model.adapted = {adapted!r} cannot be used: {error}.") from error
        require(bool(self.adapted), "model.adapted", adapted, f"it finds none of the parameters {', '.join(names)}")
        self.inner_lr = inner_lr
        learned = self.adapted if learn_inner_lr else []
        parameters = dict(self.policy.named_parameters())
        self.learned_step_sizes = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.full_like(parameters[name], inner_lr)) for name in learned}
        )
        self.penalties: list[float] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The outer update's, if it has one."""
        optimizer = self.outer.optimizer(list(self.meta_parameters().values()))
        return [] if optimizer is None else [optimizer]

    # Parameters as values ------------------------------------------------------------------------------------------

    def meta_parameters(self) -> Params:
        """What is learned: the policy's initial parameters, and step sizes if they are learned."""
        policy = {POLICY + name: value for name, value in self.policy.named_parameters()}
        return policy | {STEP_SIZE + name: value for name, value in self.learned_step_sizes.items()}

    def split(self, meta: Params) -> tuple[Params, StepSizes]:
        """Meta-parameters → initial parameters θ_0 and step sizes α by the policy's parameter names."""
        params = {name.removeprefix(POLICY): v for name, v in meta.items() if name.startswith(POLICY)}
        sizes = {
            name: meta.get(STEP_SIZE + _key(name), self.inner_lr) if name in self.adapted else 0.0 for name in params
        }
        return params, sizes

    # MetaPolicy ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initial_params(self, num_tasks: int) -> Params:
        """θ_0 for every task, ``[B, ...]`` views without a graph."""
        return {n: p.detach().expand(num_tasks, *p.shape) for n, p in self.policy.named_parameters()}

    def adapt(self, params: Params, trajectories: Trajectories) -> Params:
        """One adaptation step of every task on its own round, ``[B, ...]`` in and out, without a graph.

        Raises:
            DivergenceError: the adapted parameters are not finite.
        """
        with self._precision():
            sizes = self.split({name: p.detach() for name, p in self.meta_parameters().items()})[1]
            adapted = adapt(self.inner, params, sizes, trajectories, self.process(trajectories))
        self._check_finite(sum(value.sum() for value in adapted.values()), "an adaptation step")
        return adapted

    @torch.no_grad()
    def sample_actions(self, params: Params, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw of every task's own policy for ``obs [B, N, O]`` and its log-probability ``[B, N]``."""
        distribution = self._distributions(params, obs)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action)

    @torch.no_grad()
    def mode_actions(self, params: Params, obs: Tensor) -> Tensor:
        """The most likely action of every task's own policy for ``obs [B, N, O]``."""
        return self._distributions(params, obs).mode_action

    def _distributions(self, params: Params, obs: Tensor) -> Any:
        with self._precision():
            return vmap(lambda p, x: functional_call(self.policy, p, (x,)))(params, obs)

    def _precision(self) -> AbstractContextManager[Any]:
        """That of the training step: a ratio is 1 only if data is collected in the precision it is trained in."""
        return nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()

    # Training ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def process(self, trajectories: Trajectories) -> Round:
        """A round as estimators see it: baseline fitted, advantages estimated and normalised; ``[B, N, T]``."""
        reward, mask, gamma = trajectories.reward, trajectories.mask, self.inner.gamma
        value = self.baseline.predict(trajectories.obs, reward_to_go(reward, mask, gamma), mask)
        advantage = gae(reward, value, mask, gamma, self.gae_lambda)
        if self.normalise_advantages:
            advantage, scale = normalise(advantage, mask)
            reward, value = reward / scale[..., None, None], value / scale[..., None, None]
        return Round(trajectories.log_prob, reward, value, advantage, mask)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """One outer update on one meta-batch."""
        if torch.is_autocast_enabled(self.device.type):
            torch.set_autocast_cache_enabled(False)  # cached copies would carry one graph into the next
        problem = self.problem(batch.rounds)
        metrics = self.outer.update(problem)
        self._check_finite(problem.reduce(metrics["objective"]), "the meta-objective")  # all processes stop, or none
        first, last = batch.rounds[0], batch.rounds[-1]
        metrics |= {"return_before": first.returns.mean(), "entropy": -_mean(last.log_prob, last.mask)}
        self.metrics.add(metrics)
        self.finish_step(batch.env_steps, last.returns.flatten(), last.mask.sum(-1).flatten())

    def _check_finite(self, value: Tensor | float, what: str) -> None:
        if not math.isfinite(float(value)):
            raise self.diverged(f"{what} is not finite")

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        outer = {f"model.outer.{key}": getattr(self.outer, key) for key in ("lr", "max_kl") if hasattr(self.outer, key)}
        return {"model.inner_lr": self.inner_lr} | outer

    def problem(self, trajectories: Sequence[Trajectories]) -> Problem:
        """What the outer update works on: ``trajectories`` are K + 1 rounds, fields ``[B, N, T, ...]``."""
        rounds = [self.process(trajectory) for trajectory in trajectories]
        params, sizes = self.split({name: p.detach() for name, p in self.meta_parameters().items()})
        with torch.no_grad():
            credits = self.correction.credits(MetaData(self.inner, params, sizes, trajectories, rounds))
        return Problem(self, tuple(trajectories), tuple(rounds), credits, self.penalties)

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_metrics(self, batch: MetaEpisodes) -> dict[str, Tensor]:
        """``return`` (after adaptation, on test tasks) and ``return_after_k_steps``; other splits below their name."""
        metrics: dict[str, Tensor] = {}
        for split, returns in batch.returns.items():
            below = "" if split == "test" else f"{split}/"
            per_task = self.gather(returns.float().mean(-1))  # [K + 1, B]
            metrics[f"{below}return"] = per_task[-1].mean()
            metrics[f"{below}return_std"] = per_task[-1].std(correction=0)
            metrics |= {f"{below}return_after_{k}_steps": value.mean() for k, value in enumerate(per_task)}
            if split in batch.random:
                metrics[f"{below}return_random"] = self.gather(batch.random[split].float().mean(-1)).mean()
        return metrics

    # Policy and resume ---------------------------------------------------------------------------------------------

    def policy_state(self) -> State:
        """Recipe and weights of the policy before adaptation."""
        obs_dim, action_dim, num_actions = self.sizes
        state = policy_state_of(self.recipe, self.policy, obs_dim, action_dim)
        scale = getattr(getattr(self.trainer, "datamodule", None), "action_scale", 1.0)
        return state | {"num_actions": num_actions, "action_scale": scale}

    def counters(self) -> State:
        """Adds the coefficients of an adaptive KL penalty."""
        return super().counters() | {"penalties": list(self.penalties)}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        super().load_counters(state)
        self.penalties = list(state["penalties"])


@dataclass
class Problem:
    """One iteration of a :class:`MetaPolicyGradient` as its outer update sees it (``optim.outer_updates.MetaProblem``).

    Attributes:
        module: whose parameters move.
        trajectories: K + 1 rounds, fields ``[B, N, T, ...]``.
        rounds: the same as estimators see them.
        credits: K credits ``[B, N]`` of the inner trajectories, or none.
        penalties: KL coefficients of the inner rounds, owned by the module.
    """

    module: MetaPolicyGradient
    trajectories: tuple[Trajectories, ...]
    rounds: tuple[Round, ...]
    credits: list[Tensor]
    penalties: list[float]

    @property
    def params(self) -> Params:
        """The module's meta-parameters."""
        return self.module.meta_parameters()

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Validity of every round, ``[B, N, T]``."""
        return tuple(round.mask for round in self.rounds)

    def unroll(self, params: Params | None = None) -> Unrolled:
        """Adaptation on the data, from ``params`` (the current ones if None), with the graph."""
        initial, sizes = self.module.split(self.params if params is None else params)
        return self.module.inner.unroll(initial, sizes, self.trajectories, self.rounds)

    def objective(self, unrolled: Unrolled, surrogate: OuterSurrogate) -> Tensor:
        """Mean of :meth:`task_objectives` over tasks, a scalar to maximise."""
        return self.task_objectives(unrolled, surrogate).mean()

    def task_objectives(self, unrolled: Unrolled, surrogate: OuterSurrogate) -> Tensor:
        """(1/N) Σ_n surrogate_n + Σ_k Σ_n credit_kn Σ_t log π(a_t|s_t; θ_k) of every task, ``[B]``."""
        inner, last = self.module.inner, self.rounds[-1]
        total = surrogate(unrolled.log_probs[-1], last, inner.gamma if inner.discounted else 1.0).mean(-1)
        for credit, log_prob, round in zip(self.credits, unrolled.log_probs, self.rounds, strict=False):
            total = total + (credit * (log_prob * round.mask).sum(-1)).sum(-1)
        return inner.scale(last) * total

    def ascend(self, value: Tensor) -> None:
        """One optimizer step towards larger ``value``, its gradient averaged over processes."""
        self.module.minimise(-value, cast(LightningOptimizer, self.module.optimizers()))

    @torch.no_grad()
    def assign(self, params: Params) -> None:
        """Set the module's parameters."""
        for name, parameter in self.params.items():
            parameter.copy_(params[name])

    def reduce(self, tensor: Tensor) -> Tensor:
        """Mean over processes."""
        return mean_over_processes(tensor)


def _key(name: str) -> str:
    """A parameter's name as a key of ``nn.ParameterDict``, which allows no dots."""
    return name.replace(".", "/")


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()
