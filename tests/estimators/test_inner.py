"""Every inner surrogate against the exact J, ∇J and ∇²J: all trajectories of small MDPs, on- and off-policy, episodes
of full length and such that end early. Where an estimator is biased, the test asserts that it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_metarl.envs.tabular import TabularMDP, random_mdp
from lit_metarl.envs.tabular_exact import exact_value
from lit_metarl.estimators import (
    TMAML,
    DiCE,
    DoublyRobust,
    LikelihoodRatio,
    LoadedDiCE,
    LogLikelihood,
    TayPO,
    TruncatedDR,
    discounts,
    doubly_robust,
    gae,
    log_importance_ratio,
    reward_to_go,
)
from lit_metarl.types import ConfigError, Signals

EXACT = 1e-10
BIASED = 1e-3  # the greatest entries of ∇J and ∇²J are 0.03 to 0.1 here
ALWAYS_UNBIASED = [DiCE(), DoublyRobust(), TMAML()]
UP_TO_A_CONSTANT = [LoadedDiCE(), TayPO(order=3), TayPO(order=7)]  # of advantages: estimates of J(θ) − J(μ)


def evaluate(world, inner, discounted=True):
    return world.moments(world.derivatives_of(world.strategy(inner, discounted)))


@pytest.mark.parametrize("inner", ALWAYS_UNBIASED, ids=repr)
def test_unbiased_at_all_orders_on_and_off_policy(world, inner):
    assert max(evaluate(world, inner).bias) < EXACT


@pytest.mark.parametrize("inner", UP_TO_A_CONSTANT, ids=repr)
def test_unbiased_up_to_a_constant_on_and_off_policy(world, inner):
    value, *derivatives = evaluate(world, inner).bias
    assert max(derivatives) < EXACT
    assert value == pytest.approx(world.behaviour_value)


@pytest.mark.parametrize("inner", [TayPO(order=2), TruncatedDR(), TruncatedDR(rho_max=2.0, c_max=1.5)], ids=repr)
def test_unbiased_up_to_order_two_on_policy(on_policy, inner):
    assert max(evaluate(on_policy, inner).bias[1:]) < EXACT


@pytest.mark.parametrize(
    "inner",
    [LogLikelihood(), LikelihoodRatio(), TayPO(order=1), LoadedDiCE(decay=0.5), TMAML(eq7_printed=True)],
    ids=repr,
)
def test_right_gradient_but_biased_hessian_on_policy(on_policy, inner):
    _, gradient, hessian = evaluate(on_policy, inner).bias
    assert gradient < EXACT
    assert hessian > BIASED


@pytest.mark.parametrize(
    "inner",
    [LogLikelihood(), LikelihoodRatio(), TayPO(order=2), LoadedDiCE(decay=0.5), TruncatedDR(), TMAML(eq7_printed=True)],
    ids=repr,
)
def test_biased_off_policy(off_policy, inner):
    _, gradient, hessian = evaluate(off_policy, inner).bias
    assert gradient > BIASED
    assert hessian > BIASED


@pytest.mark.parametrize("order", [1, 2])
def test_bias_of_an_expansion_is_of_the_next_order(make_world, order):
    """Eq. (7): halving π − μ divides the bias of TayPO-K by 2^{K+1}, here up to a tenth of the exponent."""
    mdp, rng = random_mdp(2, 2, seed=9), np.random.default_rng(0)
    behaviour, direction = (torch.as_tensor(rng.normal(size=(2, 2))) for _ in range(2))
    errors = []
    for distance in (0.02, 0.01):
        world = make_world(mdp, behaviour + distance * direction, behaviour, horizon=4, gamma=0.9)
        value = world.mean(world.derivatives_of(world.strategy(TayPO(order))))[0]
        errors.append(abs(float(exact_value(mdp, behaviour, 0.9, 4) + value - world.exact.value)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.1)


def test_bias_of_the_printed_control_variate(on_policy):
    """2 Σ_t γ^t E[b_t ∇log π_t ∇log π_tᵀ], nothing else."""
    w = on_policy
    bias = w.mean(w.derivatives_of(w.strategy(TMAML(eq7_printed=True))))[2] - w.exact.hessian
    chosen = (
        torch.eye(2).double()[w.all.action] - torch.softmax(w.theta, -1)[w.all.state]
    )  # ∇log π, its own state's row
    score = torch.eye(w.mdp.num_states).double()[w.all.state][..., None] * chosen[..., None, :]
    weight = w.signals.value[:, 0] * w.all.mask * discounts(w.horizon, w.gamma, w.theta)
    expected = 2 * torch.einsum("m,mt,mtsa,mtxb->saxb", w.all.probability, weight, score, score)
    assert_close(bias, expected, rtol=0, atol=EXACT)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("other", [TayPO(order=2), TMAML(), LoadedDiCE(), TruncatedDR()], ids=repr)
def test_equal_to_doubly_robust_for_every_trajectory_on_policy(on_policy, other):
    w = on_policy
    (_, *robust), (_, *derivatives) = (w.derivatives_of(w.strategy(inner)) for inner in (DoublyRobust(), other))
    for mine, theirs in zip(derivatives, robust, strict=True):
        assert_close(mine, theirs, rtol=0, atol=EXACT)


def test_values_on_policy(on_policy):
    """At ratio 1 doubly robust and DiCE give the return, what is made of advantages 0."""
    w = on_policy
    gain = reward_to_go(w.signals.reward, w.signals.mask, w.gamma)[:, 0, 0]
    assert float(w.all.probability @ gain) == pytest.approx(w.behaviour_value)
    for inner, expected in ((DoublyRobust(), gain), (DiCE(), gain), (TayPO(), 0 * gain), (LoadedDiCE(), 0 * gain)):
        assert_close(w.derivatives_of(w.strategy(inner))[0], expected, rtol=0, atol=EXACT)


def test_variance_by_hand(make_world):
    """One step, π = (½, ½), r = (1, 0), ∇log π = ±(½, −½).

    DiCE: gradients (½, −½) and 0, mean (¼, −¼), variance 2·¼² = ⅛. With the value ½ both are (¼, −¼): variance 0.
    """
    mdp = TabularMDP(np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), np.ones(1))
    world = make_world(mdp, torch.zeros(1, 2).double(), torch.zeros(1, 2).double(), horizon=1, gamma=0.9)
    assert evaluate(world, DiCE()).variance[1] == pytest.approx(1 / 8)
    assert evaluate(world, DoublyRobust()).variance[1] == pytest.approx(0, abs=1e-15)


TABLE = {  # gradient and Hessian: bias (0 is exact), total variance; two digits as they were published
    "DiCE": (0, 0, 7.32, 7.94),
    "LVC without baseline": (0, 1.1e-2, 7.32, 2.06),
    "LVC": (0, 1.1e-2, 0.055, 0.02),
    "log-likelihood": (0, 2.3e-2, 0.055, 0.03),
    "DR": (0, 0, 0.055, 0.12),
    "TayPO-2": (0, 0, 0.055, 0.12),
    "DiCE + printed": (0, 1.9, 7.32, 44.8),
    "DiCE - printed": (0, 1.9, 7.32, 5.2),
    "DiCE + strict": (0, 0, 7.32, 23.3),
    "DiCE - strict": (0, 0, 7.32, 2.33),
    "DiCE - strict + first order": (0, 0, 0.055, 0.12),
}


@pytest.fixture(scope="module")
def measured_world(make_world):
    """3 states, 2 actions, 4 steps, γ = 1, exact values: the MDP in which the table was measured elsewhere."""
    rng = np.random.RandomState(0)  # the legacy generator: its draws define the MDP
    transition, reward, theta = rng.dirichlet(np.ones(3), size=(3, 2)), rng.rand(3, 2), 0.5 * rng.randn(3, 2)
    theta = torch.as_tensor(theta)
    return make_world(TabularMDP(transition, reward, np.eye(3)[0]), theta, theta, horizon=4, gamma=1.0)


def control_variate(world, inner, sign, baseline):
    """DiCE + sign·(the second-order term of ``inner``) + baseline·Σ_t (1 − ρ_t) b_t."""

    def surrogate(log_prob, data):
        dice, tmaml = (world.strategy(each)(log_prob, data) for each in (DiCE(), inner))
        log_ratio = log_importance_ratio(log_prob, data.behaviour_log_prob, data.mask)
        first_order = -(log_ratio.expm1() * data.value).sum(-1)
        second_order = tmaml - dice if inner.eq7_printed else tmaml - dice - first_order
        return dice + sign * second_order + baseline * first_order

    return surrogate


@pytest.mark.parametrize("row", TABLE)
def test_measured_biases_and_variances(measured_world, row):
    w = measured_world
    assert float(w.exact.gradient.abs().max()) == pytest.approx(0.033, abs=5e-4)
    assert float(w.exact.hessian.abs().max()) == pytest.approx(0.023, abs=5e-4)
    printed, strict = TMAML(eq7_printed=True), TMAML()
    surrogate = {
        "DiCE": w.strategy(DiCE()),
        "LVC without baseline": w.strategy(LikelihoodRatio()),
        "LVC": w.strategy(LikelihoodRatio()),
        "log-likelihood": w.strategy(LogLikelihood()),
        "DR": w.strategy(DoublyRobust()),
        "TayPO-2": w.strategy(TayPO(order=2)),
        "DiCE + printed": w.strategy(printed),
        "DiCE - printed": control_variate(w, printed, -1, 0),
        "DiCE + strict": control_variate(w, strict, -1, 0),  # the strategy has the right sign, minus
        "DiCE - strict": control_variate(w, strict, 1, 0),
        "DiCE - strict + first order": w.strategy(strict),
    }[row]
    gain = reward_to_go(w.signals.reward, w.signals.mask, 1.0)
    data = w.signals._replace(advantage=gain) if row == "LVC without baseline" else w.signals
    parts = w.derivatives(lambda theta, s, a, d: surrogate(torch.log_softmax(theta, -1)[s, a], d), data)
    bias, variance = w.moments(parts)
    measured = [*bias[1:], *variance[1:]]
    for mine, published in zip(measured, TABLE[row], strict=True):
        digits = len(f"{published:.10g}".strip("0.").replace(".", ""))  # significant ones
        assert mine == pytest.approx(published, rel=0.51 * 10 ** (1 - digits), abs=EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_control_variates_of_tmaml(make_world, seed):
    """2 states, 2 actions, 3 steps: what the printed one costs, and what the right ones bring. That the first-order
    one helps the Hessian too is usual but no rule, unlike that it helps the gradient.
    """
    # Not a peaked policy: there V is far from the baseline of least variance, and can be worse than none.
    theta = 0.3 * torch.as_tensor(np.random.default_rng([seed, 1]).normal(size=(2, 2)))
    w = make_world(random_mdp(2, 2, seed), theta, theta, horizon=3, gamma=1.0)
    printed, both = evaluate(w, TMAML(eq7_printed=True)), evaluate(w, TMAML())
    dice, strict = evaluate(w, DiCE()), w.moments(w.derivatives_of(control_variate(w, TMAML(), 1, 0)))
    assert max(part.bias[k] for part in (dice, strict, both) for k in (1, 2)) < EXACT
    assert printed.bias[2] > 3 * w.exact.hessian.abs().max()
    assert printed.variance[2] > 3 * dice.variance[2]
    assert dice.variance[2] > 1.4 * max(strict.variance[2], both.variance[2])
    assert strict.variance[1] == pytest.approx(dice.variance[1])  # a second-order term leaves the gradient alone
    assert both.variance[1] < strict.variance[1] / 3


@pytest.mark.parametrize("inner", [LogLikelihood(), LikelihoodRatio(), LoadedDiCE(), TayPO()], ids=repr)
def test_dropping_the_discount_biases_surrogates_of_advantages(on_policy, inner):
    assert evaluate(on_policy, inner, discounted=False).bias[1] > 1e-3


@pytest.mark.parametrize("inner", [*ALWAYS_UNBIASED, TruncatedDR()], ids=repr)
def test_surrogates_of_rewards_always_discount(on_policy, inner):
    assert max(evaluate(on_policy, inner, discounted=False).bias) < EXACT


def test_action_values_as_critic(world):
    """Any Q leaves the estimate unbiased if V is its mean under π_θ, with the graph of π_θ; a constant V does not."""
    critic = torch.as_tensor(np.random.default_rng(5).normal(size=(world.mdp.num_states, 2)))

    def estimate(theta, state, action, data, graph=True):
        log_prob = torch.log_softmax(theta, -1)[state, action]
        log_ratio = log_importance_ratio(log_prob, data.behaviour_log_prob, data.mask)
        policy = torch.softmax(theta if graph else world.theta, -1)
        value = (policy * critic).sum(-1)[state]
        return doubly_robust(log_ratio, data.reward, value, data.mask, world.gamma, q_value=critic[state, action])

    assert max(world.moments(world.derivatives(estimate)).bias) < EXACT
    constant = world.derivatives(lambda *parts: estimate(*parts, graph=False))
    assert world.moments(constant).bias[1] > 0.1


def test_bootstrap_stands_for_what_follows(on_policy):
    """Two of three steps and V at the third: the value is exact, also where the episode ended before."""
    w = on_policy
    short = w.signals.map(lambda part: part[..., :2])
    after = w.values[2][w.all.state[:, 2]] * w.all.mask[:, 2]
    zero = torch.zeros_like(short.reward)
    for bootstrap, error in ((after[:, None], 0.0), (None, w.all.probability @ after * w.gamma**2)):
        value = doubly_robust(zero, short.reward, short.value, short.mask, w.gamma, bootstrap)[:, 0]
        assert float(w.exact.value - w.all.probability @ value) == pytest.approx(float(error), abs=EXACT)
    # The same of advantages: with λ = 1 they are return − value.
    advantage = gae(short.reward, short.value, short.mask, w.gamma, 1.0, after[:, None])[:, 0, 0]
    assert float(w.all.probability @ (advantage + short.value[:, 0, 0])) == pytest.approx(float(w.exact.value))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_critic_may_be_wrong_only_if_lambda_is_one(on_policy, gae_lambda):
    w, bias = on_policy, []
    for noise in (0.0, 0.3):
        value = (w.signals.value + noise * torch.cos(7 * w.all.state[:, None].double())) * w.signals.mask
        data = w.signals._replace(advantage=gae(w.signals.reward, value, w.signals.mask, w.gamma, gae_lambda))
        parts = w.derivatives(
            lambda theta, s, a, row: w.strategy(TayPO(2))(torch.log_softmax(theta, -1)[s, a], row), data
        )
        bias.append(max(w.moments(parts).bias[1:]))
    assert bias[0] < EXACT
    assert (bias[1] < EXACT) == (gae_lambda == 1)


def test_world_is_what_it_seems(world):
    """The negative controls rest on this: derivatives are not small, and episodes end early where they should."""
    assert float(world.all.probability.sum()) == pytest.approx(1)
    assert min(world.exact.gradient.abs().max(), world.exact.hessian.abs().max()) > 10 * BIASED
    assert (world.all.mask.min() == 0) == (world.mdp.ends.any())


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (LikelihoodRatio(), 5.5),
        (DiCE(), 6.0),
        (LoadedDiCE(), 2.0),
        (LoadedDiCE(decay=0.0), 2.5),
        (TMAML(), 5.0),
        (TMAML(eq7_printed=True), 9.0),
        (DoublyRobust(), 5.0),
        (TruncatedDR(), 2.5),
        (TruncatedDR(rho_max=2.0), 3.75),
        # 1 + 1 + 0.5·(2·0.5)·1 + 0.25·(2·0.5·1)·2 = 3.
        (TruncatedDR(c_max=2.0), 3.0),
        (TayPO(order=1), 2.5),
        (TayPO(), 3.0),
        (TayPO(order=3), 2.0),
    ],
    ids=repr,
)
def test_settings_and_their_defaults_are_those_of_the_formula(inner, expected):
    """The three steps of test_off_policy.py and test_surrogates.py, where the sums are written out."""
    ratio, data, value = torch.tensor([[[2.0, 0.5, 3.0]], [[1.0, 2.0, 4.0]], [[1.0, 2.0, 2.0]]], dtype=torch.float64)
    signals = Signals(torch.zeros_like(data), reward=data, value=value, advantage=data, mask=torch.ones_like(data))
    result = inner.per_trajectory(ratio.log(), signals, gamma=0.5, discounted=True)
    assert result.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TayPO(order=0), "order"),
        (lambda: LoadedDiCE(decay=1.1), "decay"),
        (lambda: LoadedDiCE(decay=-0.1), "decay"),
        (lambda: TruncatedDR(rho_max=0.0), "rho_max"),
        (lambda: TruncatedDR(rho_max=-1.0), "rho_max"),
        (lambda: TruncatedDR(c_max=0.0), "c_max"),
        (lambda: TruncatedDR(c_max=-1.0), "c_max"),
        (lambda: replace(TayPO(), order=-1), "order"),
    ],
)
def test_bad_settings_name_their_key(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
