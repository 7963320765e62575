"""Hypernetworks: dynamic layers against loops of ``nn.Linear``, members apart, initialisations by their moments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_metarl.nn import BiasHyper, HyperFanIn, HyperInitialisation, Released
from lit_metarl.nn.conditioning import named_inputs
from lit_metarl.nn.hypernetwork import (
    Hypernetwork,
    LayerWeights,
    dynamic_linear,
    dynamic_mlp,
    layer_weights,
    mlp_layers,
)
from lit_metarl.types import ConfigError

SMALL = {"widths": (6, 9), "blocks": 1}


def random_weights(*lead: int, inputs: int = 4, outputs: int = 3) -> LayerWeights:
    shapes = (inputs, outputs), (outputs,), (outputs,)
    return LayerWeights(*(torch.randn(*lead, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes))


def by_nn_linear(weight: Tensor, bias: Tensor, gain: Tensor, x: Tensor) -> Tensor:
    """One layer's weights and one input, by the framework's own layer."""
    linear = nn.Linear(*weight.shape, bias=False, dtype=torch.float64)
    return functional_call(linear, {"weight": weight.T}, (x,)) * gain + bias


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rows", [(), (5,), (5, 2)], ids=str)
def test_dynamic_linear_equals_a_loop_of_layers(outputs: int, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weights = random_weights(2, 7, outputs=outputs)
    x = torch.randn(2, 7, *rows, 4, dtype=torch.float64, requires_grad=True)
    together = dynamic_linear(weights, x)
    loop = torch.stack([
        torch.stack([by_nn_linear(*(w[e, m] for w in weights), x[e, m]) for m in range(7)]) for e in range(2)
    ])  # fmt: skip
    assert together.shape == (2, 7, *rows, outputs)
    torch.testing.assert_close(together, loop)
    out = torch.randn_like(together)
    inputs = [*weights, x]
    for own, expected in zip(
        torch.autograd.grad(together, inputs, out), torch.autograd.grad(loop, inputs, out), strict=True
    ):
        torch.testing.assert_close(own, expected)


def test_one_input_may_serve_all_members() -> None:
    weights, x = random_weights(2, 7), torch.randn(1, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(dynamic_linear(weights, x), dynamic_linear(weights, x.expand(2, -1, -1)))


def test_primary_and_heads_are_those_of_the_paper() -> None:
    """Written out for one member, from the same parameters."""
    torch.manual_seed(1)
    net = Hypernetwork(5, mlp_layers([2, 4, 1]), members=3, **SMALL)
    for value in net.parameters():
        nn.init.normal_(value, std=0.3)
    meta, member = torch.randn(7, 5), 1
    p = {name: value[member] for name, value in net.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = linear("primary.0", meta)
    x = x + linear("primary.1.second", torch.relu(linear("primary.1.first", torch.relu(x))))
    x = linear("primary.2", x)
    z = x + linear("primary.3.second", torch.relu(linear("primary.3.first", torch.relu(x))))
    numbers = linear("heads", z)
    weights = {name: value[member] for name, value in net(meta).items()}
    torch.testing.assert_close(weights["0.weight"], numbers[:, :8].view(7, 2, 4))
    torch.testing.assert_close(weights["0.bias"], numbers[:, 8:12])
    torch.testing.assert_close(weights["0.gain"], 1.0 + numbers[:, 12:16])
    torch.testing.assert_close(weights["1.weight"], numbers[:, 16:20].view(7, 4, 1))
    torch.testing.assert_close(weights["1.bias"], numbers[:, 20:21])
    torch.testing.assert_close(weights["1.gain"], 1.0 + numbers[:, 21:])


def test_members_share_nothing() -> None:
    net = Hypernetwork(3, mlp_layers([2, 4, 1]), members=2, **SMALL)
    weights = net(torch.randn(6, 3))
    assert not torch.equal(weights["0.weight"][0], weights["0.weight"][1])
    sum(value[0].sum() for value in weights.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].any(), name
        assert not parameter.grad[1].any(), name


@pytest.mark.parametrize("lead", [(), (4,), (4, 3)], ids=str)
def test_meta_inputs_of_any_axes(lead: tuple[int, ...]) -> None:
    net = Hypernetwork(3, mlp_layers([2, 4, 1]), members=2, **SMALL)
    meta = torch.randn(*lead, 3)
    weights = net(meta)
    assert weights["0.weight"].shape == (2, *lead, 2, 4)
    assert weights["1.gain"].shape == (2, *lead, 1)
    one = net(meta.reshape(-1, 3)[0])  # a single one
    torch.testing.assert_close(
        weights["0.weight"].flatten(1, -3)[:, 0] if lead else weights["0.weight"], one["0.weight"]
    )
    own = net.weights_of(torch.stack([meta, 2.0 * meta]))  # each member its own
    torch.testing.assert_close(own["1.bias"][0], weights["1.bias"][0])
    torch.testing.assert_close(own["1.bias"][1], net(2.0 * meta)["1.bias"][1])


def test_without_members_a_task_is_told_once_for_all_its_steps() -> None:
    """A policy's use: weights of a context without an axis of members, vmap over tasks, any number of observations."""
    net = Hypernetwork(2, mlp_layers([3, 5, 1]), **SMALL)
    context, obs = torch.randn(4, 2), torch.randn(4, 6, 7, 3)
    told = vmap(lambda one: net(named_inputs(("context",), context=one)))(context)
    assert told["0.weight"].shape == (4, 3, 5)
    together = vmap(lambda weights, x: dynamic_mlp(weights, x, list(net.layers)))(told, obs)
    repeated = net(context[:, None, None].expand(4, 6, 7, 2))  # the released code: weights for every step
    torch.testing.assert_close(together, dynamic_mlp(repeated, obs, list(net.layers)))


