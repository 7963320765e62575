"""Step sizes in function space: the step found has the KL asked for, whatever the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meta_cases import random_rounds

from lit_metarl.algorithms import MAML
from lit_metarl.algorithms.meta_policy_gradient import POLICY, below
from lit_metarl.nn import CategoricalMLP, GaussianMLP, HyperGaussian
from lit_metarl.optim.step_size import matched_step_size, step_kl
from lit_metarl.types import ConfigError, Trajectories


def case(policy: Any, **sizes: Any) -> tuple[Any, ...]:
    torch.manual_seed(0)
    module = MAML(3, 2, policy=policy, **sizes).double()
    (data, *_) = random_rounds(MAML(3, 2, policy=GaussianMLP((4,)), num_actions=None).double(), tasks=3)
    context = torch.linspace(-1, 1, 3)[:, None].double()[:, : sizes.get("context_dim", 0)]
    params = below(POLICY, module.before_adaptation(context))
    action = data.action
    if sizes.get("num_actions"):
        action = torch.randint(sizes["num_actions"], data.mask.shape)
    data = data._replace(context=context, action=action)
    return module.inner, params, data, module.process(data), module.adapted_parameters


POLICIES = {
    "gaussian": (GaussianMLP((6,)), {}),
    "categorical": (CategoricalMLP((6,)), {"num_actions": 4}),
    "hyper": (HyperGaussian(hidden=(6,), widths=(8,), blocks=1), {"context_dim": 1}),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kl", [1e-6, 1e-2, 0.3])
def test_the_step_found_has_the_kl_asked_for(name: str, kl: float) -> None:
    policy, sizes = POLICIES[name]
    inner, params, data, signals, adapted = case(policy, **sizes)
    size = matched_step_size(inner, params, adapted, data, signals, kl)
    found = float(step_kl(inner, params, dict.fromkeys(params, size), data, signals))
    assert found == pytest.approx(kl, rel=0.01)
    assert float(step_kl(inner, params, dict.fromkeys(params, 0.5 * size), data, signals)) < 0.5 * kl


def test_the_kl_is_that_of_the_policies_before_and_after() -> None:
    inner, params, data, signals, _ = case(GaussianMLP((6,)))
    sizes = dict.fromkeys(params, 0.3)
    after = inner.adapt(params, sizes, data, signals)
    total, steps = 0.0, 0.0
    for task in range(3):
        one = Trajectories(*(x[task] for x in data))
        old, new = (inner.distribution({n: v[task] for n, v in p.items()}, one) for p in (params, after))
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(
            normal(old.mean, old.log_std.exp()), normal(new.mean, new.log_std.exp())
        ).sum(-1)
        total += (kl * one.mask).sum().item()
        steps += float(one.mask.sum())
    assert float(step_kl(inner, params, sizes, data, signals)) == pytest.approx(total / steps, rel=1e-9)


def test_parameters_that_do_not_adapt_stay() -> None:
    inner, params, data, signals, adapted = case(GaussianMLP((6,)))
    few = [name for name in adapted if "log_std" in name]
    sizes = {names: matched_step_size(inner, params, which, data, signals, 0.01)
             for names, which in (("few", few), ("all", adapted))}  # fmt: skip
    assert sizes["few"] > sizes["all"]


def test_a_step_that_cannot_be_had_is_refused() -> None:
    inner, params, data, signals, adapted = case(GaussianMLP((6,)))
    flat = signals._replace(advantage=torch.zeros_like(signals.advantage))
    with pytest.raises(ConfigError, match=r"kl = 0\.01 .* is there an advantage to follow"):
        matched_step_size(inner, params, adapted, data, flat, 0.01)
    with pytest.raises(ConfigError, match=r"kl = 0\.0 .* positive length"):
        matched_step_size(inner, params, adapted, data, signals, 0.0)
