"""SAC: one update against plain torch, the block loop against the reference's 1:1 loop, isolation of gradients."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from meta_cases import cached_autocast
from replay_cases import A, Batches, M, O, quiet_trainer, random_batch
from torch import Tensor, nn

from lit_metarl.algorithms import SAC
from lit_metarl.data import ReplayDataModule
from lit_metarl.data.streams import Stream, derive_seed, seed_global
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.nn.recipe import from_recipe
from lit_metarl.settings import check_precision
from lit_metarl.types import ConfigError, DivergenceError, Episodes, ReplayBlock, Sizes, Transition

# these fits have nothing to evaluate
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

GAMMA, TAU, LR = 0.97, 0.1, 1e-3


def make(**kwargs: Any) -> SAC:
    torch.manual_seed(3)
    own = {"actor": TanhGaussianMLP([12]), "critic": EnsembleCriticMLP([12, 12]), "temperature_lr": LR}
    return SAC(O, A, actor_lr=LR, critic_lr=LR, gamma=GAMMA, polyak=TAU, **(own | kwargs))


class PlainSAC:
    """An independent SAC: two separate critics, library Adam, textbook formulas."""

    def __init__(self, sac: SAC) -> None:
        self.actor = self._layers([sac.actor.trunk[0], sac.actor.trunk[2]])
        self.critics = [self._critic(sac, e) for e in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = sac.log_temperature.detach().clone().requires_grad_()
        self.critic_adam = torch.optim.Adam([p for q in self.critics for p in q.parameters()], lr=LR)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=LR)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=sac.temperature_lr)

    @staticmethod
    def _layers(linears: list[nn.Linear]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for linear in linears:
            layers += [copy.deepcopy(linear), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _critic(self, sac: SAC, member: int) -> nn.Sequential:
        linears = []
        for layer in sac.critic.trunk[::2]:
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            linear.weight.data, linear.bias.data = (
                layer.weight[member].T.clone().detach(),
                layer.bias[member, 0].clone().detach(),
            )
            linears.append(linear)
        return self._layers(linears)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.actor(obs).chunk(2, -1)
        log_std = -5 + 0.5 * 7 * (torch.tanh(raw) + 1)
        u = mean + log_std.exp() * noise
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
        return torch.tanh(u), (normal - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)

    def update(self, b: Transition, next_noise: Tensor, noise: Tensor) -> None:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            a2, lp2 = self.sample(b.next_obs, next_noise)
            q2 = torch.min(*[q(torch.cat([b.next_obs, a2], -1))[:, 0] for q in self.targets])
            y = b.reward + GAMMA * (~b.terminated) * (q2 - alpha * lp2)
        self.critic_adam.zero_grad()
        sum(F.mse_loss(q(torch.cat([b.obs, b.action], -1))[:, 0], y) for q in self.critics).backward()
        self.critic_adam.step()
        a, lp = self.sample(b.obs, noise)
        q = torch.min(*[q(torch.cat([b.obs, a], -1))[:, 0] for q in self.critics])
        self.actor_adam.zero_grad()
        (alpha * lp - q).mean().backward()
        self.actor_adam.step()
        self.alpha_adam.zero_grad()
        (self.log_alpha.exp() * (-lp.detach() + A)).mean().backward()
        self.alpha_adam.step()
        for target, online in zip(self.targets, self.critics, strict=True):
            for t, p in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - TAU) * t.data + TAU * p.data


@pytest.mark.parametrize("temperature_lr", [LR, 0.0])
def test_updates_equal_an_independent_computation(temperature_lr: float) -> None:
    sac = make(temperature_lr=temperature_lr)
    plain = PlainSAC(sac)
    torch.manual_seed(7)
    blocks = [random_batch(2, M), random_batch(2, M)]
    torch.manual_seed(11)
    quiet_trainer().fit(sac, Batches(blocks))
    torch.manual_seed(11)
    for block in blocks:
        for u in range(2):
            noise = torch.randn(M, A), torch.randn(M, A)
            plain.update(Transition(*(f[u] for f in block)), *noise)
    for layer, linear in zip(sac.actor.trunk[::2], plain.actor[::2], strict=True):
        torch.testing.assert_close(layer.weight, linear.weight, atol=1e-6, rtol=1e-6)
    for own, reference in ((sac.critic, plain.critics), (sac.target_critic, plain.targets)):
        for member, q in enumerate(reference):
            for layer, linear in zip(own.trunk[::2], q[::2], strict=True):
                torch.testing.assert_close(layer.weight[member].T, linear.weight, atol=1e-6, rtol=1e-6)
                torch.testing.assert_close(layer.bias[member, 0], linear.bias, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sac.log_temperature, plain.log_alpha, atol=1e-6, rtol=1e-6)
    assert torch.equal(sac.log_temperature, torch.tensor(math.log(0.1))) == (temperature_lr == 0.0)


def test_means_are_logged_every_so_many_steps() -> None:
    sac, logged, none = make(), [], torch.zeros(0)
    sac.trainer = quiet_trainer(log_every_n_steps=2)
    sac.log_points = lambda metrics: logged.append((sac.env_steps, metrics))

    def count(step: int, returns: Tensor = none, lengths: Tensor = none, **values: float) -> None:
        sac.metrics.add({name: torch.tensor(value) for name, value in values.items()})
        sac.finish_step(step, returns, lengths)

    count(10, loss=1.0)
    assert not logged
    count(20, torch.tensor([6.0, 8.0]), torch.tensor([3, 5]), loss=5.0)
    count(30, loss=7.0)
    count(40, loss=8.0)
    count(50, torch.tensor([1.0]), torch.tensor([9]), loss=9.0)
    sac.log_means()
    sac.log_means()  # there is nothing new
    assert logged == [
        (20, {"train/loss": 3.0, "train/return": 7.0, "train/episode_length": 4.0}),
        (40, {"train/loss": 7.5}),  # no episode ended
        (50, {"train/loss": 9.0, "train/return": 1.0, "train/episode_length": 9.0}),
    ]
    count(60, loss=1.0, bad=math.inf)
    with pytest.raises(DivergenceError, match="train/bad is inf after 60 environment steps"):
        sac.log_means()
    assert len(logged) == 3


def test_metrics_of_the_critics_keep_no_graph() -> None:
    sac = make()
    sac.optimizer = lambda number: sac.configure_optimizers()[number]
    metrics = sac.update_critic(random_batch(M))
    assert not any(value.requires_grad for value in metrics.values())


def test_networks_are_the_defaults_where_none_are_given() -> None:
    sac = SAC(O, A)
    assert from_recipe(sac.recipe) == TanhGaussianMLP([256, 256])
    assert sum(p.numel() for p in sac.critic.parameters()) == sum(
        p.numel() for p in EnsembleCriticMLP().build(Sizes(O, A)).parameters()
    )


def test_a_sanity_check_is_no_point_of_the_curve() -> None:
    sac, logged = make(), []
    sac.trainer = quiet_trainer()
    sac.log_dict = lambda *_, **__: None
    sac.log_points = logged.append
    episodes = Episodes(torch.tensor([1.0]), torch.tensor([10]), None, 0.0)
    for sanity_checking in (True, False):
        sac.trainer.sanity_checking = sanity_checking
        sac.validation_step(episodes, 0)
    assert [sorted(metrics) for metrics in logged] == [
        ["validate/" + name for name in ("episode_length", "return", "return_max", "return_min", "return_std")]
    ]


def test_metrics_of_an_evaluation() -> None:
    episodes = Episodes(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([10, 20, 40]), None, 0.0)
    metrics = {name: float(value) for name, value in make().evaluation_metrics(episodes).items()}
    assert metrics == pytest.approx(
        {
            "return": 3.0,
            "return_std": (14 / 3) ** 0.5,
            "return_min": 1.0,
            "return_max": 6.0,
            "episode_length": 70 / 3,
        }
    )


def test_metrics_are_means_over_the_updates_that_produced_them() -> None:
    sac, logged = make(), []
    values = iter([1.0, 2.0, 6.0])
    delayed = iter([{}, {"delayed": torch.tensor(5.0)}, {}])
    sac.update = lambda batch: {"loss": torch.tensor(next(values)), "sum": batch.reward.sum()} | next(delayed)
    sac.trainer, sac.log_points = quiet_trainer(log_every_n_steps=1), logged.append
    blocks = random_batch(3, M)
    sac.training_step(ReplayBlock(blocks, 7, torch.zeros(0), torch.zeros(0)), 0)
    expected = {"train/loss": 3.0, "train/sum": float(blocks.reward.sum() / 3), "train/delayed": 5.0}
    assert logged == [pytest.approx(expected)]


def test_block_of_one_is_the_interleaved_reference_loop() -> None:
    """Choose an action, update on the data so far, step, store: the order of pytorch_sac, written out here."""
    env, warmup, steps, seed = Gymnasium("Pendulum-v1"), 12, 30, 5
    datamodule = ReplayDataModule(
        env, num_envs=1, batch_size=8, capacity=100, warmup_steps=warmup, epoch_steps=steps, seed=seed
    )
    torch.manual_seed(0)
    sac = SAC(3, 1, TanhGaussianMLP([8]), EnsembleCriticMLP([8]))
    reference = copy.deepcopy(sac)
    quiet_trainer().fit(sac, datamodule)

    trainer = quiet_trainer()
    trainer.strategy.connect(reference)
    trainer.strategy.setup_environment()
    reference.trainer = trainer
    trainer.strategy.setup_optimizers(trainer)
    simulator = env.make(1, derive_seed(seed, 0, Stream.TRAIN_ENV))
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, Stream.COLLECT))
    seed_global(derive_seed(seed, 0, Stream.GLOBAL))
    obs = torch.tensor(simulator.reset(), dtype=torch.float32)
    stored: list[Transition] = []
    for t in range(warmup + steps):
        if t < warmup:
            action = 2 * torch.rand(1, 1, generator=generator) - 1
        else:
            with torch.no_grad():
                action = reference.explore(obs, generator)
        result = simulator.step(action.numpy())
        next_obs = torch.tensor(result.obs, dtype=torch.float32)
        if t >= warmup:  # the update sees nothing of this step
            rows = (torch.rand(8, generator=generator, dtype=torch.float64) * len(stored)).long().tolist()
            batch = Transition(*(torch.cat([stored[r][i] for r in rows]) for i in range(6)))
            reference.update(batch)
        reward = torch.tensor(result.reward, dtype=torch.float32)
        stored.append(
            Transition(obs, action, reward, next_obs, torch.tensor(result.terminated), torch.tensor(result.truncated))
        )
        ended = result.terminated | result.truncated
        obs = torch.tensor(simulator.reset(ended), dtype=torch.float32) if ended.any() else next_obs
    for own, expected in zip(sac.parameters(), reference.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_actor_loss_leaves_no_gradient_in_the_critic() -> None:
    sac = make()
    quiet_trainer().fit(sac, Batches([random_batch(1, M)]))
    critic_gradients = [p.grad.clone() for p in sac.critic.parameters()]
    actor_gradients = [p.grad.clone() for p in sac.actor.parameters()]
    metrics = sac.update_actor(random_batch(M))
    assert not any(value.requires_grad for value in metrics.values())
    assert not any(torch.equal(a, p.grad) for a, p in zip(actor_gradients, sac.actor.parameters(), strict=True))
    for before, parameter in zip(critic_gradients, sac.critic.parameters(), strict=True):
        assert torch.equal(before, parameter.grad)
    assert all(p.grad is None for p in sac.target_critic.parameters())


@pytest.mark.parametrize(("every", "moved"), [(1, True), (3, False)])
def test_target_moves_only_on_its_schedule(every: int, moved: bool) -> None:
    sac = make(target_update_every=every)
    before = [p.clone() for p in sac.target_critic.parameters()]
    quiet_trainer().fit(sac, Batches([random_batch(2, M)]))
    assert all(torch.equal(a, b) for a, b in zip(before, sac.target_critic.parameters(), strict=True)) is not moved


def test_learns_the_value_of_a_known_world() -> None:
    """Reward 1 for ever, cut by a time limit: Q is 1/(1 − γ). Taking the limit for an end must get it wrong."""
    values = {}
    for treated_as_end in (False, True):
        torch.manual_seed(0)
        sac = SAC(1, 1, TanhGaussianMLP([8]), EnsembleCriticMLP([16]), gamma=0.5, critic_lr=1e-2, polyak=0.1,
                  initial_temperature=1e-9)  # fmt: skip
        ended = torch.arange(M) % 2 == 0
        batch = Transition(torch.zeros(M, 1), torch.rand(M, 1) * 2 - 1, torch.ones(M), torch.zeros(M, 1),
                           ended & treated_as_end, ended)  # fmt: skip
        block = Transition(*(f.expand(400, *f.shape) for f in batch))
        quiet_trainer().fit(sac, Batches([block]))
        with torch.no_grad():
            values[treated_as_end] = float(sac.critic(batch.obs, batch.action).mean())
    assert values[False] == pytest.approx(1 / (1 - 0.5), rel=0.02)
    assert values[True] < 1.6  # (1 + 1.5·½ …)/: between 1 and 2, far from the truth


def test_bf16_uses_the_weights_of_this_update() -> None:
    """Autocast's cached bf16 weights would make the second update of a block repeat the first's forward pass."""
    losses = {}
    for blocks in ([random_batch_of_two()], split(random_batch_of_two())):
        sac = make()
        torch.manual_seed(2)
        with cached_autocast():
            quiet_trainer(precision="bf16-mixed").fit(sac, Batches(blocks))
        losses[len(blocks)] = [p.detach().clone() for p in sac.parameters()]
    for one_block, two_blocks in zip(losses[1], losses[2], strict=True):
        assert torch.equal(one_block, two_blocks)


def random_batch_of_two() -> Transition:
    torch.manual_seed(9)
    return random_batch(2, M)


def split(block: Transition) -> list[Transition]:
    return [Transition(*(f[u : u + 1] for f in block)) for u in range(2)]


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "64-true", "bf16-true"])
def test_other_precisions_are_refused_with_the_reason(precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.precision = '{precision}'.*use 32-true or bf16-mixed"):
        check_precision(precision)
    check_precision("bf16-mixed")


@pytest.mark.parametrize("state", [None, "SAC", {}, {"schema": "lit_metarl.algorithm/0", "name": "SAC"}])
def test_a_checkpoint_of_another_version_is_refused(state: Any) -> None:
    with pytest.raises(ConfigError, match="ckpt_path cannot be used: it was not written by this version"):
        make().on_load_checkpoint({"algorithm": state})


def test_resume_takes_the_step_sizes_of_the_config(tmp_path: Path) -> None:
    first = quiet_trainer()
    first.fit(make(), Batches([random_batch(1, M)]))
    first.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    second = quiet_trainer(max_epochs=2)
    sac = make()
    sac.critic_lr, sac.actor_lr, sac.temperature_lr = 0.5, 0.25, 0.125
    second.fit(sac, Batches([random_batch(1, M)]), ckpt_path=tmp_path / "a.ckpt")
    rates = [group["lr"] for optimizer in second.optimizers for group in optimizer.param_groups]
    assert rates == [0.5, 0.25, 0.125]


def test_a_fixed_temperature_has_no_step_size_to_lower() -> None:
    assert "temperature_lr" in str(make().diverged("x"))
    assert "temperature_lr" not in str(make(temperature_lr=0.0).diverged("x"))


@pytest.mark.parametrize(
    ("key", "refused", "allowed"),
    [
        ("actor_lr", (-1.0, 0.0), (1e-9,)),
        ("critic_lr", (0.0, math.nan), (1e-9,)),
        ("temperature_lr", (-1e-9, math.inf, math.nan), (0.0, 1e-9)),
        ("initial_temperature", (-0.1, 0.0), (1e-9,)),
        ("gamma", (-1e-9, 1.001), (0.0, 1.0)),
        ("polyak", (0.0, 1.001), (1e-9, 1.0)),
        ("target_update_every", (0,), (1,)),
    ],
)
def test_impossible_values_name_the_key(key: str, refused: tuple[float, ...], allowed: tuple[float, ...]) -> None:
    for value in refused:
        with pytest.raises(ConfigError, match=f"model.{key} = {value!r}"):
            SAC(O, A, **{key: value})
    for value in allowed:
        SAC(O, A, **{key: value})
