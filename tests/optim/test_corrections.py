"""SG-MRL's meta-gradient, proved: every inner and outer batch of a tiny MDP enumerated in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from meta_cases import random_rounds
from torch.func import grad, vmap

from lit_metarl.algorithms import MAML
from lit_metarl.envs.tabular_exact import exact_value
from lit_metarl.estimators import DiCE
from lit_metarl.nn import GaussianMLP, TimeMean
from lit_metarl.optim.corrections import (
    CrossTask,
    EMAMLCorrection,
    LeaveOneOut,
    LinearisedLeaveOneOut,
    NoCorrection,
    Plain,
    minus_other_tasks,
)
from lit_metarl.optim.outer_updates import likelihood
from lit_metarl.reports.studies.meta_gradient import (
    ALL,
    ALPHA,
    DISCOUNTS,
    DYNAMICS,
    GAMMA,
    HORIZON,
    MDP,
    OTHERS,
    THETA,
    Enumeration,
    Estimator,
    ExactValue,
    measure,
)
from lit_metarl.types import ConfigError

EXACT = 1e-10


def enumerate_tasks(correction, size: int = 2, steps: int = 1, outer: int = 1, **options) -> Enumeration:
    return Enumeration(Estimator("", correction, **options).module(), size, steps, outer)


def expected(world, credits=None):
    """Mean of the meta-gradient over all combinations, ``[P]``."""
    return world.probability @ world.gradients(credits)


def variance(world, credits=None) -> float:
    return world.quality(world.gradients(credits), THETA.flatten()).variance


def across_pairs(world):
    """First and second moments over another, independent task of this task's ``cross_task`` credit, ``[C]``."""
    credit = minus_other_tasks(torch.stack(torch.broadcast_tensors(world.returns[:, None], world.returns[None, :])))[0]
    return credit @ world.probability, credit.square() @ world.probability


def variance_in_pairs(world) -> float:
    """Variance of a task's meta-gradient whose credits are across two tasks."""
    first, second = (moment[:, None] for moment in across_pairs(world))
    main = world.gradients(world.everyone(torch.zeros_like(world.returns)))
    score = world.gradients(world.everyone(torch.ones_like(world.returns))) - main
    square = main.square() + 2 * first * main * score + second * score.square()
    return float((world.probability @ square - (world.probability @ (main + first * score)).square()).sum())


def log_policy(theta):
    """Σ_t log π of every trajectory, ``[M]``."""
    return torch.log_softmax(theta, -1)[ALL.state, ALL.action].sum(-1)


