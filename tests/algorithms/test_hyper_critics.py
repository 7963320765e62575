"""Hypernetwork critics under actor-critics: the actor's step differentiates the dynamic network only; sharing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from critic_cases import explicit_kernel, params_of
from replay_cases import A, Batches, M, O, quiet_trainer, random_batch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_metarl.algorithms import SAC, TD3, ActorCritic, PreconditionedSAC
from lit_metarl.diagnostics.kernels import JVP, Exact, Layerwise, exact_kernel
from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, HyperCritic, TanhGaussianMLP
from lit_metarl.types import ConfigError, Sizes

# these fits have nothing to evaluate
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

SA = HyperCritic(hidden=(8,), widths=(16, 32), blocks=1)
AS = HyperCritic(("action",), ("obs",), hidden=(8,), widths=(16, 32), blocks=1)


def make(cls: type[ActorCritic], critic: Any = SA, **kwargs: Any) -> Any:
    torch.manual_seed(3)
    module = cls(O, A, actor=(TanhGaussianMLP if cls is SAC else DeterministicMLP)([6]), critic=critic, **kwargs)
    optimizers = module.configure_optimizers()
    module.optimizer = lambda number: optimizers[number]
    return module


def flops(of: Any, *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        of(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("cls", [SAC, TD3])
def test_the_primary_has_no_backward_pass_in_the_actors_step(cls: type[ActorCritic]) -> None:
    module, batch, graphs = make(cls), random_batch(M), []
    hypernetwork = module.critic.hypernetwork
    hypernetwork.register_forward_hook(
        lambda net, inputs, weights: graphs.append({weight.requires_grad for weight in weights.values()})
    )
    module.updates = 2
    module.update_critic(batch)
    module.update_actor(batch)
    assert graphs == [{True}, {False}]  # of both losses; the targets have a network of their own

    forward = flops(hypernetwork, batch.obs)
    rest = flops(lambda: module.critic.value(module.critic.weights(batch.obs, batch.action), batch.obs, batch.action))
    rest += flops(module.actor, batch.obs) - forward
    actor = flops(module.update_actor, batch)
    assert forward < actor < forward + 4 * rest
    assert rest < 0.1 * forward
    assert flops(module.update_critic, batch) > 3.5 * forward  # the critics' own and the targets' forward, a backward


@pytest.mark.parametrize("critic", [SA, AS, EnsembleCriticMLP([8])], ids=["SA", "AS", "MLP"])
def test_the_actors_gradient_is_that_of_the_whole_critic(critic: Any) -> None:
    module, obs = make(SAC, critic), torch.randn(M, O)
    action = torch.randn(M, A, requires_grad=True)
    own, value = module.action_value(obs, action), module.critic(obs, action)
    assert torch.equal(own, value)
    assert torch.equal(*(torch.autograd.grad(q.sum(), action)[0] for q in (own, value)))
    module.zero_grad()
    own = module.action_value(obs, action.detach().requires_grad_())
    own.sum().backward()
    assert all(parameter.grad is None for parameter in module.critic.parameters())


def gradients(module: Any, batch: Any) -> dict[str, Tensor]:
    """What one update's steps were taken along."""
    torch.manual_seed(5)
    module.update(batch)
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def test_sharing_shows_the_actor_the_critics_before_their_step() -> None:
    batch = random_batch(M)
    plain, shared = gradients(make(SAC), batch), gradients(make(SAC, share_weights=True), batch)
    for name, value in plain.items():
        assert torch.equal(value, shared[name]) is not name.startswith("actor"), name
    # Where the critics' step is nothing, there is no difference.
    still = [gradients(make(SAC, critic_lr=1e-30, share_weights=share), batch) for share in (False, True)]
    assert all(torch.equal(value, still[1][name]) for name, value in still[0].items())
    saved = [flops(make(SAC, share_weights=share).update, batch) for share in (False, True)]
    assert saved[0] - saved[1] == flops(make(SAC).critic.hypernetwork, batch.obs)


@pytest.mark.parametrize("critic", [AS, EnsembleCriticMLP([8])], ids=["AS", "MLP"])
def test_weights_that_cannot_be_shared_are_refused(critic: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.share_weights = True cannot be used: only a HyperCritic"):
        make(SAC, critic, share_weights=True)


@pytest.mark.parametrize(
    "critic", [SA, AS, HyperCritic((), ("obs", "action"), (8,), (16, 32), 1, embedding=5)], ids=["SA", "AS", "random"]
)
def test_its_tangent_kernel_is_right_however_it_is_had(critic: HyperCritic) -> None:
    """By every way there is, for NTKMonitor and preconditioning, which treats what consists of linear layers."""
    torch.manual_seed(0)
    network = critic.build(Sizes(O, A)).double()
    params, obs, action = params_of(network), torch.randn(4, O), torch.randn(4, A)
    expected = explicit_kernel(network, params, obs.double(), action.double())
    torch.testing.assert_close(exact_kernel(network, params, obs, action), expected)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(Exact().kernel(network, params, obs, action, generator), expected)
    sketch = JVP(directions=1000).kernel(network, params, obs, action, generator)
    assert (sketch - expected).abs().max() < 0.2 * expected.amax()
    module = {"actor": TanhGaussianMLP([6]), "critic": critic}
    if critic.embedding:
        with pytest.raises(ConfigError, match=r"model.critic = HyperEnsembleCritic cannot be .*; use JVP"):
            PreconditionedSAC(O, A, **module)
    else:
        torch.testing.assert_close(Layerwise().kernel(network, params, obs, action, generator), expected)
        PreconditionedSAC(O, A, **module)


def test_bf16_learns_in_float32() -> None:
    module = SAC(O, A, TanhGaussianMLP([6]), SA)
    quiet_trainer(precision="bf16-mixed").fit(module, Batches([random_batch(3, M)]))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_cuda(precision: str) -> None:
    module: nn.Module = SAC(O, A, TanhGaussianMLP([6]), SA)
    quiet_trainer(accelerator="cuda", precision=precision).fit(module, Batches([random_batch(3, M)]))
    assert all(p.isfinite().all() for p in module.parameters())