def test_a_constant_primary_is_an_mlp() -> None:
    torch.manual_seed(0)
    net = Hypernetwork(3, mlp_layers([2, 8, 8, 1]), initialisation=BiasHyper(), **SMALL)
    x, meta = torch.randn(50, 2), torch.randn(50, 3)
    first = {name: value[0].detach() for name, value in net(meta).items()}
    layers: list[nn.Module] = []
    for name in net.layers:
        weight, bias, gain = layer_weights(first, name)
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = (weight * gain).T.contiguous(), bias
        layers += [linear, nn.ReLU()]
    torch.testing.assert_close(dynamic_mlp(net(meta), x, list(net.layers)), nn.Sequential(*layers[:-1])(x))
    nn.init.normal_(net.heads.weight)  # and with another meta input it is another one
    assert not torch.allclose(dynamic_mlp(net(meta), x, list(net.layers)), nn.Sequential(*layers[:-1])(x), atol=1e-2)


LAYERS = mlp_layers([17, 256, 1])


def made(initialisation: HyperInitialisation) -> tuple[Hypernetwork, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    net = Hypernetwork(17, LAYERS, members=2, widths=(64, 128), initialisation=initialisation)
    meta = torch.randn(500, 17)
    return net, net(meta), meta


@pytest.mark.parametrize("gain", [0.5**0.5, 0.5])  # SAC, TD3
def test_released_bounds(gain: float) -> None:
    net, _, _ = made(Released(gain))
    parts = iter(net.heads.weight.detach().split([size for layer in LAYERS.values() for size in layer.parts], dim=-1))
    for bound in (0.05, 0.05, 0.05, 0.008, 0.008, 0.008):
        assert 0.9 * bound < float(next(parts).abs().max()) <= bound
    assert not net.heads.bias.any()
    for name, value in net.primary.named_parameters():
        if name.endswith("weight"):
            bound = gain * value.shape[1] ** -0.5
            assert 0.98 * bound < float(value.detach().abs().max()) <= bound


def test_released_weights_are_as_small_as_measured_elsewhere() -> None:
    """Published size, 17 observations: z 0.085 and 0.047, W₁ 0.078 and 0.044, W₂ 0.0127 and 0.0070."""
    for gain, expected in ((0.5**0.5, (0.085, 0.078, 0.0127)), (0.5, (0.047, 0.044, 0.0070))):
        torch.manual_seed(0)
        net = Hypernetwork(17, mlp_layers([6, 256, 1]), members=1, initialisation=Released(gain))
        with torch.no_grad():
            meta = torch.randn(300, 17)
            weights, z = net(meta), net.primary(meta[None])
        found = [float(x.std()) for x in (z, weights["0.weight"], weights["1.weight"])]
        assert found == pytest.approx(expected, rel=0.08)


def test_bounds_of_single_layers() -> None:
    layers = {"mean": LAYERS["1"], "log_std": LAYERS["1"]._replace(bound=0.001)}
    net = Hypernetwork(3, layers, **SMALL)
    mean, log_std = net.heads.weight.detach().chunk(2, dim=-1)
    assert log_std.abs().max() <= 0.001 < mean.abs().max()


def test_fan_in_keeps_the_variance() -> None:
    _, weights, _ = made(HyperFanIn())
    hidden = dynamic_linear(layer_weights(weights, "0"), torch.randn(2, 500, 17)).detach()
    assert float(hidden.square().mean()) == pytest.approx(1.0, rel=0.15)
    assert torch.equal(weights["0.gain"], torch.ones_like(weights["0.gain"]))
    outputs = torch.cat([made_output(seed) for seed in range(15)])  # one draw per member has a spread of its own
    assert float(outputs.square().mean()) == pytest.approx(1.0, rel=0.25)


def made_output(seed: int) -> Tensor:
    torch.manual_seed(seed)
    net = Hypernetwork(17, LAYERS, members=2, widths=(32, 64), initialisation=HyperFanIn(samples=256))
    with torch.no_grad():
        return dynamic_mlp(net(torch.randn(50, 17)), torch.randn(1, 50, 17), list(LAYERS)).flatten()


@pytest.mark.parametrize("initialisation", [Released(), BiasHyper(), HyperFanIn()], ids=repr)
def test_an_output_of_zero_learns(initialisation: HyperInitialisation) -> None:
    net, weights, meta = made(replace(initialisation, zero_output=True))
    x = torch.randn(1, 500, 17)
    value = dynamic_mlp(weights, x, list(LAYERS))
    assert not value.any()
    (value - 1.0).square().mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_(0.01 * parameter.grad)
    assert dynamic_mlp(net(meta), x, list(LAYERS)).any()


def test_far_away_values_grow_with_the_fourth_power_of_the_meta_input() -> None:
    torch.manual_seed(0)
    net = Hypernetwork(17, LAYERS, 2, **SMALL)
    meta, x = torch.randn(50, 17), torch.randn(1, 50, 17)
    near, far = (dynamic_mlp(net(scale * meta), x, list(LAYERS)).abs().mean().log2() for scale in (1e5, 2e5))
    assert float((far - near).detach()) == pytest.approx(4.0, abs=0.02)


@pytest.mark.parametrize(("key", "value"), [("widths", ()), ("widths", (4, 0)), ("blocks", -1)])
def test_impossible_sizes_name_the_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = .*cannot be used"):
        Hypernetwork(3, LAYERS, **{key: value})
