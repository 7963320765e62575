"""The meta-learned baseline: plain autograd finds the same, halves are apart, and the printed order leaks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_metarl.envs.tabular_exact import exact_derivatives
from lit_metarl.estimators import reward_to_go
from lit_metarl.nn import MetaLearned
from lit_metarl.nn.meta_baseline import MetaBaseline
from lit_metarl.reports.studies.meta_gradient import ALL, DISCOUNTS, DYNAMICS, GAMMA, HORIZON, MDP, OBS, THETA
from lit_metarl.types import ConfigError, Sizes, Trajectories

B, N, T, O = 2, 5, 4, 3  # noqa: E741


def trajectories_of(obs: Tensor, mask: Tensor) -> Trajectories:
    """A round of which only observations and mask are read."""
    nought, tasks, number = torch.zeros_like(mask), *mask.shape[:2]
    ends = torch.zeros(tasks, number, obs.shape[-1]), torch.zeros(tasks, number, dtype=torch.bool)
    return Trajectories(obs, nought[..., None], nought, nought, mask, *ends, torch.zeros(tasks, 0))


def round_of(seed: int = 0, tasks: int = B) -> tuple[Trajectories, Tensor]:
    """A round of episodes of different lengths, and returns to predict; float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T) < torch.randint(1, T + 1, (tasks, N, 1), generator=generator)).double()
    obs = torch.randn(tasks, N, T, O, dtype=torch.float64, generator=generator) * mask[..., None]
    returns = (3.0 + 2.0 * torch.randn(tasks, N, T, dtype=torch.float64, generator=generator)) * mask
    return trajectories_of(obs, mask), returns


def build(**settings: object) -> MetaBaseline:
    torch.manual_seed(0)
    module = MetaLearned(**{"hidden": (4,), "inner_lr": 0.3, **settings}).build(Sizes(O, 1)).double()  # type: ignore[arg-type]
    assert isinstance(module, MetaBaseline)
    return module


def forward(weights: list[Tensor], obs: Tensor) -> Tensor:
    """The network, written out: observations and time from 0 to 1, one tanh layer; ``[n, T, O] → [n, T]``."""
    time = torch.arange(T, dtype=obs.dtype) / (T - 1)
    x = torch.cat([obs.clamp(-10, 10), time.expand(obs.shape[:-1])[..., None]], -1)
    return (torch.tanh(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3])[..., 0]


def plain(
    module: MetaBaseline, data: Trajectories, returns: Tensor, steps: int, first_order: bool
) -> tuple[Tensor, Tensor]:
    """Predictions and meta-loss by loops over tasks and halves, with autograd."""
    predictions, losses = torch.zeros_like(returns), []
    for task in range(len(returns)):
        for half, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            valid = data.mask[task, half] > 0
            own = returns[task, half][valid]
            mean, std = own.mean(), own.std(correction=0)
            weights = list(module.parameters())
            for _ in range(steps):
                error = (forward(weights, data.obs[task, half])[valid] - (own - mean) / std).square().mean()
                gradients = torch.autograd.grad(error, weights, create_graph=True)
                weights = [
                    w - 0.3 * (g.detach() if first_order else g) for w, g in zip(weights, gradients, strict=True)
                ]
            predicted, seen = forward(weights, data.obs[task, other]), data.mask[task, other] > 0
            predictions[task, other] = ((mean + std * predicted) * data.mask[task, other]).detach()
            losses.append((predicted[seen] - (returns[task, other][seen] - mean) / std).square().mean())
    return predictions, torch.stack(losses).sum() / len(returns)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("first_order", [False, True])
def test_equals_plain_autograd(steps: int, first_order: bool) -> None:
    module, (data, returns) = build(inner_steps=steps, first_order=first_order), round_of()
    predictions, loss = plain(module, data, returns, steps, first_order)
    torch.testing.assert_close(module.predict(data, returns), predictions)
    mine = module.loss(data, returns)
    torch.testing.assert_close(mine, loss)
    found, expected = (torch.autograd.grad(value, list(module.parameters())) for value in (mine, loss))
    torch.testing.assert_close(found, expected)
    if not first_order:  # the second order is not nothing
        other = torch.autograd.grad(plain(module, data, returns, steps, True)[1], list(module.parameters()))
        assert (other[0] - found[0]).abs().max() > 1e-3


