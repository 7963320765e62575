"""Closed-form baselines: equal to least squares task by task, blind to padding, held out where asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_metarl.nn import LinearFeature, LinearTime, NoBaseline, TimeMean
from lit_metarl.nn.baselines import ClosedForm
from lit_metarl.types import ConfigError

B, N, T, OBS = 3, 4, 30, 2
FITTED = [LinearFeature, LinearTime, TimeMean]


def batch(seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, returns and the mask of episodes of different lengths, float64; padding is 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T) < torch.randint(5, T + 1, (B, N, 1), generator=generator)).double()
    obs = scale * torch.randn(B, N, T, OBS, dtype=torch.float64, generator=generator) * mask[..., None]
    returns = torch.randn(B, N, T, dtype=torch.float64, generator=generator).cumsum(-1) * mask
    return obs, returns, mask


def design(baseline: ClosedForm, obs: np.ndarray) -> np.ndarray:
    """Features of one trajectory ``[T, O] → [T, F]``, written out a second time."""
    t = np.arange(len(obs)) / 100.0
    time = np.stack([t, t * t, t * t * t, np.ones(len(obs))], axis=1)
    clipped = np.clip(obs, -10.0, 10.0)
    return np.concatenate([clipped, clipped * clipped, time], axis=1) if isinstance(baseline, LinearFeature) else time


def least_squares(baseline: LinearFeature | LinearTime, obs: Tensor, returns: Tensor, mask: Tensor) -> np.ndarray:
    """Trajectory by trajectory: numpy's lstsq on the data with √ridge·I appended as rows."""
    prediction = np.zeros(returns.shape)
    for b in range(len(obs)):
        xs = [design(baseline, obs[b, n].numpy()) for n in range(obs.shape[1])]
        valid, ys = mask[b].bool().numpy(), returns[b].numpy()
        for n in range(len(xs)):
            used = [m for m in range(len(xs)) if not (baseline.held_out and m == n)]
            x = np.concatenate([xs[m][valid[m]] for m in used] + [baseline.ridge**0.5 * np.eye(xs[0].shape[1])])
            y = np.concatenate([ys[m][valid[m]] for m in used] + [np.zeros(xs[0].shape[1])])
            prediction[b, n, valid[n]] = xs[n][valid[n]] @ np.linalg.lstsq(x, y, rcond=None)[0]
    return prediction


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", [LinearFeature, LinearTime])
@pytest.mark.parametrize("scale", [1.0, 20.0])  # 20: most observations are clipped
def test_equals_least_squares_in_a_loop(kind: type, held_out: bool, scale: float) -> None:
    baseline, data = kind(ridge=1e-3, held_out=held_out), batch(scale=scale)
    np.testing.assert_allclose(
        baseline.fit_predict(*data).numpy(), least_squares(baseline, *data), rtol=1e-7, atol=1e-7
    )


def test_time_mean_by_hand() -> None:
    # Two steps, three trajectories; the second step of the last one is padding.
    returns = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [8.0, 0.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]])
    # step 0: (1+3+8)/3 = 4; step 1: (2+6)/2 = 4. Held out: (3+8)/2, (1+8)/2, (1+3)/2 and 6, 2.
    expected = torch.tensor([[[4.0, 4.0], [4.0, 4.0], [4.0, 0.0]]])
    held_out = torch.tensor([[[5.5, 6.0], [4.5, 2.0], [2.0, 0.0]]])
    obs = torch.zeros(1, 3, 2, OBS)
    assert torch.equal(TimeMean().fit_predict(obs, returns, mask), expected)
    assert torch.equal(TimeMean(held_out=True).fit_predict(obs, returns, mask), held_out)
    assert not NoBaseline().fit_predict(obs, returns, mask).any()


