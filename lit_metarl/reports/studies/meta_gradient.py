"""``lit-metarl study meta_gradient``: exact bias and variance of estimated meta-gradients.

Every inner and outer batch of a tiny MDP is a task of one problem of the algorithm itself, in float64, so there is no
sampling error. V_K(θ) = E J(θ_K) over the inner data; the truth is its gradient (Fallah et al. 2021, Eq. 10).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import one_hot

from lit_metarl.algorithms.maml import MAML
from lit_metarl.algorithms.meta_policy_gradient import POLICY, MetaPolicyGradient, below
from lit_metarl.diagnostics.enumeration import Quality, quality_of
from lit_metarl.envs.tabular import random_mdp
from lit_metarl.envs.tabular_exact import all_trajectories, state_values
from lit_metarl.estimators import DiCE, InnerSurrogate, LogLikelihood
from lit_metarl.nn import BaselineFactory, CategoricalMLP, LinearFeature, NoBaseline, TimeMean
from lit_metarl.nn.baselines import ClosedForm
from lit_metarl.optim import corrections
from lit_metarl.optim.iteration import Iteration
from lit_metarl.optim.outer_updates import likelihood
from lit_metarl.reports.section import Section, markdown_table, percent
from lit_metarl.types import Params, Signals, Trajectories

EXACT = 1e-10  # relative bias that is rounding
HORIZON, GAMMA, ALPHA, SIZE, SEED = 2, 0.9, 0.3, 2, 3  # SIZE: trajectories of an inner batch
DISCOUNTS = GAMMA ** torch.arange(HORIZON, dtype=torch.float64)  # [T]
MDP = random_mdp(2, 2, SEED)
THETA = torch.tensor([[0.3, -0.4], [-0.2, 0.5]], dtype=torch.float64)  # softmax table of the initial policy, [S, A]
ALL = all_trajectories(MDP, np.full((2, 2), 0.5), HORIZON)  # M = 8 of them
DYNAMICS = ALL.probability / 0.5**HORIZON  # probability of each if its actions were certain, [M]
OBS = one_hot(ALL.state, 2).double()  # [M, T, S]
LIKELIHOOD, NO_BASELINE = LogLikelihood(), NoBaseline()


@dataclass(frozen=True)
class ExactValue(ClosedForm):
    """V_t(s) of the initial policy in closed form, ``[B, N, T]``: a baseline that depends on no trajectory."""

    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """V_t(s_t) ``[B, N, T]``, read from ``obs``, which is the one-hot state."""
        return mask * (obs * state_values(MDP, THETA, GAMMA, HORIZON)[:-1]).sum(-1)


@dataclass(frozen=True)
class Estimator:
    """One estimator of the meta-gradient, a row of the table.

    Attributes:
        name: in the table.
        correction: of the meta-gradient; credits that compare tasks do so with infinitely many.
        inner: surrogate that adapts.
        baseline: of inner and outer batches.
        first_order: treat the inner gradient as a constant.
        normalise: advantages per task and round.
        steps: K, adaptation steps on as many inner batches.
        outer: trajectories of the outer batch.
        alpha: inner step size.
        first_round_only: score only the first inner batch.
    """

    name: str
    correction: corrections.SamplingCorrection
    inner: InnerSurrogate = LIKELIHOOD
    baseline: BaselineFactory = NO_BASELINE
    first_order: bool = False
    normalise: bool = False
    steps: int = 1
    outer: int = 1
    alpha: float = ALPHA
    first_round_only: bool = False

    def module(self) -> MetaPolicyGradient:
        """The algorithm, with the initial policy :data:`THETA`."""
        policy = CategoricalMLP(hidden=(), bias=False)
        choices: dict[str, Any] = {
            **{"baseline": self.baseline, "inner": self.inner, "correction": self.correction},
            **{"inner_lr": self.alpha, "first_order": self.first_order, "normalise_advantages": self.normalise},
            **{"gamma": GAMMA, "discounted": True, "time_average": False},  # as the gradient of J has it
        }
        module = MAML(2, 1, 2, policy, **choices).double()
        with torch.no_grad():
            next(module.policy.parameters()).copy_(THETA.T)
        return module


PLAIN, ACROSS, LEFT_OUT = corrections.Plain(), corrections.CrossTask(), corrections.LeaveOneOut()
NOTHING, NO_CRITIC = corrections.NoCorrection(), corrections.LeaveOneOut(doubly_robust=False)
EXACT_VALUE, OTHERS, ALL_MEAN = ExactValue(), TimeMean(held_out=True), TimeMean()
FITTED, FITTED_OTHERS = LinearFeature(), LinearFeature(held_out=True)
ESTIMATORS = (
    Estimator("MAML", NOTHING),
    Estimator("MAML, DiCE as inner surrogate", NOTHING, DiCE()),
    Estimator("MAML, first order", NOTHING, first_order=True),
    Estimator("E-MAML", corrections.EMAMLCorrection()),
    Estimator("SG-MRL, `Plain` (Eq. 13 as printed)", PLAIN),
    Estimator("SG-MRL, `CrossTask`", ACROSS),
    Estimator("SG-MRL, `LeaveOneOut`", LEFT_OUT),
    Estimator("SG-MRL, `LinearisedLeaveOneOut`", corrections.LinearisedLeaveOneOut()),
    Estimator("SG-MRL, `LeaveOneOut`, DiCE as inner surrogate (Eq. 8)", LEFT_OUT, DiCE()),
    Estimator("SG-MRL, `LeaveOneOut`, first order", LEFT_OUT, first_order=True),
    Estimator("two steps: SG-MRL, `Plain`", PLAIN, steps=2),
    Estimator("two steps: SG-MRL, `CrossTask`", ACROSS, steps=2),
    Estimator("two steps: SG-MRL, `LeaveOneOut`", LEFT_OUT, steps=2),
    Estimator("two steps: SG-MRL, `LinearisedLeaveOneOut`", corrections.LinearisedLeaveOneOut(), steps=2),
    Estimator("two steps: SG-MRL, `CrossTask`, first round only", ACROSS, steps=2, first_round_only=True),
    Estimator("exact value: MAML", NOTHING, baseline=EXACT_VALUE, outer=2),
    Estimator("exact value: SG-MRL, `Plain`", PLAIN, baseline=EXACT_VALUE, outer=2),
    Estimator("exact value: SG-MRL, `CrossTask`", ACROSS, baseline=EXACT_VALUE, outer=2),
    Estimator("exact value: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=EXACT_VALUE, outer=2),
    Estimator("exact value: SG-MRL, `LeaveOneOut`, not doubly robust", NO_CRITIC, baseline=EXACT_VALUE, outer=2),
    Estimator("mean of the others: SG-MRL, `CrossTask`", ACROSS, baseline=OTHERS, outer=2),
    Estimator("mean of the others: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=OTHERS, outer=2),
    Estimator("mean of all: SG-MRL, `CrossTask`", ACROSS, baseline=ALL_MEAN, outer=2),
    Estimator("mean of all: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=ALL_MEAN, outer=2),
    Estimator("linear fit to all: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=FITTED, outer=2),
    Estimator(
        "linear fit to all, normalised: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=FITTED, normalise=True, outer=2
    ),
    Estimator("linear fit to the others: SG-MRL, `LeaveOneOut`", LEFT_OUT, baseline=FITTED_OTHERS, outer=2),
    Estimator("normalised: SG-MRL, `LeaveOneOut`", LEFT_OUT, normalise=True, outer=2),
)


class Enumeration:
    """Every combination of K inner batches of ``size`` trajectories and an outer one, each as one of C tasks."""

    def __init__(self, module: MetaPolicyGradient, size: int = SIZE, steps: int = 1, outer: int = 1) -> None:
        combinations = torch.cartesian_prod(*[torch.arange(len(DYNAMICS))] * (size * steps + outer))
        self.module = module
        self.chosen = combinations.split([*[size] * steps, outer], dim=1)  # K times [C, size], then [C, outer]
        self.iteration = module.iteration(self._collect())
        self.probability = self.likelihood().detach()  # [C]
        self.returns = (ALL.reward[self.chosen[-1]] @ DISCOUNTS).mean(-1)  # J̃(θ_K), [C]

    def _collect(self) -> list[Trajectories]:
        """As a collector does: every round has the log-probabilities of the parameters that it was sampled with."""
        nothing = torch.zeros(len(self.chosen[0]), 0)
        adaptation = self.module.before_adaptation(nothing)
        rounds: list[Trajectories] = []
        for chosen in self.chosen:
            adaptation = self.module.adapt(adaptation, rounds[-1]) if rounds else adaptation
            reward = ALL.reward[chosen]
            ends = torch.zeros(*reward.shape[:2], 2), torch.zeros(*reward.shape[:2], dtype=torch.bool)
            nought = torch.zeros_like(reward)
            data = Trajectories(OBS[chosen], ALL.action[chosen], reward, nought, ALL.mask[chosen], *ends, nothing)
            log_prob = vmap(self.module.inner.log_prob)(below(POLICY, adaptation), data).detach()
            rounds.append(data._replace(log_prob=log_prob))
        return rounds

    def likelihood(self) -> Tensor:
        """Probability of every combination as a function of the initial parameters, ``[C]``; they sum to 1."""
        log_probs = self.iteration.unroll().log_probs
        rounds = zip(log_probs, self.chosen, strict=True)
        return torch.cat([log_prob.sum(-1).exp() * DYNAMICS[chosen] for log_prob, chosen in rounds], -1).prod(-1)

    def value_gradient(self) -> Tensor:
        """∇V_K as the derivative of Σ_c p_c(θ) J̃_c, ``[P]``; true if the inner surrogate is the log-likelihood."""
        value = self.likelihood() @ self.returns
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(self.iteration.parameters.values()))])

    def everyone(self, value: Tensor) -> list[Tensor]:
        """Credits that give every inner trajectory its task's ``value [C]``, K times ``[C, size]``."""
        return [value[:, None].expand(chosen.shape) for chosen in self.chosen[:-1]]

    def credits(self) -> list[Tensor]:
        """The correction's credits, K times ``[C, size]``; comparisons with other tasks are with infinitely many."""
        correction, own = self.module.correction, self.iteration.credits
        centred = self.returns - self.probability @ self.returns
        if isinstance(correction, corrections.EMAMLCorrection):
            return self.everyone(centred / (self.probability @ centred.square()).sqrt() / self.chosen[0].shape[-1])
        if isinstance(correction, corrections.CrossTask):
            return self.everyone(centred)
        if isinstance(correction, corrections.LeaveOneOut):
            return [*self.everyone(centred)[:-1], own[-1]]
        return own

    def gradients(self, credits: list[Tensor] | None = None) -> Tensor:
        """The meta-gradient of every task by itself, ``[C, P]``; with :meth:`credits` if None."""

        def one(meta: Params, data: Sequence[Trajectories], rounds: Sequence[Signals], credits: list[Tensor]) -> Tensor:
            alone = tuple(Trajectories(*(x[None] for x in each)) for each in data)
            seen = tuple(each.map(lambda x: x[None]) for each in rounds)
            given = [credit[None] for credit in credits]
            task = Iteration(self.module.inner, meta, self.module.split, alone, seen, lambda _: given)
            return task.task_objectives(task.unroll(meta), likelihood)[0]

        meta = {name: value.detach() for name, value in self.iteration.parameters.items()}
        credits = self.credits() if credits is None else credits
        each = vmap(grad(one), (None, 0, 0, 0))(meta, self.iteration.trajectories, self.iteration.signals, credits)
        return torch.cat([gradient.flatten(1) for gradient in each.values()], -1)

    def quality(self, gradients: Tensor, truth: Tensor) -> Quality:
        """Errors of ``gradients [C, P]`` as estimates of ``truth [P]``."""
        return quality_of(gradients, self.probability, truth)


