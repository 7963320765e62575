"""The policy of Hyper-MAML: of every task's own weights, and adapted as a function of the hypernetwork's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_cases import attach
from torch import Tensor
from torch.func import functional_call, grad, vmap

import lit_metarl
from lit_metarl.algorithms import MAML, TRPOMAML, MetaPolicyGradient
from lit_metarl.algorithms.base import policy_state_of
from lit_metarl.algorithms.meta_policy_gradient import POLICY, below
from lit_metarl.nn import GaussianMLP, HyperGaussian
from lit_metarl.nn.conditioning import condition, told_call
from lit_metarl.nn.recipe import recipe_of
from lit_metarl.types import ConfigError, MetaBatch, Params, Sizes, Trajectories

B, N, T, O, A, C = 3, 4, 5, 4, 2, 1  # noqa: E741
FACTORY = HyperGaussian(hidden=(6,), widths=(8,), blocks=1)


def make(cls: type[MetaPolicyGradient] = MAML, policy: Any = FACTORY, **settings: Any) -> Any:
    torch.manual_seed(0)
    return attach(cls(O, A, policy=policy, context_dim=C, **settings).double())


def trajectories(module: Any, context: Tensor, adaptation: Any = None, seed: int = 0) -> Trajectories:
    torch.manual_seed(seed)
    obs, reward = torch.randn(B, N, T, O).double(), torch.randn(B, N, T).double()
    known = module.before_adaptation(context) if adaptation is None else adaptation
    action, log_prob = module.sample_actions(known, obs, torch.Generator().manual_seed(seed))
    ends = torch.zeros(B, N, O).double(), torch.zeros(B, N, dtype=torch.bool)
    return Trajectories(obs, action, reward, log_prob, torch.ones_like(reward), *ends, context)


CONTEXT = torch.tensor([[-1.0], [0.0], [1.2]]).double()


@torch.no_grad()
def test_each_task_has_the_mean_of_its_own_weights() -> None:
    module = make()
    obs = torch.randn(B, N, O).double()
    mode = module.mode_actions(module.before_adaptation(CONTEXT), obs)
    for task in range(B):
        weights = module.policy.hypernetwork(CONTEXT[task])
        hidden = torch.relu(obs[task] @ weights["0.weight"] * weights["0.gain"] + weights["0.bias"])
        expected = hidden @ weights["1.weight"] * weights["1.gain"] + weights["1.bias"]
        torch.testing.assert_close(mode[task], expected)
    assert not torch.allclose(mode[0], module.mode_actions(module.before_adaptation(CONTEXT + 1), obs)[0])


def test_vmap_over_tasks_equals_a_loop_to_second_order() -> None:
    policy = make().policy
    obs, action = torch.randn(B, N, O).double(), torch.randn(B, N, A).double()
    params = {name: value.detach() for name, value in policy.named_parameters()}

    def adapted_fit(start: Params, context: Tensor, x: Tensor, a: Tensor) -> Tensor:
        def fit(p: Params) -> Tensor:
            return told_call(policy, p, x, condition(policy, p, context)).log_prob(a).mean()

        step = grad(fit)(start)
        return fit({name: value + 0.1 * step[name] for name, value in start.items()})

    together = vmap(grad(adapted_fit), in_dims=(None, 0, 0, 0))(params, CONTEXT, obs, action)
    for task in range(B):
        alone = grad(adapted_fit)(params, CONTEXT[task], obs[task], action[task])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][task], value, atol=1e-12, rtol=1e-9)
    assert float(together["hypernetwork.heads.weight"].abs().max()) > 0.0


def test_weights_are_made_once_per_task_and_round() -> None:
    module, calls = make(), []
    module.policy.hypernetwork.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    adaptation = module.before_adaptation(CONTEXT)
    assert len(calls) == 1
    for _ in range(20):
        module.sample_actions(adaptation, torch.randn(B, N, O).double(), torch.Generator())
    assert len(calls) == 1
    adapted = module.adapt(adaptation, trajectories(module, CONTEXT, adaptation))
    made = len(calls)
    module.mode_actions(adapted, torch.randn(B, N, O).double())
    assert len(calls) == made


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("policy", [FACTORY, GaussianMLP((6,), activation="relu")], ids=["hyper", "context"])
def test_it_adapts_and_is_meta_trained(policy: Any, first_order: bool) -> None:
    module = make(TRPOMAML, policy, inner_lr=0.05, first_order=first_order)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = module.before_adaptation(CONTEXT)
    data = trajectories(module, CONTEXT, first)
    second = module.adapt(first, data)
    own = below(POLICY, second)
    assert all(value.shape[0] == B for value in own.values())
    assert any(not torch.equal(value[0], value[1]) for value in own.values())  # every task its own step
    rounds = data, trajectories(module, CONTEXT, second, seed=1)
    gradient = module.meta_gradient(rounds, (first, second))
    assert all(value.isfinite().all() for value in gradient.values())
    batch = MetaBatch(rounds, (first, second), 0)
    module.trainer.log_every_n_steps = 10
    module.training_step(batch, 0)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert "policy.log_std" in changed
    assert len(changed) > 4


def test_first_and_second_order_differ() -> None:
    gradients = []
    for first_order in (False, True):
        module = make(inner_lr=0.05, first_order=first_order)
        first = module.before_adaptation(CONTEXT)
        data = trajectories(module, CONTEXT, first)
        second = module.adapt(first, data)
        rounds = data, trajectories(module, CONTEXT, second, seed=1)
        gradients.append(module.meta_gradient(rounds, (first, second)))
    name = "policy.hypernetwork.heads.weight"
    assert not torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-3)


def test_the_floor_of_the_log_std_lets_the_gradient_pass() -> None:
    policy = HyperGaussian(hidden=(6,), widths=(8,), blocks=1, initial_log_std=-50.0).build(Sizes(O, A, None, C))
    weights = policy.hypernetwork(torch.zeros(C))
    log_std = policy(torch.randn(7, O), weights).log_std
    torch.testing.assert_close(log_std, torch.full((7, A), float(np.log(1e-6))))
    log_std.sum().backward()
    assert (policy.log_std.grad == 7.0).all()


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'HyperGaussian'.* 5 discrete .*CategoricalMLP"):
        FACTORY.build(Sizes(O, 1, 5, C))
    with pytest.raises(ConfigError, match=r"'HyperGaussian'.* set data\.oracle_context true"):
        FACTORY.build(Sizes(O, A))


def test_it_is_loaded_again(tmp_path: Path) -> None:
    sizes = Sizes(O, A, None, C)
    policy = FACTORY.build(sizes)
    torch.save({"algorithm": {"policy": policy_state_of(recipe_of(FACTORY), policy, sizes)}}, tmp_path / "p.ckpt")
    loaded = lit_metarl.load_policy(tmp_path / "p.ckpt")
    obs, context = torch.randn(6, O), torch.tensor([0.4])
    params = dict(policy.named_parameters())
    expected = functional_call(policy, params, (obs, policy.hypernetwork(context))).mode_action.clamp(-1, 1)
    np.testing.assert_allclose(loaded(obs.numpy(), context.numpy()), expected.detach().numpy(), rtol=1e-6)
