"""SG-MRL's meta-gradient, proved: every inner and outer batch of a tiny MDP enumerated in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from lit_metarl.algorithms import MAML, MetaPolicyGradient
from lit_metarl.envs.tabular import random_mdp
from lit_metarl.envs.tabular_exact import all_trajectories, exact_value
from lit_metarl.estimators import DiCE, LogLikelihood
from lit_metarl.nn import CategoricalMLP, NoBaseline, TimeMean
from lit_metarl.optim.corrections import EMAMLCorrection, NoCorrection, SGMRLCorrection, minus_other_tasks
from lit_metarl.optim.outer_updates import likelihood
from lit_metarl.types import ConfigError, Trajectories

HORIZON, GAMMA, ALPHA = 2, 0.9, 0.3
DISCOUNTS = torch.tensor([1.0, GAMMA], dtype=torch.float64)
MDP = random_mdp(2, 2, seed=3)
THETA = torch.tensor([[0.3, -0.4], [-0.2, 0.5]], dtype=torch.float64)  # [S, A]
ALL = all_trajectories(MDP, np.full((2, 2), 0.5), HORIZON)  # M = 8 trajectories
DYNAMICS = ALL.probability / 0.5**HORIZON  # probability of each if its actions were certain, [M]
OBS = torch.nn.functional.one_hot(ALL.state, 2).double()  # [M, T, S]


def log_policy(theta):
    """Σ_t log π of every trajectory, ``[M]``."""
    return torch.log_softmax(theta, -1)[ALL.state, ALL.action].sum(-1)


def probability(theta):
    return DYNAMICS * log_policy(theta).exp()


def make_module(correction, inner=None, baseline=None, alpha=ALPHA) -> MetaPolicyGradient:
    module = MAML(
        2,
        1,
        2,
        CategoricalMLP(hidden=(), bias=False),
        baseline or NoBaseline(),
        inner or LogLikelihood(),
        correction,
        inner_lr=alpha,
        gamma=GAMMA,
        normalise_advantages=False,
        discounted=True,
        time_average=False,
    ).double()
    with torch.no_grad():
        next(module.policy.parameters()).copy_(THETA.T)
    return module


class Enumeration:
    """Every combination of ``steps`` inner batches of ``size`` trajectories and ``outer`` others, each as a task."""

    def __init__(self, module, size: int = 2, steps: int = 1, outer: int = 1) -> None:
        self.module = module
        count = len(ALL.probability)
        combinations = torch.tensor(list(itertools.product(range(count), repeat=size * steps + outer)))
        inner = combinations[:, :-outer].unflatten(1, (steps, size))  # [C, K, N]
        self.chosen = [inner[:, k] for k in range(steps)] + [combinations[:, -outer:]]
        self.trajectories = self.sample_log_probs(
            [
                Trajectories(OBS[i], ALL.action[i], ALL.reward[i], torch.zeros_like(ALL.reward[i]), ALL.mask[i])
                for i in self.chosen
            ]
        )
        self.problem = module.problem(self.trajectories)
        log_probs = [log_prob.detach() for log_prob in self.problem.unroll().log_probs]
        self.probability = torch.stack(
            [
                (log_prob.sum(-1).exp() * DYNAMICS[i]).prod(-1)
                for log_prob, i in zip(log_probs, self.chosen, strict=True)
            ]
        ).prod(0)
        assert math.isclose(float(self.probability.sum()), 1.0, abs_tol=1e-12)

    def sample_log_probs(self, trajectories):
        """As the collector does: round k carries the log-probabilities of the parameters it was sampled with."""
        params = self.module.initial_params(len(self.chosen[0]))
        result = []
        for k, trajectory in enumerate(trajectories):
            log_prob = vmap(self.module.inner.log_prob)(params, trajectory)
            result.append(trajectory._replace(log_prob=log_prob.detach()))
            if k < len(trajectories) - 1:
                params = self.module.adapt(params, result[-1])
        return result

    def objectives(self, credits=None):
        self.problem.credits = self.problem.credits if credits is None else credits
        return self.problem.task_objectives(self.problem.unroll(), likelihood)

    def expected(self, credits=None):
        """Mean of the meta-gradient over all combinations, ``[P]``."""
        parameters = list(self.problem.params.values())
        return torch.autograd.grad((self.probability * self.objectives(credits)).sum(), parameters)[0].flatten()

    def gradients(self, credits=None):
        """The meta-gradient of every combination, ``[C, P]``."""
        objectives, parameters = self.objectives(credits), list(self.problem.params.values())
        basis = torch.eye(len(objectives)).double()
        return torch.autograd.grad(objectives, parameters, basis, is_grads_batched=True)[0].flatten(1)

    def variance(self, gradients) -> float:
        mean = self.probability @ gradients
        return float((self.probability @ (gradients - mean).square()).sum())

    def constant(self, value):
        """``value [C]`` as the credit of every inner trajectory."""
        return [value[:, None].expand(chosen.shape) for chosen in self.chosen[:-1]]

    def across_pairs(self):
        """First and second moments over another, independent task of this task's ``cross_task`` credit, ``[C]``."""
        value = (self.problem.rounds[-1].reward * DISCOUNTS).sum(-1).mean(-1)
        credit = minus_other_tasks(torch.stack(torch.broadcast_tensors(value[:, None], value[None, :])))[0]
        return credit @ self.probability, credit.square() @ self.probability

    def cross_task_variance(self) -> float:
        first, second = self.across_pairs()
        main = self.gradients(self.constant(torch.zeros_like(first)))
        score = self.gradients(self.constant(torch.ones_like(first))) - main
        square = main.square() + 2 * first[:, None] * main * score + second[:, None] * score.square()
        return float((self.probability @ square - (self.probability @ (main + first[:, None] * score)).square()).sum())