def test_a_prediction_does_not_depend_on_its_own_half() -> None:
    module, (data, returns) = build(), round_of()
    before, changed = module.predict(data, returns), returns.clone()
    changed[:, 0] += 5.0 * data.mask[:, 0]
    after = module.predict(data, changed)
    assert torch.equal(after[:, ::2], before[:, ::2])
    assert ((after - before)[:, 1::2].abs().amax(-1) > 0).all()
    assert not after.requires_grad


@pytest.mark.parametrize("number", [1, 2])
def test_few_trajectories_and_equal_returns_are_finite(number: int) -> None:
    module, (data, _) = build(), round_of()
    few = Trajectories(*(x[:, :number] if x.ndim > 2 or x.dtype == torch.bool else x for x in data))
    returns = 7.0 * few.mask
    assert module.predict(few, returns).isfinite().all()
    assert module.loss(few, returns).isfinite()


def test_it_learns_to_be_adapted() -> None:
    """Tasks whose returns rise or fall along an observation: no fixed baseline predicts them, an adapted one does."""
    module = build(hidden=(16,), lr=0.01)
    optimizer = module.optimizer()
    losses = []
    for step in range(150):
        data, _ = round_of(step, tasks=8)
        sign = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0).double()
        returns = 5.0 + sign[:, None, None] * data.obs[..., 0]
        loss = module.loss(data, returns * data.mask)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert last < 0.5 * first


def test_the_printed_order_leaks_and_ours_does_not() -> None:
    """Every batch of two trajectories of a finite MDP is a task: the mean of the policy gradient, exactly.

    Algorithm 1 repeats its steps until φ converges, hence moves φ on a batch before it predicts for it; one meta-step
    of size 0.01 is enough for a bias of 13 %.
    """
    chosen = torch.cartesian_prod(*[torch.arange(len(DYNAMICS))] * 2)  # [C, 2]
    log_prob = THETA.log_softmax(-1)[ALL.state, ALL.action]  # [M, T]
    probability = (log_prob.sum(-1).exp() * DYNAMICS)[chosen].prod(-1)
    data = trajectories_of(OBS[chosen], ALL.mask[chosen])
    returns = reward_to_go(ALL.reward, ALL.mask, GAMMA)[chosen]
    torch.manual_seed(0)
    module = MetaLearned((4,), inner_lr=0.3).build(Sizes(2, 1)).double()
    truth = exact_derivatives(MDP, THETA, GAMMA, HORIZON).gradient

    def mean_gradient(baseline: Tensor) -> Tensor:
        theta = THETA.clone().requires_grad_()
        scores = theta.log_softmax(-1)[ALL.state, ALL.action][chosen]
        value = (DISCOUNTS * scores * (returns - baseline)).sum(-1).mean(-1)
        return torch.autograd.grad(probability @ value, theta)[0]

    def after_a_step_on_the_batch(task: int) -> Tensor:
        moved = MetaLearned((4,), inner_lr=0.3).build(Sizes(2, 1)).double()
        moved.load_state_dict(module.state_dict())
        alone = Trajectories(*(x[task : task + 1] for x in data))
        gradients = torch.autograd.grad(moved.loss(alone, returns[task : task + 1]), list(moved.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient  # as small as a step can be and be seen
        return moved.predict(alone, returns[task : task + 1])

    ours = mean_gradient(module.predict(data, returns))
    printed = mean_gradient(torch.cat([after_a_step_on_the_batch(task) for task in range(len(chosen))]))
    assert (ours - truth).norm() / truth.norm() < 1e-10
    assert (printed - truth).norm() / truth.norm() > 0.1


@pytest.mark.parametrize(
    "wrong", [{"inner_lr": 0.0}, {"inner_lr": math.inf}, {"lr": -1.0}, {"inner_steps": 0}, {"updates": 0}]
)
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"baseline.{next(iter(wrong))}"):
        MetaLearned(**wrong)
