"""Policies that a hypernetwork makes: of the context once per task, or of the observation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meta_cases import attach
from torch import Tensor

from lit_metarl.algorithms import PEARL
from lit_metarl.nn import HyperActor, HyperCritic, ProductOfGaussians, Released
from lit_metarl.nn.actors import HyperTanhGaussian, ReversedHyperTanhGaussian
from lit_metarl.nn.conditioning import condition, told_call
from lit_metarl.nn.recipe import from_recipe, recipe_of
from lit_metarl.types import ConfigError, Sizes, TaskMinibatch, Transition

O, A, Z, B, M, C = 5, 2, 3, 4, 6, 5  # noqa: E741
SIZES = Sizes(O, A, None, Z)
SMALL: dict[str, Any] = {"hidden": (7,), "widths": (8, 9), "blocks": 1}


def build(**settings: Any) -> Any:
    torch.manual_seed(0)
    return HyperActor(**SMALL | settings).build(SIZES).double()


def act(actor: Any, obs: Tensor, z: Tensor) -> Any:
    params = dict(actor.named_parameters())
    return told_call(actor, params, obs, condition(actor, params, z))


def written_out(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-std of one input ``[base]``, Eq. (1) of Sarafian et al. 2021 layer by layer."""

    def layer(name: str, value: Tensor) -> Tensor:
        out = torch.zeros_like(weights[f"{name}.bias"])
        for j in range(len(out)):
            dot = sum(weights[f"{name}.weight"][i, j] * value[i] for i in range(len(value)))
            out[j] = dot * weights[f"{name}.gain"][j] + weights[f"{name}.bias"][j]
        return out

    features = torch.relu(layer("0", x))
    return layer("mean", features), layer("log_std", features).clamp(-20.0, 2.0)


@torch.no_grad()
def test_it_is_a_dynamic_network_of_every_tasks_own() -> None:
    actor = build()
    obs, z = torch.randn(B, M, O, dtype=torch.float64), torch.randn(B, Z, dtype=torch.float64)
    policy = act(actor, obs, z)
    for task in range(B):
        weights = actor.hypernetwork(z[task])
        for m in range(M):
            mean, log_std = written_out(weights, obs[task, m])
            torch.testing.assert_close(policy.mean[task, m], mean)
            torch.testing.assert_close(policy.log_std[task, m], log_std)
    assert not torch.allclose(policy.mean[0], act(actor, obs, z + 1.0).mean[0])


@torch.no_grad()
def test_the_reverse_makes_weights_of_observations() -> None:
    actor = build(meta=("obs",), base=("context",))
    assert isinstance(actor, ReversedHyperTanhGaussian)
    obs, z = torch.randn(B, M, O, dtype=torch.float64), torch.randn(B, Z, dtype=torch.float64)
    policy = act(actor, obs, z)
    mean, log_std = written_out(actor.weight_maker(obs[1, 2]), z[1])
    torch.testing.assert_close(policy.mean[1, 2], mean)
    torch.testing.assert_close(policy.log_std[1, 2], log_std)


def test_heads_are_initialised_as_released() -> None:
    """All weights at most their bound, which they come close to; the first layer's is that of hidden layers."""
    torch.manual_seed(0)
    actor = HyperActor(hidden=(20,), widths=(64,), blocks=1).build(SIZES)
    hypernetwork = actor.hypernetwork
    start = 0
    for name, bound in {"0": 0.05, "mean": 0.008, "log_std": 0.001}.items():
        size = sum(hypernetwork.layers[name].parts)
        weight = hypernetwork.heads.weight[..., start : start + size].detach().abs()
        start += size
        assert 0.97 * bound < float(weight.max()) <= bound
    assert start == hypernetwork.heads.weight.shape[-1]
    assert float(hypernetwork.heads.bias.detach().abs().max()) == 0.0
    first = hypernetwork.primary[0].weight.detach().abs().max()
    assert 0.9 * 0.5 * Z**-0.5 < float(first) <= 0.5 * Z**-0.5


def test_several_hidden_layers() -> None:
    actor = build(hidden=(7, 6))
    assert list(actor.hypernetwork.layers) == ["0", "1", "mean", "log_std"]
    assert act(actor, torch.randn(B, M, O).double(), torch.randn(B, Z).double()).mean.shape == (B, M, A)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta": ("obs",), "base": ("obs",)}, r"actor\.meta, actor\.base = \('obs', 'obs'\)"),
        ({"meta": (), "base": ("obs", "context")}, r"neither empty"),
        ({"hidden": ()}, r"actor\.hidden = \(\)"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)
    with pytest.raises(ConfigError, match=r"actor = 'HyperActor' .* it needs a context"):
        HyperActor(**SMALL).build(Sizes(O, A))