def measure(estimator: Estimator) -> Quality:
    """Bias and variance of an estimator, against ∇V_K of the adaptation that it stands for."""
    world = Enumeration(estimator.module(), SIZE, estimator.steps, estimator.outer)
    credits = world.credits()
    if estimator.first_round_only:
        credits = [credits[0], *(torch.zeros_like(credit) for credit in credits[1:])]
    # With DiCE or first order the adapted parameters are the same numbers, but not the same function of θ.
    true = replace(estimator, correction=NOTHING, inner=LIKELIHOOD, first_order=False)
    truth = Enumeration(true.module(), SIZE, estimator.steps).value_gradient()
    return world.quality(world.gradients(credits), truth)


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study meta_gradient``, which has none of its own."""
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The quality of every estimator of :data:`ESTIMATORS`."""
    qualities = {estimator.name: measure(estimator) for estimator in ESTIMATORS}
    lines = [
        [name, percent(q.bias, EXACT), percent(q.direction, EXACT), f"{q.variance:.3g}"]
        for name, q in qualities.items()
    ]
    note = f"""\
Exact, by listing every inner and outer batch of a random MDP (2 states, 2 actions, {HORIZON} steps, γ = {GAMMA:g}, \
seed {SEED}; α = {ALPHA:g}) as tasks of the algorithm itself: {SIZE} inner trajectories a step, one step unless the \
row says two; 1 outer trajectory and no baseline, but 2 where the row begins with a baseline. Truth: the gradient of \
the mean return after the very adaptation that the row runs. Bias: norm of the mean error over the norm of the truth, \
0 below {EXACT:g}; of direction: what is left of it at the best scale. Variance: of one task's meta-gradient, summed \
over entries. E-MAML, `CrossTask` and the first of two rounds of `LeaveOneOut` compare with infinitely many tasks. \
First round only: as the released code scores. Exact value: of the initial policy, so that no trajectory enters. The \
mean of all N trajectories contains their own returns, which shrinks a gradient to 1 − 1/N; normalising, here without \
a baseline, divides it by each task's own spread."""
    return Section(markdown_table(["estimator", "bias", "of direction", "variance"], lines, numbers=True), [note])
