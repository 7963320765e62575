"""Critics of Sarafian et al. 2021: parameter counts, a loop over members and samples, contexts, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lit_metarl.config import load_config
from lit_metarl.nn import (
    CriticFactory,
    D2RLCritic,
    EnsembleCriticMLP,
    HyperCritic,
    ResNetCritic,
    ResNetFeatures,
)
from lit_metarl.nn.hypernetwork import dynamic_mlp
from lit_metarl.types import ConfigError, Sizes

CONFIGS = Path(__file__).parents[2] / "configs" / "critic"
AS = {"meta": ("action",), "base": ("obs",)}
SMALL = {"widths": (6, 9), "blocks": 1, "hidden": (5,)}
RANDOM = {"meta": (), "base": ("obs", "action"), "embedding": 5}
EVERY: dict[str, CriticFactory] = {
    "sa": HyperCritic(**SMALL),
    "as": HyperCritic(**SMALL | AS),
    "random": HyperCritic(**SMALL | RANDOM),
    "mlp": EnsembleCriticMLP((5, 4)),
    "features": ResNetFeatures((6, 9), 1, 3, (5,)),
    "features_td3": ResNetFeatures((6,), 2, None, (5,)),
    "resnet": ResNetCritic(6, 3),
    "d2rl": D2RLCritic((5, 4, 3)),
}


def critic_of(name: str) -> CriticFactory:
    """The factory of a shipped config, by the command line's parser."""
    parser = LightningArgumentParser()
    parser.add_argument("--critic", type=CriticFactory)
    return parser.instantiate_classes(
        parser.parse_object({"critic": load_config(CONFIGS / f"{name}.yaml")["model"]["init_args"]["critic"]})
    ).critic