def exact_meta_gradient(size: int, steps: int, baseline: bool = False, alpha: float = ALPHA):
    """∇V_K by differentiating Σ_D p(D; θ) J(θ_K(D)), adaptation and probabilities written anew."""
    to_go = torch.stack([(ALL.reward * DISCOUNTS)[:, t:].sum(-1) for t in range(HORIZON)], -1)
    batches = torch.tensor(list(itertools.product(range(len(DYNAMICS)), repeat=size)))

    def surrogate(theta, chosen):
        # Of two trajectories, each other's reward-to-go is the held-out baseline.
        weight = to_go[chosen] - (to_go[chosen.flip(0)] if baseline else 0.0)
        log_prob = torch.log_softmax(theta, -1)[ALL.state[chosen], ALL.action[chosen]]
        return (log_prob * weight).sum(-1).mean()

    def value(theta, remaining):
        if not remaining:
            return exact_value(MDP, theta, GAMMA, HORIZON)

        def after(chosen):
            adapted = theta + alpha * grad(surrogate)(theta, chosen)
            return probability(theta)[chosen].prod() * value(adapted, remaining - 1)

        return vmap(after)(batches).sum()

    return grad(lambda theta: value(theta, steps))(THETA).T.flatten()


def relative(estimate, exact) -> float:
    return float((estimate - exact).norm() / exact.norm())


@pytest.mark.parametrize("credit", ["leave_one_out", "none"])
@pytest.mark.parametrize("doubly_robust", [False, True])
def test_one_step_is_unbiased(credit, doubly_robust) -> None:
    world = Enumeration(make_module(SGMRLCorrection(credit, doubly_robust)))
    torch.testing.assert_close(world.expected(), exact_meta_gradient(2, 1), rtol=0, atol=1e-10)


def test_two_steps_are_unbiased_with_every_round_at_its_own_parameters() -> None:
    world = Enumeration(make_module(SGMRLCorrection("none")), size=1, steps=2)
    exact = exact_meta_gradient(1, 2)
    torch.testing.assert_close(world.expected(), exact, rtol=0, atol=1e-10)
    # The released code scores the first round only.
    first_only = [world.problem.credits[0], torch.zeros_like(world.problem.credits[1])]
    assert relative(world.expected(first_only), exact) > 0.01
    torch.testing.assert_close(world.expected(world.constant(world.across_pairs()[0])), exact, rtol=0, atol=1e-10)


