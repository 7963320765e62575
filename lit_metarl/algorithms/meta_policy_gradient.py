"""Gradient-based meta-RL: one module, injected strategies."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.func import vmap

from lit_metarl.algorithms.base import Algorithm, policy_state_of
from lit_metarl.algorithms.metrics import adaptation_metrics
from lit_metarl.algorithms.signals import signals_of
from lit_metarl.estimators import InnerSurrogate, LogLikelihood, reward_to_go
from lit_metarl.nn import (
    ActionDependentBaseline,
    BaselineFactory,
    CategoricalMLP,
    GaussianMLP,
    LinearFeature,
    PolicyFactory,
)
from lit_metarl.nn.conditioning import HYPERNETWORK, condition, told_call
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.optim.corrections import NoCorrection, SamplingCorrection
from lit_metarl.optim.inner_loop import InnerLoop, StepSizes
from lit_metarl.optim.iteration import Iteration
from lit_metarl.optim.outer_updates import VPG, OuterUpdate, likelihood
from lit_metarl.processes import keep_freed_memory, mean_over_processes
from lit_metarl.types import (
    Adaptation,
    ConfigError,
    MetaBatch,
    MetaEpisodes,
    Params,
    Signals,
    Sizes,
    State,
    Trajectories,
    require,
    require_positive,
)

log = logging.getLogger(__name__)

Value = TypeVar("Value")

POLICY, STEP_SIZE, CONTEXT, SIGNALS = "policy.", "step_size.", "context.", "signals."


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
        baseline: b(s_t); linear in features and fitted anew to each round of each task if None.
        inner: surrogate that an adaptation step ascends.
        correction: what the meta-gradient owes to the sampling of the inner data.
        outer: how the initial parameters move.
        inner_lr: α of every adapted parameter.
        learn_inner_lr: learn a step size for every single adapted parameter, from α on (Li et al. 2017, Meta-SGD).
        adapted_parameters: regular expression; parameters whose name it finds adapt, the others are shared.
        first_order: ignore how the inner gradient depends on the initial parameters.
        gamma: discount γ per agent step.
        gae_lambda: λ of generalised advantage estimation; values beyond the horizon are 0.
        normalise_advantages: per task and round, zero mean and unit standard deviation; rewards and baseline are
            divided by the same standard deviation, so that all terms of an objective keep one unit.
        discounted: weight advantages at step t by γ^t, as the gradient of J has it and practice has not.
        time_average: divide surrogates by the horizon, inner and outer.
        context_dim: C, entries of the context that the policy is told; linked from the DataModule by the command line.
        action_scale: factor between the policy's actions and the simulator's range; likewise.

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
        baseline: BaselineFactory | None = None,
        inner: InnerSurrogate | None = None,
        correction: SamplingCorrection | None = None,
        outer: OuterUpdate | None = None,
        inner_lr: float = 0.1,
        learn_inner_lr: bool = False,
        adapted_parameters: str = "",
        first_order: bool | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        normalise_advantages: bool = True,
        discounted: bool = False,
        time_average: bool = True,
        context_dim: int = 0,
        action_scale: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive("model", inner_lr=inner_lr)
        for key, value in {"gamma": gamma, "gae_lambda": gae_lambda}.items():
            require(0.0 <= value <= 1.0, f"model.{key}", value, "it lies in [0, 1]")
        self.sizes, self.action_scale = Sizes(obs_dim, action_dim, num_actions, context_dim), action_scale
        policy = policy or (GaussianMLP() if num_actions is None else CategoricalMLP())
        self.recipe = recipe_of(policy)
        self.policy = policy.build(self.sizes)
        remedy = "its hypernetwork makes weights of a context, and there is none: set data.oracle_context true"
        require(context_dim > 0 or not hasattr(self.policy, HYPERNETWORK), "model.policy", policy, remedy)
        self.baseline = (baseline or LinearFeature()).build(self.sizes)
        self.correction = correction or self.default_correction
        self.outer = copy.deepcopy(outer or self.default_outer)  # it may have state of its own
        self.inner_lr, self.gae_lambda, self.normalise_advantages = inner_lr, gae_lambda, normalise_advantages
        first_order = self.default_first_order if first_order is None else first_order
        self.inner = InnerLoop(self.policy, inner or self.default_inner, gamma, discounted, time_average, first_order)
        parameters = dict(self.policy.named_parameters())
        try:
            self.adapted_parameters = [name for name in parameters if re.search(adapted_parameters, name)]
        except re.error as error:
            raise ConfigError(f"model.adapted_parameters = {adapted_parameters!r} cannot be used: {error}.") from error
        remedy = f"it finds none of the parameters {', '.join(parameters)}"
        require(bool(self.adapted_parameters), "model.adapted_parameters", adapted_parameters, remedy)
        self._outer_steps = self._baseline_learns = False  # whether they have an optimizer
        step_sizes = {_key(name): torch.full_like(parameters[name], inner_lr) for name in self.adapted_parameters}
        self.learned_step_sizes = nn.ParameterDict(step_sizes if learn_inner_lr else {})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the outer update and of the baseline, in this order, where they have one."""
        outer = self.outer.optimizer(list(self.meta_parameters().values()))
        baseline = self.baseline.optimizer()
        self._outer_steps, self._baseline_learns = outer is not None, baseline is not None
        return [optimizer for optimizer in (outer, baseline) if optimizer is not None]

    # Parameters as values ------------------------------------------------------------------------------------------

    def meta_parameters(self) -> Params:
        """The parameters that are learned: the policy's initial ones, and step sizes if they are learned."""
        return above(POLICY, dict(self.policy.named_parameters())) | above(STEP_SIZE, dict(self.learned_step_sizes))

    def split(self, meta: Params) -> tuple[Params, StepSizes]:
        """Meta-parameters → initial parameters θ_0 and step sizes α by the policy's parameter names."""
        params = below(POLICY, meta)
        sizes = {
            name: meta.get(STEP_SIZE + _key(name), self.inner_lr) if name in self.adapted_parameters else 0.0
            for name in params
        }
        return params, sizes

    # MetaPolicy ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_adaptation(self, context: Tensor) -> Adaptation:
        """θ_0 for every task, ``[B, ...]`` views without a graph, and what the policy makes of ``context [B, C]``."""
        tasks, entries = context.shape
        remedy = f"the tasks are told with {entries} numbers; give the module the DataModule's context_dim"
        require(entries == self.sizes.context, "model.context_dim", self.sizes.context, remedy)
        params = {name: p.detach().expand(tasks, *p.shape) for name, p in self.policy.named_parameters()}
        return self._to_act_with(params, context.to(self.device))

    def begin_round(self, adaptation: Adaptation, trajectories: int, generator: torch.Generator) -> Adaptation:
        """The adaptation itself: all episodes of a task are acted with the same parameters."""
        return adaptation

    def adapt(self, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
        """One adaptation step of every task on its own round, and that round as estimators saw it.

        Raises:
            DivergenceError: the adapted parameters are not finite.
        """
        with self._precision():
            sizes = self.split({name: p.detach() for name, p in self.meta_parameters().items()})[1]
            signals = self.process(trajectories, adaptation)
            params = self.inner.adapt(below(POLICY, adaptation), sizes, trajectories, signals)
        self._check_finite(sum(value.sum() for value in params.values()), "an adaptation step")
        return self._to_act_with(params, trajectories.context) | above(SIGNALS, signals.tensors())

    @torch.no_grad()
    def _to_act_with(self, params: Params, context: Tensor) -> Adaptation:
        """Parameters, and the policy's other arguments: most of a hypernetwork's work is done here, once per task."""
        with self._precision():
            told = vmap(lambda p, c: condition(self.policy, p, c))(params, context)
        return above(POLICY, params) | above(CONTEXT, told)

    @torch.no_grad()
    def sample_actions(self, adaptation: Adaptation, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw of every task's own policy for ``obs [B, N, O]`` and its log-probability ``[B, N]``."""
        distribution = self._distributions(adaptation, obs)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action)

    @torch.no_grad()
    def mode_actions(self, adaptation: Adaptation, obs: Tensor) -> Tensor:
        """The most likely action of every task's own policy for ``obs [B, N, O]``."""
        return self._distributions(adaptation, obs).mode_action

    def _distributions(self, adaptation: Adaptation, obs: Tensor) -> Any:
        with self._precision():
            call = vmap(lambda params, told, x: told_call(self.policy, params, x, told))
            return call(below(POLICY, adaptation), below(CONTEXT, adaptation), obs)

    def _precision(self) -> AbstractContextManager[Any]:
        """That of the training step: a ratio is 1 only if data is collected in the precision it is trained in."""
        return nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()

    # Training ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def process(self, trajectories: Trajectories, adaptation: Adaptation | None = None) -> Signals:
        """A round as estimators see it, ``[B, N, T]``: :func:`~lit_metarl.algorithms.signals.signals_of`.

        Args:
            trajectories: fields ``[B, N, T, ...]``.
            adaptation: that it was collected with; read if the baseline depends on the actions, and then it is needed.
        """
        acted = self._distributions(adaptation, trajectories.obs) if adaptation and self._sees_actions else None
        settings = self.inner.gamma, self.gae_lambda, self.normalise_advantages
        return signals_of(trajectories, self.baseline, acted, *settings)

    @property
    def _sees_actions(self) -> bool:
        return isinstance(self.baseline, ActionDependentBaseline)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """One outer update on one meta-batch, then the steps of a baseline that learns."""
        if torch.is_autocast_enabled(self.device.type):
            torch.set_autocast_cache_enabled(False)  # cached copies would carry one graph into the next
        remedy = "this algorithm learns from trajectories; take TrajectoryDataModule, or train PEARL"
        require(isinstance(batch, MetaBatch), "data", type(batch).__name__, remedy)
        first, last = batch.rounds[0], batch.rounds[-1]
        remedy = "without adaptation steps no step size is learned; set it to false, or data.adaptation_steps above 0"
        require(len(batch.rounds) > 1 or not self.learned_step_sizes, "model.learn_inner_lr", True, remedy)
        iteration = self.iteration(batch.rounds, batch.adaptations)
        metrics = self.outer.update(iteration)
        self._check_finite(iteration.reduce(metrics["objective"]), "the meta-objective")  # all processes stop, or none
        entropy = -(last.log_prob * last.mask).sum() / last.mask.sum()
        metrics |= {"return_before": first.returns.mean(), "entropy": entropy}
        self.metrics.add(metrics | self.update_baseline(batch.rounds))
        self.finish_step(batch.env_steps, last.returns.flatten(), last.mask.sum(-1).flatten())

    def update_baseline(self, rounds: Sequence[Trajectories]) -> dict[str, Tensor]:
        """Take the steps of a baseline that learns, after its predictions were used; its loss before them, if any."""
        if not self._baseline_learns:
            return {}
        returns = [reward_to_go(data.reward, data.mask, self.inner.gamma) for data in rounds]
        before = []
        for _ in range(self.baseline.steps):
            losses = [self.baseline.loss(data, target) for data, target in zip(rounds, returns, strict=True)]
            before.append(torch.stack(losses).mean())
            self.minimise(before[-1], self.optimizer(-1))
        return {"baseline_loss": before[0].detach()}

    def _check_finite(self, value: Tensor | float, what: str) -> None:
        if not math.isfinite(float(value)):
            raise self.diverged(f"{what} is not finite")

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key."""
        outer = {f"model.outer.{key}": getattr(self.outer, key) for key in ("lr", "max_kl") if hasattr(self.outer, key)}
        return {"model.inner_lr": self.inner_lr} | outer

    def iteration(
        self, trajectories: Sequence[Trajectories], adaptations: Sequence[Adaptation] = (), optimizer: Any = None
    ) -> Iteration:
        """The iteration of K + 1 rounds as an outer update sees it.

        Args:
            trajectories: fields ``[B, N, T, ...]``.
            adaptations: what each round was collected with; signals that they hold are not computed again.
            optimizer: of the outer update, where it needs one; if None, the Trainer's.
        """
        if optimizer is None and self._outer_steps:
            optimizer = self.optimizer(0)
        if self._sees_actions and not adaptations:
            adaptations = [self.before_adaptation(trajectories[0].context)]
            for data in trajectories[:-1]:
                adaptations.append(self.adapt(adaptations[-1], data))
        signals = [Signals.of(below(SIGNALS, adaptation)) for adaptation in adaptations[1:]]
        last = adaptations[-1] if adaptations else None
        signals += [self.process(data, last) for data in trajectories[len(signals) :]]
        return Iteration(
            self.inner,
            self.meta_parameters(),
            self.split,
            trajectories,
            signals,
            self.correction.credits,
            None if optimizer is None else (lambda value: self.minimise(-value, optimizer)),
            mean_over_processes,
        )

    def meta_gradient(self, trajectories: Sequence[Trajectories], adaptations: Sequence[Adaptation] = ()) -> Params:
        """Estimate of the meta-gradient of this process's tasks, by meta-parameter; to be ascended.

        That of the score-function surrogate with the module's correction, which every outer surrogate has at the
        parameters that collected. Also within ``no_grad``, as in a hook of an evaluation.

        Args:
            trajectories: K + 1 rounds, fields ``[B, N, T, ...]``.
            adaptations: as of :meth:`iteration`.
        """
        with torch.enable_grad(), self._precision():
            return self.iteration(trajectories, adaptations).gradient(likelihood)

    def hessian_vector(self, trajectories: Trajectories, vector: Params) -> Params:
        """Estimate of ∇²J(θ_0) v from one round before adaptation, mean over tasks, by the policy's parameter names.

        That of the inner surrogate: the matrix that the meta-gradient of one adaptation step applies α times.

        Args:
            trajectories: fields ``[B, N, T, ...]``.
            vector: v, by the policy's parameter names.
        """
        with self._precision():
            adaptation = self.before_adaptation(trajectories.context)
            signals = self.process(trajectories, adaptation)
            products = self.inner.hessian_vector(below(POLICY, adaptation), vector, trajectories, signals)
        return {name: value.mean(0) for name, value in products.items()}

    def with_surrogate(self, surrogate: InnerSurrogate) -> MetaPolicyGradient:
        """The module with the exact gradient through another inner surrogate, at the very same parameters."""
        other = copy.copy(self)
        other.inner = replace(self.inner, surrogate=surrogate, first_order=False)
        other._trainer = self._trainer  # which a copy of a LightningModule drops, and with it the precision
        return other

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_metrics(self, batch: MetaEpisodes) -> dict[str, Tensor]:
        """Means over all processes' tasks, as :func:`~lit_metarl.algorithms.metrics.adaptation_metrics` names them."""
        return adaptation_metrics(batch, self.gather)

    # Policy and resume ---------------------------------------------------------------------------------------------

    def policy_state(self) -> State:
        """Recipe and weights of the policy before adaptation."""
        return policy_state_of(self.recipe, self.policy, self.sizes, self.action_scale)

    def counters(self) -> State:
        """The counters of every algorithm and the state of the outer update."""
        return super().counters() | {"outer": [self.outer.kind, self.outer.state()]}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`; an outer update of another kind than the checkpoint's starts afresh."""
        super().load_counters(state)
        kind, outer = state["outer"]
        if self.outer.continues(kind):
            self.outer.load_state(outer)
        else:
            log.warning("model.outer was %s: %s starts without its state", kind, self.outer.kind)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore as every algorithm does; where the outer update starts afresh, so does its optimizer."""
        super().on_load_checkpoint(checkpoint)
        if not self.outer.continues(checkpoint["algorithm"]["counters"]["outer"][0]):
            fresh, saved = [each.state_dict() for each in self.configure_optimizers()], checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = fresh[:-1] + saved[-1:] if self._baseline_learns else fresh

    def on_train_start(self) -> None:
        """Let the config's step sizes hold on resume, and the outer update's state be where the parameters are."""
        super().on_train_start()
        keep_freed_memory()
        self.outer.load_state(move_data_to_device(self.outer.state(), self.device))


def above(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """All ``values``, with ``prefix`` put before their names."""
    return {prefix + name: value for name, value in values.items()}


def below(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of ``values`` whose name begins with ``prefix``, by the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _key(name: str) -> str:
    """A parameter's name as a key of ``nn.ParameterDict``, which allows no dots."""
    return name.replace(".", "/")
