"""Action-dependent baselines: critics in their span recovered, held out, averages in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_metarl.nn import ActionDependentLinear
from lit_metarl.nn.distributions import DiagonalGaussian
from lit_metarl.types import ConfigError, Sizes, Trajectories

B, N, T, OBS, A = 2, 14, 12, 2, 3
SIZES = Sizes(OBS, A)


def round_of(seed: int = 0) -> tuple[Trajectories, DiagonalGaussian]:
    """Episodes of different lengths, float64; padding is 0."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    mask = (torch.arange(T) < torch.randint(4, T + 1, (B, N, 1), generator=generator)).double()
    obs = draw(B, N, T, OBS) * mask[..., None]
    policy = DiagonalGaussian(torch.tanh(obs.sum(-1, keepdim=True)) * draw(A), 0.3 * draw(A).expand(B, N, T, A))
    action = policy.sample(generator) * mask[..., None]
    ends = torch.zeros(B, N, OBS), torch.zeros(B, N, dtype=torch.bool)
    return Trajectories(obs, action, draw(B, N, T) * mask, draw(B, N, T), mask, *ends, torch.zeros(B, 0)), policy


def critic(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """A critic that is additive over coordinates, and each coordinate's part ``[B, N, T, A]``."""
    parts = torch.stack(
        [action[..., i] * (0.5 + i - obs[..., 0]) + 0.3 * i * action[..., i] ** 2 for i in range(A)], -1
    )
    return 1.0 + obs[..., 1] ** 2 - obs[..., 0] + parts.sum(-1), parts


def averages(obs: Tensor, policy: DiagonalGaussian) -> tuple[Tensor, Tensor]:
    """E of critic and parts under the policy, by Gauss–Hermite quadrature, exact for these polynomials."""
    nodes, weights = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(5))
    weights = weights / weights.sum()
    parts = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        parts = parts + weight * critic(obs, policy.mean + policy.log_std.exp() * node)[1]
    return 1.0 + obs[..., 1] ** 2 - obs[..., 0] + parts.sum(-1), parts


@pytest.mark.parametrize("folds", [1, 2, 20])
def test_recovers_value_and_effects_of_an_additive_critic(folds: int) -> None:
    data, policy = round_of()
    returns, parts = critic(data.obs, data.action)
    value, effect = (
        ActionDependentLinear(1e-9, 1e-9, folds).build(SIZES).predict_by_dimension(data, returns * data.mask, policy)
    )
    expected, means = averages(data.obs, policy)
    mask = data.mask
    torch.testing.assert_close(value, expected * mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(effect, (parts - means) * mask[..., None], rtol=1e-4, atol=1e-4)
    # Without the interactions it is another function, whose averages are right all the same.
    plain = ActionDependentLinear(1e-9, 1e-9, folds, interactions=False).build(SIZES)
    assert (plain.predict_by_dimension(data, returns * mask, policy)[1] - effect).abs().max() > 0.1


def test_an_effect_depends_on_its_own_coordinate_alone() -> None:
    data, policy = round_of()
    baseline = ActionDependentLinear().build(SIZES)
    _, effect = baseline.predict_by_dimension(data, data.reward, policy)
    changed = data.action.clone()
    changed[:, 0, :, 1] += 1.0  # the fits of other folds change, its own does not
    _, other = baseline.predict_by_dimension(data._replace(action=changed), data.reward, policy)
    torch.testing.assert_close(other[:, 0, :, [0, 2]], effect[:, 0, :, [0, 2]])
    assert (other[:, 0, :, 1] - effect[:, 0, :, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("folds", [1, 2, 5, 20])
def test_held_out_predictions_do_not_depend_on_the_own_trajectory(folds: int) -> None:
    data, policy = round_of()
    baseline = ActionDependentLinear(folds=folds).build(SIZES)
    value, effect = baseline.predict_by_dimension(data, data.reward, policy)
    returns = data.reward.clone()
    returns[:, 2] += 5.0 * data.mask[:, 2]
    changed, changed_effect = baseline.predict_by_dimension(data, returns, policy)
    pairs = (changed[:, 2], value[:, 2]), (changed_effect[:, 2], effect[:, 2])
    same = all(torch.allclose(*pair, rtol=1e-6, atol=1e-8) for pair in pairs)
    assert same is (folds > 1)
    assert not torch.equal(changed[:, 3], value[:, 3])


def test_padding_has_no_influence_and_one_trajectory_has_no_baseline() -> None:
    data, policy = round_of()
    baseline = ActionDependentLinear().build(SIZES)
    value, effect = baseline.predict_by_dimension(data, data.reward, policy)
    pad = (1 - data.mask)[..., None]
    dirty = data._replace(obs=data.obs + 7 * pad, action=data.action - 3 * pad)
    again = baseline.predict_by_dimension(dirty, data.reward, policy)
    torch.testing.assert_close(again[0], value)
    torch.testing.assert_close(again[1], effect)
    assert not (value * (1 - data.mask)).any()
    alone = Trajectories(*(x[:, :1] if x.ndim > 2 or x.dtype == torch.bool else x for x in data))
    first = DiagonalGaussian(*(x[:, :1] for x in policy))
    assert not any(part.any() for part in baseline.predict_by_dimension(alone, data.reward[:, :1], first))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="ridge = 0"):
        ActionDependentLinear(ridge=0.0)
    with pytest.raises(ConfigError, match="action_ridge = -1"):
        ActionDependentLinear(action_ridge=-1.0)
    with pytest.raises(ConfigError, match="folds = 0"):
        ActionDependentLinear(folds=0)
    with pytest.raises(ConfigError, match="averages over actions are those of a Gaussian"):
        ActionDependentLinear().build(Sizes(OBS, 1, 4))