def test_leave_one_out_of_two_steps_is_unbiased() -> None:
    """The last round leaves trajectories out; the first subtracts another task's return, here an independent draw."""
    world = Enumeration(make_module(SGMRLCorrection("leave_one_out")), size=1, steps=2)
    first = world.constant(world.across_pairs()[0])[0]
    mean = world.expected([first, world.problem.credits[1]])
    torch.testing.assert_close(mean, exact_meta_gradient(1, 2), rtol=0, atol=1e-10)


def test_cross_task_is_unbiased_and_the_credits_rank_in_variance() -> None:
    world = Enumeration(make_module(SGMRLCorrection("none")))
    mean = world.expected(world.constant(world.across_pairs()[0]))
    torch.testing.assert_close(mean, exact_meta_gradient(2, 1), rtol=0, atol=1e-10)
    variance = {"cross_task": world.cross_task_variance()}
    for name in ("none", "leave_one_out", "first_order"):
        other = Enumeration(make_module(SGMRLCorrection(name)))
        variance[name] = other.variance(other.gradients())
    assert variance["none"] > 3 * variance["cross_task"] > 5 * variance["leave_one_out"]
    assert abs(variance["leave_one_out"] - variance["first_order"]) < 0.2 * variance["leave_one_out"]


def test_first_order_credit_is_biased_at_second_order_in_alpha() -> None:
    errors = []
    for alpha in (0.1, 0.05):
        world = Enumeration(make_module(SGMRLCorrection("first_order"), alpha=alpha))
        errors.append(float((world.expected() - exact_meta_gradient(2, 1, alpha=alpha)).norm()))
    assert errors[1] > 1e-8
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize(
    ("correction", "inner"),
    [
        (NoCorrection(), LogLikelihood()),  # MAML
        (NoCorrection(), DiCE()),  # MAML with an unbiased Hessian
        (SGMRLCorrection("none"), DiCE()),  # the policy Hessian of Eq. 8 counts the data's dependence twice
    ],
)
def test_printed_forms_are_biased(correction, inner) -> None:
    assert relative(Enumeration(make_module(correction, inner)).expected(), exact_meta_gradient(2, 1)) > 5e-4


def test_first_order_misses_the_inner_derivative() -> None:
    module = make_module(SGMRLCorrection("none"))
    module.inner = type(module.inner)(**{**vars(module.inner), "first_order": True})
    assert relative(Enumeration(module).expected(), exact_meta_gradient(2, 1)) > 0.005


def test_a_fitted_baseline_couples_what_leave_one_out_takes_apart() -> None:
    exact = exact_meta_gradient(2, 1, baseline=True)
    baseline = TimeMean(held_out=True)
    world = Enumeration(make_module(SGMRLCorrection("none"), baseline=baseline), outer=2)
    mean = world.expected(world.constant(world.across_pairs()[0]))
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-10)  # another task's return knows nothing of this one's
    error = relative(Enumeration(make_module(SGMRLCorrection(), baseline=baseline), outer=2).expected(), exact)
    assert 1e-5 < error < 1e-2


def test_credits_across_tasks_by_hand() -> None:
    torch.testing.assert_close(minus_other_tasks(torch.tensor([1.0, 2.0, 6.0])), torch.tensor([-3.0, -1.5, 4.5]))
    with pytest.raises(ConfigError, match="at least two tasks"):
        minus_other_tasks(torch.tensor([1.0]))
    with pytest.raises(ConfigError, match="credit = 'all' cannot be used"):
        SGMRLCorrection("all")  # type: ignore[arg-type]


def test_emaml_credits_are_standardised_returns() -> None:
    world = Enumeration(make_module(EMAMLCorrection()))
    (credit,) = world.problem.credits
    assert credit.shape == (len(world.probability), 2)
    torch.testing.assert_close(credit.sum(-1).mean(), torch.tensor(0.0).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(credit.sum(-1).std(correction=0), torch.tensor(1.0).double(), atol=1e-6, rtol=0)