def test_it_is_written_in_a_config() -> None:
    factory = HyperActor(initialisation=Released(primary_gain=0.7))
    assert from_recipe(recipe_of(factory)).initialisation == Released(primary_gain=0.7)


# Hyper-PEARL ---------------------------------------------------------------------------------------------------------

CRITIC = {"hidden": (6,), "widths": (8,), "blocks": 1}
Q = HyperCritic(meta=("obs",), base=("action", "context"), **CRITIC)
V = HyperCritic(meta=("obs",), base=("action", "context"), members=1, **CRITIC)
VARIANTS: dict[str, dict[str, Any]] = {
    "hyper": {"actor": HyperActor(**SMALL), "critic": Q, "value": V},
    "two critics": {"actor": HyperActor(**SMALL), "critic": Q},
    "combine": {
        "actor": HyperActor(**SMALL),
        "critic": HyperCritic(meta=("obs", "context"), base=("action",), **CRITIC),
        "value": V,
    },
    "reverse": {"actor": HyperActor(meta=("obs",), base=("context",), **SMALL), "critic": Q, "value": V},
}


def minibatch() -> TaskMinibatch:
    def transitions(count: int) -> Transition:
        obs, action, reward, next_obs = (torch.randn(B, count, *size) for size in ((O,), (A,), (), (O,)))
        return Transition(obs, torch.tanh(action), reward, next_obs, reward > 1, reward < 0)

    return TaskMinibatch(transitions(M), transitions(C), torch.zeros(B, 0))


def hyper_pearl(name: str = "hyper") -> PEARL:
    torch.manual_seed(0)
    return attach(PEARL(O, A, encoder=ProductOfGaussians(latent=Z, hidden=[8]), **VARIANTS[name]))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_updates_all_its_networks(name: str) -> None:
    module = hyper_pearl(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    metrics = module.update(minibatch())
    assert all(value.isfinite() for value in metrics.values())
    assert ("value_loss" in metrics) is (name != "two critics")
    changed = {key.split(".")[0] for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    parts = {"target_critic", "log_temperature"} if name == "two critics" else {"value", "target_value"}
    assert changed == {"actor", "critic", "encoder"} | parts


def test_a_value_network_of_observation_and_z() -> None:
    module = hyper_pearl()
    assert module.value.hypernetwork.layers["0"].inputs == Z  # base = z alone: there is no action
    assert module.critic.hypernetwork.layers["0"].inputs == A + Z


def count_rows(module: PEARL) -> list[int]:
    """Rows that each call of the policy's primary network gets, as they come."""
    rows: list[int] = []
    module.actor.hypernetwork.primary.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    return rows


def test_the_policys_weights_are_made_once_per_task() -> None:
    module = hyper_pearl()
    rows = count_rows(module)
    module.update(minibatch())
    assert rows == [B]  # one call, one row a task, for M transitions each
    rows.clear()
    generator = torch.Generator().manual_seed(0)
    acting = module.begin_round(module.before_adaptation(torch.zeros(B, 0)), 3, generator)
    for _ in range(20):
        module.sample_actions(acting, torch.randn(B, 3, O), generator)
    assert rows == [B * 3]  # one z for each of three episodes, for all their steps
    two = hyper_pearl("two critics")
    rows = count_rows(two)
    two.update(minibatch())
    assert rows == [B, B]  # once more for the target's action


def test_weights_per_task_are_those_per_sample() -> None:
    """What the released code does, z repeated for every transition, comes to the same to rounding."""
    module = hyper_pearl()
    obs, z = torch.randn(B, M, O), torch.randn(B, Z)
    once = module._distribution(obs, z)
    hypernetwork = module.actor.hypernetwork
    each = module.actor(obs.flatten(0, 1), hypernetwork(z.repeat_interleave(M, dim=0)))
    torch.testing.assert_close(once.mean.flatten(0, 1), each.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(once.log_std.flatten(0, 1), each.log_std, atol=1e-6, rtol=1e-5)


def test_the_policy_can_be_loaded_and_told_z() -> None:
    module = hyper_pearl()
    assert isinstance(module.actor, HyperTanhGaussian)
    state = module.policy_state()
    again = from_recipe(state).build(Sizes(**state["sizes"]))
    again.load_state_dict(state["state_dict"])
    obs, z = torch.randn(B, M, O), torch.randn(B, Z)
    assert torch.equal(act(again, obs, z).mean, module._distribution(obs, z).mean)
