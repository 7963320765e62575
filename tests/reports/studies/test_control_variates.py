"""Action-dependent control variates against exact derivatives: all trajectories of MDPs with two binary dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from report_cases import code_of
from torch.func import jacrev

from lit_metarl.envs.tabular import random_mdp
from lit_metarl.envs.tabular_exact import exact_value
from lit_metarl.estimators import TMAML, OrderedTMAML, anova, loaded_dice, ordered, reward_to_go
from lit_metarl.reports.studies.control_variates import (
    ESTIMATORS,
    HORIZON,
    PARAMETERS,
    STATES,
    by_dimension,
    joint_logits,
    log_prob_of_bits,
    world,
)
from lit_metarl.types import Dimensions

EXACT, GAMMA = 1e-10, 0.9
UNBIASED = ("DiCE", "TMAML, b(s)", "TMAML, b_i(s, a^−i), ordered", "TMAML, b_i(s, a^−i)")


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("seed", [0, 2])
def test_unbiased_at_both_orders_and_controls_are_not(parameters: str, seed: int) -> None:
    here = world(seed, parameters, GAMMA)
    found = {name: here.quality(surrogate, GAMMA) for name, surrogate in ESTIMATORS.items()}
    assert all(quality.bias < EXACT for name in UNBIASED for quality in found[name])
    assert found["LVC"][0].bias < EXACT < 0.04 < found["LVC"][1].bias
    inclusive, seeing = found["control: inclusive product"], found["control: b_i sees a^i"]
    assert inclusive[0].bias < EXACT
    assert inclusive[1].bias > 1.0
    assert seeing[0].bias > 0.5
    assert seeing[1].bias > 0.1


def test_no_baseline_is_always_a_gain() -> None:
    """A state-value baseline can raise the variance of the Hessian, an action-dependent one that of the gradient."""
    here = world(2, "own", GAMMA)
    plain, state, _, both = (here.quality(ESTIMATORS[name], GAMMA) for name in UNBIASED)
    assert state[1].variance > 1.3 * plain[1].variance
    assert both[1].variance < state[1].variance
    assert both[0].variance > state[0].variance
    here = world(1, "own", GAMMA)
    plain, state, _, both = (here.quality(ESTIMATORS[name], GAMMA) for name in UNBIASED)
    assert both[1].variance < state[1].variance < plain[1].variance
    assert both[0].variance < state[0].variance < plain[0].variance


@pytest.mark.parametrize("inner", [TMAML(), OrderedTMAML()], ids=repr)
def test_unbiased_off_policy_with_any_effect_of_a_coordinate_alone(inner: TMAML) -> None:
    here, rng = world(0, "own", GAMMA), np.random.default_rng(0)
    other = torch.as_tensor(rng.normal(size=here.theta.shape))
    table = torch.as_tensor(rng.normal(size=(HORIZON, STATES, 2, 2)))  # step, state, coordinate, its value
    time = torch.arange(HORIZON)
    effect = torch.stack([table[time, here.state, i, here.bits[..., i]] for i in range(2)], dim=-1)
    behaviour = here.signals.dimensions
    assert behaviour
    anything = here.signals._replace(dimensions=Dimensions(behaviour.log_prob, effect))
    mdp_rng = np.random.default_rng([0, 1])
    mdp = random_mdp(STATES, 4, 0)
    mdp = type(mdp)(mdp.transition, mdp_rng.normal(size=(STATES, 4)), mdp.start, mdp.terminal)

    def exact(theta: torch.Tensor) -> torch.Tensor:
        return exact_value(mdp, joint_logits(theta), GAMMA, HORIZON)

    truth = {"gradient": jacrev(exact)(other), "hessian": jacrev(jacrev(exact))(other)}
    moved = here._replace(theta=other, signals=anything, **truth)
    assert max(quality.bias for quality in moved.quality(by_dimension(inner), GAMMA)) < EXACT


def test_ordered_is_loaded_dice_on_the_flattened_sequence() -> None:
    here, rng = world(1, "own", 1.0), np.random.default_rng(0)
    other = torch.as_tensor(rng.normal(size=here.theta.shape))
    data = here.signals
    assert data.dimensions
    log_ratio = log_prob_of_bits(other, here.state, here.bits) - data.dimensions.log_prob
    baseline = torch.as_tensor(rng.normal(size=log_ratio.shape))
    value = ordered(log_ratio, data.reward, baseline, data.mask, 1.0)
    flat_mask = data.mask.repeat_interleave(2, dim=-1)
    advantage = reward_to_go(data.reward, data.mask, 1.0)[..., None] - baseline
    flat = loaded_dice(log_ratio.flatten(-2), advantage.flatten(-2), flat_mask, 1.0)
    torch.testing.assert_close(value, flat + data.reward.sum(-1))


def test_state_values_alone_are_the_state_form() -> None:
    """No effect, or one dimension: TMAML as it is without dimensions; a sum over dimensions where they are not used."""
    here = world(0, "own", GAMMA)
    data = here.signals
    assert data.dimensions
    other = here.theta + 0.3
    other[0, 0, 0] -= 1.0
    log_prob = log_prob_of_bits(other, here.state, here.bits)
    expected = TMAML().per_trajectory(log_prob.sum(-1), data, GAMMA, True)
    none = data._replace(dimensions=Dimensions(data.dimensions.log_prob, torch.zeros_like(log_prob)))
    for inner in (TMAML(), OrderedTMAML()):
        torch.testing.assert_close(inner.per_trajectory_by_dimension(log_prob, none, GAMMA, True), expected)
    single = anova(
        (log_prob - data.dimensions.log_prob).sum(-1, keepdim=True),
        data.reward,
        data.value,
        log_prob[..., :1],
        data.mask,
        GAMMA,
    )
    torch.testing.assert_close(single, expected)
    printed = TMAML(eq7_printed=True)
    torch.testing.assert_close(
        printed.per_trajectory_by_dimension(log_prob, data, GAMMA, True),
        printed.per_trajectory(log_prob.sum(-1), data, GAMMA, True),
    )


def test_three_dimensions_stay_unbiased_and_an_additive_critic_leaves_each_its_own_noise() -> None:
    """One step, three binary coordinates; the reward is additive over them, so V and the effects are all of it."""
    rng = np.random.default_rng(0)
    theta, worth = (torch.as_tensor(rng.normal(size=(3, 2))) for _ in range(2))
    bits = torch.cartesian_prod(*[torch.arange(2)] * 3)  # [8, 3]
    pays = torch.stack([worth[i][bits[:, i]] for i in range(3)], dim=-1)
    means = (theta.softmax(-1) * worth).sum(-1)

    def log_prob(theta: torch.Tensor) -> torch.Tensor:
        return torch.stack([theta[i].log_softmax(-1)[bits[:, i]] for i in range(3)], dim=-1)

    probability, behaviour = log_prob(theta).sum(-1).exp(), log_prob(theta)

    def estimates(theta: torch.Tensor) -> torch.Tensor:
        ratio = (log_prob(theta) - behaviour)[:, None, None]  # [8, 1, 1, 3]
        value, effect = means.sum().expand(8, 1, 1), (pays - means)[:, None, None]
        return anova(ratio, pays.sum(-1)[:, None, None], value, effect, torch.ones(8, 1, 1), 1.0)[:, 0]

    def exact(theta: torch.Tensor) -> torch.Tensor:
        return (theta.softmax(-1) * worth).sum()

    for derivative in (jacrev, lambda f: jacrev(jacrev(f))):
        mean = torch.tensordot(probability, derivative(estimates)(theta), 1)
        torch.testing.assert_close(mean, derivative(exact)(theta), rtol=0, atol=EXACT)
    other = theta + torch.as_tensor(rng.normal(size=(3, 2)))
    ratios = (log_prob(other) - behaviour).exp()
    # r = V + Σ d_i, so what is left of ρ r + (1 − ρ) V + Σ (ρ^i − ρ) d_i has no product of ratios any more.
    torch.testing.assert_close(estimates(other), means.sum() + (ratios * (pays - means)).sum(-1))


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["study", "control_variates", "--mdps", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("parameters |") == 2 * len(ESTIMATORS)
    assert "| DiCE, own parameters | 0 | 0 |" in printed
