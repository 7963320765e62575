"""Returns and advantages: by hand, against a loop, at the limits of λ, with padding."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.testing import assert_close

from lit_metarl.estimators import discounted_suffix_sum, discounts, following_value, gae, normalise, reward_to_go


def batch(*shape, seed=0):
    """Reward, value, mask (episodes of every length from 1 to T) and bootstrap, float64."""
    generator = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2))
    length = 1 + torch.randint(shape[-1], shape[:-1], generator=generator)
    mask = (torch.arange(shape[-1]) < length[..., None]).double()
    return reward, value, mask, torch.randn(*shape[:-1], dtype=torch.float64, generator=generator)


def loop_gae(reward, value, mask, gamma, gae_lambda, bootstrap):
    """The recursion A_t = δ_t + γλ·A_{t+1} of one trajectory."""
    length = int(mask.sum())
    after, advantage, out = (float(bootstrap) if length == len(mask) else 0.0), 0.0, [0.0] * len(mask)
    for t in reversed(range(length)):
        delta = float(reward[t]) + gamma * after - float(value[t])
        advantage = delta + gamma * gae_lambda * advantage
        out[t], after = advantage, float(value[t])
    return torch.tensor(out, dtype=torch.float64)


def test_three_steps_by_hand():
    # γ = 0.5, r = (1, 2, 4): G = (1 + 1 + 1, 2 + 2, 4) = (3, 4, 4).
    reward, value, ones = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 2.0, 2.0]]), torch.ones(1, 3)
    assert_close(reward_to_go(reward, ones, 0.5), torch.tensor([[3.0, 4.0, 4.0]]))
    # δ = (1 + 0.5·2 − 1, 2 + 0.5·2 − 2, 4 − 2) = (1, 1, 2); γλ = 0.25: A = (1 + 0.25·1.5, 1 + 0.25·2, 2).
    assert_close(gae(reward, value, ones, 0.5, 0.5), torch.tensor([[1.375, 1.5, 2.0]]))
    # V(s_3) = 8 adds γ·8 = 4 to the last error.
    assert_close(gae(reward, value, ones, 0.5, 0.5, torch.tensor([8.0])), torch.tensor([[1.625, 2.5, 6.0]]))
    # The episode ends after two steps: δ = (1, 2 − 2), and neither step 2 nor the bootstrap counts.
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert_close(gae(reward, value, mask, 0.5, 0.5, torch.tensor([8.0])), torch.tensor([[1.0, 0.0, 0.0]]))
    assert_close(discounts(3, 0.5, reward), torch.tensor([1.0, 0.5, 0.25]))
    assert_close(discounts(3, 0.0, reward), torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 8, 200])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_fast_equals_loop(num_steps, gamma, gae_lambda):
    reward, value, mask, bootstrap = batch(5, num_steps)
    fast = gae(reward, value, mask, gamma, gae_lambda, bootstrap)
    for n in range(5):
        expected = loop_gae(reward[n], value[n], mask[n], gamma, gae_lambda, bootstrap[n])
        assert_close(fast[n], expected, rtol=1e-12, atol=1e-12)


def test_limits_of_lambda():
    reward, value, mask, _ = batch(4, 9)
    one_step = (reward + 0.9 * following_value(value, mask) - value) * mask
    assert_close(gae(reward, value, mask, 0.9, 0.0), one_step)
    assert_close(gae(reward, value, mask, 0.9, 1.0), (reward_to_go(reward, mask, 0.9) - value) * mask)
    assert_close(reward_to_go(reward, mask, 1.0)[:, 0], (reward * mask).sum(-1))


def test_long_sums_stay_accurate_in_float32():
    x = torch.ones(1000)
    assert_close(discounted_suffix_sum(x, 0.99)[0].item(), (1 - 0.99**1000) / 0.01, rtol=1e-5, atol=0)
    assert discounted_suffix_sum(x, 1.0)[0] == 1000


def test_padding_does_not_matter():
    reward, value, mask, bootstrap = batch(4, 9)
    garbage = 1e300 * (1 - mask)
    for function in (
        lambda r, v: reward_to_go(r, mask, 0.9),
        lambda r, v: gae(r, v, mask, 0.9, 0.8, bootstrap),
        lambda r, v: normalise(r, mask)[0],
        lambda r, v: following_value(v, mask) * mask,
    ):
        result = function(reward + garbage, value + garbage)
        assert_close(result, function(reward, value), rtol=0, atol=0)
        assert (result[mask == 0] == 0).all()


def test_normalised_over_trajectories_and_steps_of_each_task():
    advantage, _, mask, _ = batch(3, 6, 9)
    normalised, scale = normalise(5 + 3 * advantage, mask)
    assert scale.shape == (3,)
    for task in range(3):
        valid = mask[task] > 0
        assert_close(normalised[task][valid].mean(), torch.tensor(0.0).double(), rtol=0, atol=1e-12)
        assert_close(normalised[task][valid].std(correction=0), torch.tensor(1.0).double())
        assert_close(scale[task], 3 * advantage[task][valid].std(correction=0))
    # Both trajectories and steps are reduced: a single trajectory does not come out standardised.
    assert abs(normalised[0, 0].sum()) > 0.1


def test_equal_advantages_are_not_blown_up():
    normalised, scale = normalise(torch.full((4, 25), 0.1), torch.ones(4, 25))
    assert scale == 1
    assert normalised.abs().max() < 1e-6
    tiny, _ = normalise(1e-12 * torch.arange(4.0)[None], torch.ones(1, 4))
    assert_close(tiny.std(correction=0), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmap_equals_loop(dtype):
    reward, value, mask, bootstrap = (part.to(dtype) for part in batch(3, 4, 9))

    def one(r, v, m, b):
        return normalise(gae(r, v, m, 0.9, 0.8, b), m)[0]

    tasks = vmap(one)(reward, value, mask, bootstrap)
    assert tasks.dtype == dtype
    assert_close(tasks, torch.stack([one(*parts) for parts in zip(reward, value, mask, bootstrap, strict=True)]))
    assert_close(tasks, one(reward, value, mask, bootstrap))


def test_equal_advantages_are_not_blown_up_by_their_rounding() -> None:
    mask = torch.ones(20, 200)
    for value in torch.linspace(0.1, 9.7, 60):
        normalised, scale = normalise(value.expand(20, 200), mask)
        assert scale == 1.0
        assert normalised.abs().max() < 1e-5
    spread = 5.0 + 1e-4 * torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    assert normalise(spread, mask)[0].std() == pytest.approx(1.0, rel=0.01)