@pytest.mark.parametrize(
    ("name", "counts"),  # of one Q function on Hopper, HalfCheetah and Ant, in the released networks
    [
        ("sa_hyper", ("7.75M", "8.54M", "9.09M")),
        ("as_hyper", ("9.85M", "11.42M", "36.09M")),
        ("mlp_standard", (69_889, 72_193, 96_769)),
        ("mlp_small", (4_097, 6_401, 30_977)),
        ("mlp_large", ("8.46M", "8.49M", "8.76M")),
        ("res35", ("4.61M", "4.61M", "4.64M")),
        ("q_d2rl", (212_225, 221_441, 319_745)),
        ("resnet_features", ("6.19M", "6.19M", "6.21M")),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, counts: tuple[int | str, ...]) -> None:
    factory = critic_of(name)
    with torch.device("meta") if name in ("sa_hyper", "as_hyper", "mlp_large") else torch.device("cpu"):
        critics = [factory.build(Sizes(*sizes)) for sizes in ((11, 3), (17, 6), (111, 8))]
    for critic, count in zip(critics, counts, strict=True):
        own = sum(parameter.numel() for parameter in critic.parameters()) // 2
        assert (own if isinstance(count, int) else f"{own / 1e6:.2f}M") == count


def test_parts_of_the_published_hypernetwork() -> None:
    with torch.device("meta"):
        critic = HyperCritic().build(Sizes(17, 6))
        features = ResNetFeatures((1024,), 4, None).build(Sizes(17, 6))
    assert sum(p.numel() for p in critic.hypernetwork.primary.parameters()) // 2 == 6_173_696
    assert sum(p.numel() for p in features.parameters()) // 2 == 8_439_058  # released with TD3


@pytest.mark.parametrize("name", EVERY)
def test_a_critic_has_the_contract_of_all(name: str) -> None:
    torch.manual_seed(0)
    critic = EVERY[name].build(Sizes(3, 2))
    obs, action = torch.randn(4, 7, 3), torch.randn(4, 7, 2)
    value = critic(obs, action)
    assert value.shape == (2, 4, 7)
    assert critic(obs[0], action[0]).shape == (2, 7)
    for b, m in ((0, 0), (3, 5)):  # every transition for itself
        torch.testing.assert_close(critic(obs[b, m][None], action[b, m][None])[:, 0], value[:, b, m])
    value[0].sum().backward()  # members share nothing
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert parameter.shape[0] == 2
        assert not parameter.grad[1].any()
    assert critic.double()(obs.double(), action.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert critic.float()(obs, action).dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_every_input_matters(name: str) -> None:
    torch.manual_seed(0)
    critic = EVERY[name].build(Sizes(3, 2)).double()
    for parameter in critic.parameters():
        parameter.data.normal_(std=0.5)
    obs, action = (torch.randn(64, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    for gradient in torch.autograd.grad(critic(obs, action).sum(), (obs, action)):
        assert gradient.abs().amin(-1).count_nonzero() > 32


def test_layers_of_d2rl_by_hand() -> None:
    critic = D2RLCritic((5, 4)).build(Sizes(3, 2))
    obs, action = torch.randn(7, 3), torch.randn(7, 2)
    p = {name: value[1] for name, value in critic.trunk.named_parameters()}
    x = torch.cat([obs, action], -1)
    first = torch.relu(x @ p["layers.0.weight"] + p["layers.0.bias"])
    second = torch.relu(torch.cat([first, x], -1) @ p["layers.1.weight"] + p["layers.1.bias"])
    expected = (second @ p["head.weight"] + p["head.bias"])[:, 0]
    torch.testing.assert_close(critic(obs, action)[1], expected)


def with_task(factory: HyperCritic, transitions: int) -> tuple[Tensor, Tensor]:
    """Values of two tasks at once, and of each alone."""
    torch.manual_seed(0)
    critic = factory.build(Sizes(3, 2, context=4)).double()
    shapes = (2, transitions, 3), (2, transitions, 2), (2, 4)
    obs, action, context = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    each = [critic(obs[task], action[task], context[task]) for task in range(2)]
    assert not torch.allclose(each[0], critic(obs[0], action[0], context[1]), rtol=1e-3)
    return critic(obs, action, context), torch.stack(each, 1)


@pytest.mark.parametrize(
    ("meta", "base"),
    [
        (("obs",), ("action", "context")),  # PEARL's Q
        (("obs", "context"), ("action",)),
        (("context",), ("obs", "action")),  # weights once per task
        (("obs", "action"), ("context",)),  # the base is the same for all transitions of a task
    ],
    ids=str,
)
def test_a_context_may_be_either_input(meta: tuple[str, ...], base: tuple[str, ...]) -> None:
    factory = HyperCritic(**SMALL | {"meta": meta, "base": base})
    for transitions in (5, 2):  # as many as tasks: either axis could be taken for the other
        torch.testing.assert_close(*with_task(factory, transitions))
    if meta == ("context",):
        critic = factory.build(Sizes(3, 2, context=4))
        weights = critic.weights(torch.randn(2, 5, 3), torch.randn(2, 5, 2), torch.randn(2, 4))
        assert weights["0.weight"].shape == (2, 2, 5, 5)  # members, tasks, in, out


def test_weights_are_values() -> None:
    critic = EVERY["sa"].build(Sizes(3, 2))
    obs, action = torch.randn(7, 3), torch.randn(7, 2)
    weights = critic.weights(obs, action)
    torch.testing.assert_close(critic.value(weights, obs, action), critic(obs, action))
    torch.testing.assert_close(dynamic_mlp(weights, action.expand(2, -1, -1), ["0", "1"])[..., 0], critic(obs, action))


@pytest.mark.parametrize(
    ("settings", "context", "message"),
    [
        ({"meta": ("obs", "obs")}, 0, r"critic.meta = \('obs', 'obs'\) cannot be used: choose from obs, action and"),
        ({"base": ("acton",)}, 0, r"critic.base = \('acton',\) cannot be used: choose from"),
        ({"base": ()}, 0, r"critic.base = \(\) cannot be used: the dynamic network needs an input"),
        ({"meta": ()}, 0, r"critic.meta = \(\) cannot be used: name the primary network's input, or give an embedding"),
        ({"embedding": 5}, 0, "or give an embedding instead"),
        ({"meta": (), "base": ("obs", "action"), "embedding": -1}, 0, "critic.embedding = -1 cannot be used"),
        ({}, 4, r"together they must be action, context, obs"),
        ({"base": ("action", "context")}, 0, r"together they must be action, obs"),
    ],
)
def test_inputs_that_cannot_be_are_named(settings: dict[str, object], context: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HyperCritic(**SMALL | settings).build(Sizes(3, 2, context=context))
