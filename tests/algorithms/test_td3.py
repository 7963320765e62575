"""TD3: one update against plain torch, delays, noise, time limits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from replay_cases import A, Batches, M, O, quiet_trainer, random_batch
from torch import Tensor, nn

from lit_metarl.algorithms import SAC, TD3
from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.nn.recipe import from_recipe
from lit_metarl.types import ConfigError, Sizes, Transition

# these fits have nothing to evaluate
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

GAMMA, TAU, LR = 0.97, 0.1, 1e-3


def make(**kwargs: Any) -> TD3:
    torch.manual_seed(3)
    networks = {"actor": DeterministicMLP([12]), "critic": EnsembleCriticMLP([12, 12], initialisation="torch")}
    return TD3(O, A, **{"actor_lr": LR, "critic_lr": LR, "gamma": GAMMA, "polyak": TAU} | networks | kwargs)


class PlainTD3:
    """An independent TD3: two separate critics, library Adam, the order of the authors' ``train``."""

    def __init__(self, td3: TD3) -> None:
        self.actor = copy.deepcopy(td3.actor.trunk)
        self.critics = [self._critic(td3, e) for e in range(2)]
        self.actor_target, self.targets = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.critic_adam = torch.optim.Adam([p for q in self.critics for p in q.parameters()], lr=LR)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=LR)
        self.total_it = 0

    @staticmethod
    def _critic(td3: TD3, member: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for layer in td3.critic.trunk[::2]:
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            linear.weight.data = layer.weight[member].T.detach().clone()
            linear.bias.data = layer.bias[member, 0].detach().clone()
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def update(self, b: Transition, noise: Tensor) -> None:
        self.total_it += 1
        with torch.no_grad():
            eps = (noise * 0.2).clamp(-0.5, 0.5)
            a2 = (torch.tanh(self.actor_target(b.next_obs)) + eps).clamp(-1, 1)
            q2 = torch.min(*[q(torch.cat([b.next_obs, a2], -1))[:, 0] for q in self.targets])
            y = b.reward + GAMMA * (~b.terminated) * q2
        self.critic_adam.zero_grad()
        sum(F.mse_loss(q(torch.cat([b.obs, b.action], -1))[:, 0], y) for q in self.critics).backward()
        self.critic_adam.step()
        if self.total_it % 2 == 0:
            self.actor_adam.zero_grad()
            (-self.critics[0](torch.cat([b.obs, torch.tanh(self.actor(b.obs))], -1)).mean()).backward()
            self.actor_adam.step()
            online, slow = [self.actor, *self.critics], [self.actor_target, *self.targets]
            for network, target in zip(online, slow, strict=True):
                for p, t in zip(network.parameters(), target.parameters(), strict=True):
                    t.data.copy_(TAU * p.data + (1 - TAU) * t.data)


@pytest.mark.parametrize("updates", [1, 2, 5])  # the critics alone; the actor and the targets too; over and over
def test_updates_equal_an_independent_computation(updates: int) -> None:
    td3 = make()
    plain = PlainTD3(td3)
    torch.manual_seed(7)
    block = random_batch(updates, M)
    torch.manual_seed(11)
    quiet_trainer().fit(td3, Batches([block]))
    torch.manual_seed(11)
    for u in range(updates):
        plain.update(Transition(*(f[u] for f in block)), torch.randn(M, A))
    close = {"atol": 1e-6, "rtol": 1e-6}
    for own, reference in ((td3.actor, plain.actor), (td3.target_actor, plain.actor_target)):
        for mine, theirs in zip(own.trunk.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, **close)
    for own, reference in ((td3.critic, plain.critics), (td3.target_critic, plain.targets)):
        for member, q in enumerate(reference):
            for layer, linear in zip(own.trunk[::2], q[::2], strict=True):
                torch.testing.assert_close(layer.weight[member].T, linear.weight, **close)
                torch.testing.assert_close(layer.bias[member, 0], linear.bias, **close)


def test_actor_and_targets_wait_for_their_turn() -> None:
    td3 = make(policy_delay=3)
    td3.optimizer = lambda number: optimizers[number]
    optimizers = td3.configure_optimizers()
    slow = [*td3.actor.parameters(), *td3.target_actor.parameters(), *td3.target_critic.parameters()]
    before = [p.clone() for p in slow]
    for update in (1, 2):
        assert "actor_loss" not in td3.update(random_batch(M)), update
        assert all(torch.equal(a, b) for a, b in zip(before, slow, strict=True))
    metrics = td3.update(random_batch(M))
    assert not any(value.requires_grad for value in metrics.values())
    assert {"actor_loss", "critic_loss", "q_value"} <= metrics.keys()
    assert not any(torch.equal(a, b) for a, b in zip(before, slow, strict=True))
    assert all(p.grad is None for p in (*td3.target_critic.parameters(), *td3.target_actor.parameters()))


def test_exploration_noise_comes_from_the_generator_and_stays_within_bounds() -> None:
    td3, obs = make(exploration_noise=0.5).requires_grad_(False), torch.randn(4000, O)
    actions = [td3.explore(obs, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(actions[0], actions[1])
    assert not torch.equal(actions[0], actions[2])
    assert actions[0].abs().max() == 1.0
    noise = actions[0] - td3.act(obs)
    inside = actions[0].abs().amax(-1) < 1.0
    assert 0.25 < float(noise[inside].std()) < 0.5  # cut, so less than 0.5
    assert torch.equal(make(exploration_noise=0.0).explore(obs, torch.Generator()), td3.act(obs))


def test_the_value_of_a_known_world_goes_on_through_a_time_limit() -> None:
    """Reward 1 for ever, cut by a time limit: Q is 1/(1 − γ). Taking the limit for an end must get it wrong."""
    values = {}
    for treated_as_end in (False, True):
        torch.manual_seed(0)
        td3 = TD3(1, 1, DeterministicMLP([8]), EnsembleCriticMLP([16]), gamma=0.5, critic_lr=1e-2, polyak=0.2)
        ended = torch.arange(M) % 2 == 0
        still = torch.zeros(M, 1)
        batch = Transition(still, torch.rand(M, 1) * 2 - 1, torch.ones(M), still, ended & treated_as_end, ended)
        quiet_trainer().fit(td3, Batches([Transition(*(f.expand(400, *f.shape) for f in batch))]))
        with torch.no_grad():
            values[treated_as_end] = float(td3.critic(batch.obs, batch.action).mean())
    assert values[False] == pytest.approx(2.0, rel=0.02)
    assert values[True] < 1.6


def test_bf16_learns_in_float32() -> None:
    td3 = make()
    quiet_trainer(precision="bf16-mixed").fit(td3, Batches([random_batch(4, M)]))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in td3.parameters())
    assert td3.act(torch.randn(3, O)).dtype == torch.float32


def test_networks_are_the_defaults_where_none_are_given() -> None:
    td3 = TD3(O, A)
    assert from_recipe(td3.recipe) == DeterministicMLP([256, 256])
    expected = EnsembleCriticMLP().build(Sizes(O, A)).state_dict()
    assert {n: v.shape for n, v in td3.critic.state_dict().items()} == {n: v.shape for n, v in expected.items()}
    assert float(td3.critic.trunk[2].weight.detach().abs().max()) == pytest.approx(256**-0.5, rel=1e-2)


def test_any_actor_with_a_mode_serves_but_sac_needs_a_distribution() -> None:
    assert TD3(O, A, TanhGaussianMLP([8])).act(torch.zeros(1, O)).shape == (1, A)
    with pytest.raises(ConfigError, match=r"model.actor = DeterministicMLP.* cannot be used: SAC samples actions"):
        SAC(O, A, DeterministicMLP([8]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("policy_delay", 0), ("exploration_noise", -0.1), ("target_noise", 3.0), ("target_noise_clip", -1.0)],
)
def test_impossible_values_name_the_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"model.{key} = {value!r}"):
        TD3(O, A, **{key: value})
