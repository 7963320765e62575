"""Networks: the batched ensemble equals separate MLPs, initialisation, shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lit_metarl.losses.critics import critic_loss
from lit_metarl.nn import (
    D2RLCritic,
    DeterministicMLP,
    EnsembleCriticMLP,
    GaussianMLP,
    HyperActor,
    HyperCritic,
    HyperFanIn,
    ProductOfGaussians,
    Released,
    ResNetCritic,
    ResNetFeatures,
    TanhGaussianMLP,
)
from lit_metarl.nn.actors import LOG_STD_MAX, LOG_STD_MIN
from lit_metarl.nn.mlp import EnsembleLinear, ensemble_mlp, mlp
from lit_metarl.types import ConfigError, Sizes


def test_ensemble_equals_separate_mlps() -> None:
    torch.manual_seed(1)
    ensemble = ensemble_mlp(3, [5, 8, 2])
    for layer in (m for m in ensemble if isinstance(m, EnsembleLinear)):
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 7, 5)
    together = ensemble(x)
    for e in range(3):
        h = x[e]
        layers = [m for m in ensemble if isinstance(m, EnsembleLinear)]
        for index, layer in enumerate(layers):
            h = h @ layer.weight[e] + layer.bias[e]
            h = torch.relu(h) if index < len(layers) - 1 else h
        torch.testing.assert_close(together[e], h)


def test_members_differ_and_are_orthogonal() -> None:
    torch.manual_seed(0)
    layer = EnsembleLinear(2, 6, 4)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    for weight in layer.weight:  # [in, out], tall: orthonormal columns
        torch.testing.assert_close(weight.T @ weight, torch.eye(4), atol=1e-5, rtol=0)
    assert not layer.bias.any()


@pytest.mark.parametrize("build", [lambda how: mlp([50, 80], how)[0], lambda how: EnsembleLinear(1, 50, 80, how)])
def test_initialisations_by_their_bounds(build: Callable[[Any], nn.Module]) -> None:
    torch.manual_seed(0)
    bounds = {"torch": (50**-0.5, 50**-0.5), "glorot": ((6 / 130) ** 0.5, 0.0)}
    for name, (weight, bias) in bounds.items():
        layer = build(name)
        assert float(layer.weight.detach().abs().max()) == pytest.approx(weight, rel=0.02)
        assert float(layer.bias.detach().abs().max()) == pytest.approx(bias, rel=0.1)
    with pytest.raises(ConfigError, match="initialisation = 'xavier' cannot be used: choose from orthogonal, torch,"):
        build("xavier")


LAYER = "inputs, outputs of a layer = .* cannot be used: every layer of a network needs 1 or more"
MEMBERS = "members = 0 cannot be used: an ensemble has 1 or more"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (EnsembleCriticMLP(hidden=[0]), LAYER),
        (EnsembleCriticMLP(hidden=[8, -1]), LAYER),
        (EnsembleCriticMLP(members=0), MEMBERS),
        (HyperCritic(widths=[8], members=0), MEMBERS),  # would be critics of as many members as the minibatch is large
        (HyperCritic(widths=[8], hidden=[0]), LAYER),
        (D2RLCritic(hidden=[]), LAYER),  # its output layer alone sees nothing
        (D2RLCritic(members=0), MEMBERS),
        (ResNetCritic(width=0), "widths = .*0.* cannot be used"),
        (ResNetCritic(blocks=-1), "blocks = -1 cannot be used"),
        (ResNetFeatures(widths=[]), "widths = .* cannot be used"),
        (ResNetFeatures(widths=[8], features=0), LAYER),
        (TanhGaussianMLP(hidden=[0]), LAYER),
        (DeterministicMLP(hidden=[0]), LAYER),
        (HyperActor(widths=[8], hidden=[0]), LAYER),
        (GaussianMLP(hidden=[0]), LAYER),
        (ProductOfGaussians(hidden=[0]), LAYER),
        (HyperCritic(widths=[8], initialisation=HyperFanIn(samples=0)), "initialisation.samples = 0 cannot be used"),
        (HyperCritic(widths=[8], initialisation=Released(-1.0)), "initialisation.primary_gain = -1.0 cannot be used"),
        (HyperCritic(widths=[8], initialisation=Released(hidden_bound=-1.0)), "head's weights = -1.0 cannot be used"),
        (
            HyperCritic(widths=[8], initialisation=Released(math.inf)),
            "initialisation.primary_gain = inf cannot be used",
        ),
        (HyperCritic(widths=[8], initialisation=Released(hidden_bound=math.inf)), "weights = inf cannot be used"),
    ],
)
def test_networks_that_could_not_learn_are_refused(factory: Any, message: str) -> None:
    context = 2 if isinstance(factory, HyperActor) else 0
    with pytest.raises(ConfigError, match=message):
        factory.build(Sizes(3, 2, context=context))


@pytest.mark.parametrize(("meta", "base"), [(["action"], ["obs", "context"]), (["obs", "context"], ["action"])])
def test_a_value_network_made_of_the_action_is_refused(meta: Any, base: Any) -> None:
    with pytest.raises(ConfigError, match=r"critic..* = \['action'\] cannot be used: a value network has no action"):
        HyperCritic(meta, base, widths=[8]).build(Sizes(3, 0, context=2))


def test_a_critic_sees_only_its_own_gradient() -> None:
    critic = EnsembleCriticMLP([8], members=2).build(Sizes(3, 2))
    value = critic(torch.randn(4, 3), torch.randn(4, 2))
    assert value.shape == (2, 4)
    value[0].sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].any()
        assert not parameter.grad[1].any()


def test_parameter_count_at_quadruped_size() -> None:
    # 90·1024 + 1024 + 1024·1024 + 1024 + 1024 + 1 for one Q function
    critic = EnsembleCriticMLP([1024, 1024], members=2).build(Sizes(78, 12))
    assert sum(p.numel() for p in critic.parameters()) == 2 * 1_143_809


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_std_stays_within_its_bounds(scale: float) -> None:
    actor = TanhGaussianMLP([8]).build(Sizes(3, 2))
    distribution = actor(scale * torch.randn(50, 3))
    assert distribution.mean.shape == distribution.log_std.shape == (50, 2)
    assert distribution.log_std.min() >= LOG_STD_MIN
    assert distribution.log_std.max() <= LOG_STD_MAX


def test_the_released_head_is_a_standard_normal_until_it_learns() -> None:
    actor = TanhGaussianMLP([8], "torch", output_bound=1e-3, clamp_log_std=True).build(Sizes(3, 2))
    first, _, last = actor.trunk
    assert max(value.abs().max() for value in last.parameters()) <= 1e-3
    assert first.weight.abs().max() > 0.1
    obs = torch.randn(50, 3)
    distribution = actor(obs)
    torch.testing.assert_close(distribution.mean, torch.zeros(50, 2), atol=0.02, rtol=0.0)
    torch.testing.assert_close(distribution.log_std, torch.zeros(50, 2), atol=0.02, rtol=0.0)
    with torch.no_grad():
        last.bias[2:] = torch.tensor([5.0, -50.0])
    log_std = actor(obs).log_std
    assert (log_std == torch.tensor([2.0, -20.0])).all()
    with pytest.raises(ConfigError, match=r"actor.output_bound = -1.0 cannot be used: 0 or more, or null"):
        TanhGaussianMLP(output_bound=-1.0).build(Sizes(3, 2))


def test_a_critic_of_many_tasks_is_that_of_each_with_its_context() -> None:
    """As many tasks as members: neither may be taken for the other."""
    critic = EnsembleCriticMLP([8], members=2).build(Sizes(3, 2, context=4))
    obs, action, context = torch.randn(2, 5, 3), torch.randn(2, 5, 2), torch.randn(2, 4)
    together = critic(obs, action, context)
    assert together.shape == (2, 2, 5)  # members, tasks, transitions
    for task in range(2):
        alone = critic(torch.cat([obs[task], context[task].expand(5, -1)], -1)[:, :3], action[task], context[task])
        torch.testing.assert_close(together[:, task], alone)
    target = torch.randn(2, 5)
    each = [critic_loss(together[:, task], target[task]) for task in range(2)]
    torch.testing.assert_close(critic_loss(together, target), (each[0] + each[1]) / 2)