@pytest.mark.parametrize("held_out", [False, True])
def test_recovers_a_target_that_its_features_span(held_out: bool) -> None:
    obs, _, mask = batch()
    t = torch.arange(T) / 100.0
    target = (2.0 * obs[..., 0] - 0.5 * obs[..., 1] ** 2 + 3.0 * t - 4.0 * t**3 + 1.5) * mask
    prediction = LinearFeature(ridge=1e-10, held_out=held_out).fit_predict(obs, target, mask)
    torch.testing.assert_close(prediction, target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", FITTED)
def test_padding_does_not_matter(kind: type, held_out: bool) -> None:
    obs, returns, mask = batch()
    prediction = kind(held_out=held_out).fit_predict(obs, returns, mask)
    assert prediction[mask == 0].eq(0).all()
    assert prediction[mask == 1].any()
    noise = 1e3 * (1 - mask)
    torch.testing.assert_close(
        kind(held_out=held_out).fit_predict(obs + noise[..., None], returns + noise, mask), prediction, rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", FITTED)
def test_held_out_predictions_do_not_see_their_own_returns(kind: type) -> None:
    obs, returns, mask = batch()
    changed = returns.clone()
    changed[1, 2] += 50.0 * mask[1, 2]

    def effect(held_out: bool) -> Tensor:
        baseline = kind(held_out=held_out)
        return (baseline.fit_predict(obs, changed, mask) - baseline.fit_predict(obs, returns, mask)).abs().amax(-1)

    apart = effect(held_out=True)
    assert apart[1, 2] < 1e-7
    assert (apart[1, [0, 1, 3]] > 1e-2).all()  # the others see it
    assert apart[[0, 2]].eq(0).all()  # other tasks do not
    assert effect(held_out=False)[1, 2] > 1.0  # the negative control: fitted in-sample, it does


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("ridge", [1e-5, 1e-16])
def test_degenerate_data_stay_finite(kind: type, held_out: bool, ridge: float) -> None:
    baseline = kind(held_out=held_out) if kind is TimeMean else kind(ridge=ridge, held_out=held_out)
    obs, returns, mask = (x.float() for x in batch())
    tail = torch.ones_like(mask)
    tail[..., T // 2 :] = 0.0
    single = torch.zeros_like(mask)
    single[:, 0, 0] = 1.0
    for inputs, valid in [
        (torch.zeros_like(obs), mask),
        (torch.ones_like(obs), mask),  # equal to the bias and to its own square
        (torch.full_like(obs, 1e6), mask),
        (obs, tail),
        (obs, single),
        (obs, torch.zeros_like(mask)),
    ]:
        prediction = baseline.fit_predict(inputs, returns * valid, valid)
        assert prediction.dtype == torch.float32
        assert torch.isfinite(prediction).all()
        # collinear features may lose accuracy, never blow up
        assert prediction.abs().max() <= 3.0 * returns.abs().max()


def test_a_single_trajectory_has_nothing_to_be_held_out_from() -> None:
    obs, returns, mask = (x[:, :1] for x in batch())
    for kind in FITTED:
        assert not kind(held_out=True).fit_predict(obs, returns, mask).any()
        assert kind(held_out=False).fit_predict(obs, returns, mask).any()


def test_a_larger_ridge_is_tried_where_rounding_spoils_the_smallest() -> None:
    # Three equal columns: the ridge is lost in the Gram matrix's rounding, the system is not positive definite.
    obs, returns, mask = torch.ones(1, N, T, OBS, dtype=torch.float64), torch.full((1, N, T), 7.0), torch.ones(1, N, T)
    returns = returns.double()
    gram = torch.full((2, 2), float(N * T), dtype=torch.float64)
    assert torch.linalg.cholesky_ex(gram + 1e-16 * torch.eye(2))[1] > 0
    prediction = LinearFeature(ridge=1e-16).fit_predict(obs, returns, mask)
    torch.testing.assert_close(prediction, returns, rtol=1e-2, atol=0)


def test_no_graph_reaches_the_policy_gradient() -> None:
    obs, returns, mask = batch()
    for kind in FITTED:
        assert not kind().fit_predict(obs, returns.requires_grad_(), mask).requires_grad


@pytest.mark.parametrize("kind", [LinearFeature, LinearTime])
@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_a_ridge_that_cannot_work_is_refused(kind: type, ridge: float) -> None:
    with pytest.raises(ConfigError, match="ridge"):
        kind(ridge=ridge)
