"""Layers with derivatives of their own: values and derivatives of every order are those of torch's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lit_metarl.nn import layers
from lit_metarl.nn.layers import Linear
from lit_metarl.nn.mlp import EnsembleLinear

TASKS = 5
Value = Callable[[dict[str, Tensor], Tensor], Tensor]
needs_onednn = pytest.mark.skipif(layers.ONEDNN is None, reason="torch without oneDNN")


@pytest.fixture(params=["bmm", pytest.param("oneDNN", marks=needs_onednn)])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.dtype, float]:
    """Either way to multiply: batched in double precision, or oneDNN, which has single precision, for all sizes."""
    if request.param == "bmm":
        return torch.float64, 1e-11
    monkeypatch.setattr(layers, "WORTHWHILE", 1)
    return torch.float32, 2e-3


def derivative(layer: nn.Module, order: int) -> Value:
    """|∇^order Σ sin²(layer(x))|² in the parameters, order by order."""
    if order == 0:
        return lambda params, x: functional_call(layer, params, (x,)).sin().square().sum()
    lower = grad(derivative(layer, order - 1))
    return lambda params, x: torch.stack([value.square().sum() for value in lower(params, x).values()]).sum()


def transformed(value: Value, params: dict[str, Tensor], per_task: dict[str, Tensor], x: Tensor) -> list[Any]:
    slope = grad(value, argnums=(0, 1))
    return [
        vmap(slope, in_dims=(None, 1))(params, x),
        vmap(vmap(slope, in_dims=(None, 0)))(per_task, x),
        *transformed_by_task(value, per_task, x),
    ]


def transformed_by_task(value: Value, per_task: dict[str, Tensor], x: Tensor) -> list[Any]:
    slope = grad(value, argnums=(0, 1))
    return [
        vmap(slope)(per_task, x),
        jvp(lambda tasks: vmap(value)(tasks, x), (per_task,), (per_task,)),
        vmap(lambda own, rows: jvp(lambda p: slope(p, rows)[1], (own,), (own,))[1])(per_task, x),
    ]


@pytest.mark.parametrize("sizes", [(3, 4), (4, 2)])
@pytest.mark.parametrize("order", range(3))
def test_derivatives_under_maps_are_those_of_torch(
    order: int, sizes: tuple[int, int], tolerance: tuple[torch.dtype, float]
) -> None:
    torch.manual_seed(order)
    dtype, tol = tolerance
    ours, theirs = Linear(*sizes).to(dtype), nn.Linear(*sizes).to(dtype)
    params = {name: value.detach() for name, value in ours.named_parameters()}
    per_task = {name: torch.randn(TASKS, *value.shape, dtype=dtype) for name, value in params.items()}
    x = torch.randn(TASKS, 7, 2, sizes[0], dtype=dtype)
    results = [transformed(derivative(layer, order), params, per_task, x) for layer in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=tol, atol=tol)


@needs_onednn
@pytest.mark.parametrize("order", range(3))
def test_derivatives_of_an_ensemble_are_the_same_by_either_way(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(order)
    layer = EnsembleLinear(2, 3, 4)
    per_task = {name: torch.randn(TASKS, *value.shape) for name, value in layer.named_parameters()}
    x, results, calls = torch.randn(TASKS, 2, 6, 3), [], []
    onednn = layers.ONEDNN
    monkeypatch.setattr(layers, "ONEDNN", lambda *arguments: calls.append(arguments) or onednn(*arguments))
    for threshold in (10**9, 1):
        assert not calls
        monkeypatch.setattr(layers, "WORTHWHILE", threshold)
        monkeypatch.setattr(layers, "WORTHWHILE_FOR_ALL", threshold)
        results.append(transformed_by_task(derivative(layer, order), per_task, x))
    assert calls
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-3)


def test_a_large_product_is_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = Linear(64, 32), torch.randn(1_000, 64, requires_grad=True)
    results = []
    for threshold in (1, 10**9):
        monkeypatch.setattr(layers, "WORTHWHILE", threshold)
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(results[0][0], x @ layer.weight.T + layer.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_own_where_nothing_is_differentiated_and_in_half_precision(bias: bool) -> None:
    layer, x = Linear(4, 3, bias=bias), torch.randn(6, 4)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        assert torch.equal(layer(x), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), plain, rtol=0.05, atol=0.05)
    y.sum().backward()
    assert layer.weight.grad is not None
