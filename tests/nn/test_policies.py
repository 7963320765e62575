"""Policies as functions of their parameters: vmap equals a loop, two derivatives, the floor of the log-std."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import lit_metarl
from lit_metarl.algorithms.base import policy_state_of
from lit_metarl.nn import ActorFactory, CategoricalMLP, GaussianMLP, HyperGaussian, PolicyFactory, TanhGaussianMLP
from lit_metarl.nn.distributions import Categorical, DiagonalGaussian
from lit_metarl.nn.policies import Tanh
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.types import ConfigError, Params, Sizes

TASKS, SAMPLES, OBS, ACTIONS = 3, 7, 4, 2
POLICIES = [GaussianMLP((8, 8)), CategoricalMLP((8,)), CategoricalMLP((), bias=False)]


def build(factory: PolicyFactory) -> nn.Module:
    torch.manual_seed(0)
    return factory.build(Sizes(OBS, ACTIONS, None if isinstance(factory, GaussianMLP) else 5)).double()


def data(factory: PolicyFactory) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(TASKS, SAMPLES, OBS, dtype=torch.float64, generator=generator)
    if isinstance(factory, GaussianMLP):
        action = torch.randn(TASKS, SAMPLES, ACTIONS, dtype=torch.float64, generator=generator)
    else:
        action = torch.randint(5, (TASKS, SAMPLES), generator=generator)
    return obs, action, torch.randn(TASKS, SAMPLES, dtype=torch.float64, generator=generator)


def per_task(params: Params, scale: float = 0.1) -> Params:
    """Different parameters for every task, ``[B, ...]``."""
    return {name: value + scale * torch.randn(TASKS, *value.shape, dtype=value.dtype) for name, value in params.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-15), (torch.float32, 1e-6)])
def test_tanh_and_two_derivatives_are_torchs(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-9.0, 9.0, 721, dtype=dtype, requires_grad=True)
    values = []
    for function in (Tanh(), torch.tanh):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        values.append((y, slope, torch.autograd.grad(slope.sum(), x)[0]))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_tanh_is_mapped_and_differentiated_forward_and_three_times() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for transform in (
        lambda f: vmap(f, in_dims=1, out_dims=1),
        lambda f: lambda x: jvp(f, (x,), (x.cos(),))[1],
        lambda f: vmap(vmap(grad(grad(grad(f))))),
        lambda f: vmap(lambda row: jvp(grad(lambda y: f(y).sum()), (row,), (row.cos(),))[1], in_dims=1),
    ):
        torch.testing.assert_close(transform(Tanh())(x), transform(torch.tanh)(x), rtol=1e-12, atol=1e-14)


def test_tanh_keeps_small_values_in_half_precision() -> None:
    x = torch.tensor([1e-3, -0.01, 0.1], dtype=torch.bfloat16)
    torch.testing.assert_close(Tanh()(x), x, rtol=0.01, atol=0)


@pytest.mark.parametrize("factory", POLICIES)
def test_vmap_over_tasks_equals_a_loop_to_second_order(factory: PolicyFactory) -> None:
    policy = build(factory)
    theta = per_task({name: value.detach() for name, value in policy.named_parameters()})

    def loss(params: Params, obs: Tensor, action: Tensor, advantage: Tensor) -> Tensor:
        return -(functional_call(policy, params, (obs,)).log_prob(action) * advantage).mean()

    def adapted_loss(params: Params, *batch: Tensor) -> Tensor:
        slope = grad(loss)(params, *batch)
        return loss({name: value - 0.5 * slope[name] for name, value in params.items()}, *batch)

    batch = data(factory)
    together = vmap(grad(adapted_loss))(theta, *batch)
    for task in range(TASKS):
        # The loop in plain autograd, through the module's own parameters' leaves.
        leaves = {name: value[task].clone().requires_grad_() for name, value in theta.items()}
        one = [x[task] for x in batch]
        slope = torch.autograd.grad(loss(leaves, *one), list(leaves.values()), create_graph=True)
        moved = {name: leaf - 0.5 * g for (name, leaf), g in zip(leaves.items(), slope, strict=True)}
        alone = torch.autograd.grad(loss(moved, *one), list(leaves.values()))
        first_order = torch.autograd.grad(loss(moved, *one), list(moved.values()))
        for name, second, first in zip(leaves, alone, first_order, strict=True):
            torch.testing.assert_close(together[name][task], second)
            assert not torch.allclose(second, first, rtol=1e-3)  # the second derivative is there


@pytest.mark.parametrize("factory", POLICIES)
def test_vmap_returns_distributions_that_sample_and_act(factory: PolicyFactory) -> None:
    policy = build(factory)
    theta = per_task(dict(policy.named_parameters()))
    obs, action, _ = data(factory)
    distribution = vmap(lambda params, x: functional_call(policy, params, (x,)))(theta, obs)
    assert isinstance(distribution, DiagonalGaussian | Categorical)
    sample = distribution.sample(torch.Generator().manual_seed(0))
    assert sample.shape == distribution.mode_action.shape == action.shape
    assert distribution.log_prob(sample).shape == (TASKS, SAMPLES)
    assert all(part.dtype == torch.float64 for part in distribution)


def test_gaussian_initialisation_and_network() -> None:
    torch.manual_seed(0)
    policy = GaussianMLP((64, 32), initial_log_std=-0.5).build(Sizes(11, 3))
    linears = [m for m in policy.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linears] == [(64, 11), (32, 64), (3, 32)]
    for linear in linears:
        # Glorot: uniform within ±√(6/(in + out)), so the largest of many comes close to the bound
        bound = math.sqrt(6.0 / sum(linear.weight.shape))
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    obs = torch.randn(5, 11)
    h = obs
    for linear in linears[:-1]:
        h = torch.tanh(h @ linear.weight.T + linear.bias)
    distribution = policy(obs)
    torch.testing.assert_close(distribution.mean, h @ linears[-1].weight.T)
    torch.testing.assert_close(distribution.log_std, torch.full((5, 3), -0.5))


def test_the_floor_holds_and_lets_the_gradient_pass() -> None:
    policy = GaussianMLP((4,), initial_log_std=-30.0).build(Sizes(OBS, ACTIONS))
    distribution = policy(torch.zeros(6, OBS))
    torch.testing.assert_close(distribution.log_std, torch.full((6, ACTIONS), math.log(1e-6)))
    assert torch.isfinite(distribution.log_prob(torch.full((6, ACTIONS), 10.0))).all()
    (gradient,) = torch.autograd.grad(distribution.entropy().sum(), policy.log_std)
    assert torch.equal(gradient, torch.full((ACTIONS,), 6.0))
    above = GaussianMLP((4,), initial_log_std=-0.3).build(Sizes(OBS, ACTIONS))
    assert torch.equal(above(torch.zeros(1, OBS)).log_std[0], above.log_std)


def test_a_tabular_softmax_is_its_logits() -> None:
    policy = CategoricalMLP((), bias=False, zero_output=True).build(Sizes(3, 1, 2))
    ((name, table),) = policy.named_parameters()
    assert table.shape == (2, 3)
    assert not table.any()
    torch.testing.assert_close(policy(torch.eye(3)).log_prob(torch.tensor([0, 1, 0])), torch.full((3,), -math.log(2)))
    logits = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    assert torch.equal(functional_call(policy, {name: logits}, (torch.eye(3),)).logits, logits.T)


@pytest.mark.parametrize("factory", [GaussianMLP((8,)), CategoricalMLP((8,))])
def test_densities_are_float32_under_bf16(factory: PolicyFactory) -> None:
    policy = build(factory).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert policy.trunk(torch.ones(1, OBS)).dtype == torch.bfloat16
        assert all(part.dtype == torch.float32 for part in policy(torch.ones(1, OBS)))
        assert policy(torch.ones(1, OBS)).entropy().dtype == torch.float32


def test_densities_of_made_weights_are_float32_under_bf16() -> None:
    policy = HyperGaussian((8,), widths=(8,), blocks=1).build(Sizes(OBS, ACTIONS, None, 3))
    obs, context = torch.randn(1, 5, OBS), torch.randn(1, 3)
    exact = policy(obs, policy.hypernetwork(context))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = policy(obs, policy.hypernetwork(context))
        assert all(part.dtype == torch.float32 for part in rounded)
        assert rounded.entropy().dtype == torch.float32
    assert not torch.equal(rounded.mean, exact.mean)  # products are of bf16


def test_the_other_kind_of_action_space_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'GaussianMLP'.* 5 discrete .*CategoricalMLP"):
        GaussianMLP().build(Sizes(OBS, 1, 5))
    with pytest.raises(ConfigError, match=r"'CategoricalMLP'.*continuous.*GaussianMLP"):
        CategoricalMLP().build(Sizes(OBS, ACTIONS, None))
    with pytest.raises(ConfigError, match="activation = 'sine'"):
        GaussianMLP(activation="sine").build(Sizes(OBS, ACTIONS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factory", "sizes", "scale"),
    [
        (GaussianMLP([8]), Sizes(OBS, ACTIONS), 0.8),
        (CategoricalMLP([8]), Sizes(OBS, 1, 5), 1.0),
        (TanhGaussianMLP([8]), Sizes(OBS, ACTIONS), 1.0),
        (GaussianMLP([8]), Sizes(OBS, ACTIONS, context=2), 1.0),
    ],
)
def test_load_policy_rebuilds_from_the_recipe(
    factory: PolicyFactory | ActorFactory, sizes: Sizes, scale: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    policy = factory.build(sizes)
    recipe = policy_state_of(recipe_of(factory), policy, sizes, scale)
    torch.save({"algorithm": {"policy": recipe}}, tmp_path / "policy.ckpt")
    obs = np.random.default_rng(0).normal(size=(6, OBS)).astype(np.float32)
    context = [np.array([0.3, -0.2], dtype=np.float32)] if sizes.context else []
    expected = policy(torch.from_numpy(obs), *map(torch.from_numpy, context)).mode_action.detach().numpy()
    if scale < 1.0:
        assert np.abs(expected).max() > 1.25  # so that clipping is seen
        expected = np.clip(np.float32(scale) * expected, -1.0, 1.0)
    loaded = lit_metarl.load_policy(tmp_path / "policy.ckpt")
    assert expected.std() > 0.0
    assert loaded(obs, *context).dtype == expected.dtype
    np.testing.assert_allclose(loaded(obs, *context), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded(obs[0], *context), expected[0], rtol=1e-5, atol=1e-6)
    assert loaded.sizes == sizes
    told = " and a context of 2" if sizes.context else ""
    actions = f"{ACTIONS} actions in [-1, 1]" if sizes.num_actions is None else "one of 5"
    assert repr(loaded) == f"TrainedPolicy({factory!r}: {OBS} observations{told} → {actions})"
    with pytest.raises(ValueError, match=rf"takes a context \[{sizes.context}\], not \[3\]"):
        loaded(obs, np.zeros(3))