def probability(theta):
    return DYNAMICS * log_policy(theta).exp()


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


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        (lambda: exact_meta_gradient(2, 1), {}),
        (lambda: exact_meta_gradient(1, 2), {"size": 1, "steps": 2}),
        (lambda: exact_meta_gradient(2, 2), {"steps": 2}),
        (lambda: exact_meta_gradient(2, 1, baseline=True), {"baseline": OTHERS}),
        (lambda: exact_meta_gradient(2, 1, baseline=True, alpha=ALPHA / 2), {"baseline": TimeMean()}),
    ],
)
def test_the_study_differentiates_the_same_value(truth, options) -> None:
    world = enumerate_tasks(NoCorrection(), **options)
    torch.testing.assert_close(world.probability.sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(world.value_gradient(), truth(), rtol=0, atol=EXACT)


def test_gradients_of_single_tasks_make_up_that_of_the_objective() -> None:
    world = enumerate_tasks(LeaveOneOut())
    objectives = world.iteration.task_objectives(world.iteration.unroll(), likelihood)
    whole = torch.autograd.grad(world.probability @ objectives, list(world.iteration.parameters.values()))[0].flatten()
    torch.testing.assert_close(expected(world), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("correction", [LeaveOneOut(), Plain()])
def test_one_step_is_unbiased(correction) -> None:
    world = enumerate_tasks(correction)
    torch.testing.assert_close(expected(world), exact_meta_gradient(2, 1), rtol=0, atol=EXACT)


def test_leave_one_out_is_unbiased_with_a_known_value_and_doubly_robust_credits_vary_less() -> None:
    plain, robust = (measure(Estimator("", LeaveOneOut(doubly_robust=d), baseline=ExactValue())) for d in (False, True))
    assert plain.bias < EXACT
    assert robust.bias < EXACT
    assert robust.variance < 0.9 * plain.variance


def test_two_steps_are_unbiased_with_every_round_at_its_own_parameters() -> None:
    world = enumerate_tasks(Plain(), size=1, steps=2)
    exact = exact_meta_gradient(1, 2)
    torch.testing.assert_close(expected(world), exact, rtol=0, atol=EXACT)
    # The released code scores the first round only.
    first_only = [world.iteration.credits[0], torch.zeros_like(world.iteration.credits[1])]
    assert relative(expected(world, first_only), exact) > 0.01
    torch.testing.assert_close(expected(world, world.everyone(across_pairs(world)[0])), exact, rtol=0, atol=EXACT)


def test_leave_one_out_of_two_steps_is_unbiased() -> None:
    """The last round leaves trajectories out; the first subtracts another task's return, here an independent draw."""
    world = enumerate_tasks(LeaveOneOut(), size=1, steps=2)
    first = world.everyone(across_pairs(world)[0])[0]
    mean = expected(world, [first, world.iteration.credits[1]])
    torch.testing.assert_close(mean, exact_meta_gradient(1, 2), rtol=0, atol=EXACT)


def test_cross_task_is_unbiased_and_the_credits_rank_in_variance() -> None:
    world = enumerate_tasks(Plain())
    mean = expected(world, world.everyone(across_pairs(world)[0]))
    torch.testing.assert_close(mean, exact_meta_gradient(2, 1), rtol=0, atol=EXACT)
    plain, left_out, linear = (
        variance(enumerate_tasks(kind())) for kind in (Plain, LeaveOneOut, LinearisedLeaveOneOut)
    )
    cross_task = variance_in_pairs(world)
    assert plain > 3 * cross_task > 5 * left_out
    assert abs(left_out - linear) < 0.2 * left_out
    assert variance(enumerate_tasks(CrossTask())) < cross_task  # infinitely many tasks


def test_first_order_credit_is_biased_at_second_order_in_alpha() -> None:
    errors = []
    for alpha in (0.1, 0.05):
        world = enumerate_tasks(LinearisedLeaveOneOut(), alpha=alpha)
        errors.append(float((expected(world) - exact_meta_gradient(2, 1, alpha=alpha)).norm()))
    assert errors[1] > 1e-8
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize(
    "options",
    [
        {"correction": NoCorrection()},  # MAML
        {"correction": NoCorrection(), "inner": DiCE()},  # MAML with an unbiased Hessian
        {"correction": Plain(), "inner": DiCE()},  # Eq. 8 counts the data's dependence twice
    ],
)
def test_printed_forms_are_biased(options) -> None:
    assert relative(expected(enumerate_tasks(**options)), exact_meta_gradient(2, 1)) > 5e-4


def test_first_order_misses_the_inner_derivative() -> None:
    world = enumerate_tasks(Plain(), first_order=True)
    assert relative(expected(world), exact_meta_gradient(2, 1)) > 0.005


def test_a_fitted_baseline_couples_what_leave_one_out_takes_apart() -> None:
    exact = exact_meta_gradient(2, 1, baseline=True)
    world = enumerate_tasks(Plain(), outer=2, baseline=OTHERS)
    mean = expected(world, world.everyone(across_pairs(world)[0]))
    torch.testing.assert_close(mean, exact, rtol=0, atol=EXACT)  # another task's return knows nothing of this one's
    error = relative(expected(enumerate_tasks(LeaveOneOut(), outer=2, baseline=OTHERS)), exact)
    assert 1e-5 < error < 1e-2


def test_credits_of_infinitely_many_tasks_are_those_of_the_corrections() -> None:
    """Of two tasks, in the mean over the other one; of the enumerated tasks, if all are as likely."""
    world = enumerate_tasks(CrossTask())
    torch.testing.assert_close(world.credits()[0][:, 0], across_pairs(world)[0])
    world = enumerate_tasks(EMAMLCorrection())
    world.probability = torch.full_like(world.probability, 1 / len(world.probability))
    torch.testing.assert_close(world.credits()[0], world.iteration.credits[0], rtol=1e-6, atol=0)


def test_credits_across_tasks_by_hand() -> None:
    torch.testing.assert_close(minus_other_tasks(torch.tensor([1.0, 2.0, 6.0])), torch.tensor([-3.0, -1.5, 4.5]))
    with pytest.raises(ConfigError, match="at least two tasks"):
        minus_other_tasks(torch.tensor([1.0]))


def test_emaml_credits_are_standardised_returns() -> None:
    world = enumerate_tasks(EMAMLCorrection())
    (credit,) = world.iteration.credits
    assert credit.shape == (len(world.probability), 2)
    torch.testing.assert_close(credit.sum(-1).mean(), torch.tensor(0.0).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(credit.sum(-1).std(correction=0), torch.tensor(1.0).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "steps"), [(1, 2), (2, 2)])
def test_first_order_credits_of_several_rounds_are_biased_at_second_order_in_alpha(size: int, steps: int) -> None:
    errors, across = [], []
    for alpha in (0.1, 0.05):
        world = enumerate_tasks(LinearisedLeaveOneOut(), size, steps, alpha=alpha)
        exact = exact_meta_gradient(size, steps, alpha=alpha)
        errors.append(float((expected(world) - exact).norm()))
        last = [torch.zeros_like(world.iteration.credits[0]), world.iteration.credits[1]]
        across.append(float((expected(world, last) - exact).norm()))
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert errors[1] < 0.1 * across[1]  # what the first round's credits are worth
    assert 1.5 < across[0] / across[1] < 2.5


@pytest.mark.parametrize("steps", [1, 2])
def test_first_order_credit_is_the_linearisation_of_leave_one_out_in_the_last_round(steps: int) -> None:
    """Both are of order α, and differ by terms of order α²."""
    module = MAML(3, 2, policy=GaussianMLP((4,)), inner_lr=1e-4).double()
    rounds = random_rounds(module, steps=steps)
    iteration = module.iteration(rounds)
    exact = LeaveOneOut().credits(iteration)
    linear = LinearisedLeaveOneOut().credits(iteration)
    assert len(exact) == len(linear) == steps
    assert exact[-1].abs().max() > 1e-6
    torch.testing.assert_close(linear[-1], exact[-1], rtol=1e-2, atol=1e-3 * float(exact[-1].abs().max()))


def test_leave_one_out_has_credits_across_tasks_in_all_rounds_but_the_last() -> None:
    torch.manual_seed(0)
    module = MAML(2, 2, policy=GaussianMLP((4,))).double()
    iteration = module.iteration(random_rounds(module, steps=3))
    credits, across = LeaveOneOut().credits(iteration), CrossTask().credits(iteration)
    assert [credit.shape for credit in credits] == [(3, 4)] * 3
    assert all(torch.equal(credit, other) for credit, other in zip(credits[:2], across[:2], strict=True))
    assert not torch.allclose(credits[2], across[2])
