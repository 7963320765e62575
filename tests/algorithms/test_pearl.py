"""PEARL: its update is the released one, and what is known of a task is what was explored."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from meta_cases import attach, quiet_trainer
from torch import Tensor

from lit_metarl.algorithms import MAML, PEARL
from lit_metarl.data import TaskReplayDataModule, TrajectoryDataModule
from lit_metarl.envs.navigation import PointRobot, SparsePointRobot
from lit_metarl.losses.pearl import kl_to_prior, policy_penalty, soft_value_target
from lit_metarl.nn import (
    DeterministicMLP,
    EnsembleCriticMLP,
    HyperActor,
    HyperCritic,
    ProductOfGaussians,
    TanhGaussianMLP,
)
from lit_metarl.nn.context_encoder import ContextEncoder
from lit_metarl.types import Adaptation, ConfigError, Sizes, TaskMinibatch, Trajectories, Transition

O, A, Z, B, M, C = 3, 2, 4, 3, 6, 5  # noqa: E741
WIDTH = 8


def make(released: bool = True, **settings: Any) -> PEARL:
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "actor": TanhGaussianMLP([WIDTH], "torch", output_bound=0.5, clamp_log_std=True)
        if released
        else TanhGaussianMLP([WIDTH]),
        "critic": EnsembleCriticMLP([WIDTH], initialisation="torch"),
        "value": EnsembleCriticMLP([WIDTH], members=1, initialisation="torch") if released else None,
    }
    if not settings.get("context_dim"):
        networks["encoder"] = ProductOfGaussians(latent=Z, hidden=[WIDTH])
    return PEARL(O, A, **networks | settings)


def transitions(*lead: int) -> Transition:
    obs, action, reward, next_obs = (torch.randn(*lead, *size) for size in ((O,), (A,), (), (O,)))
    return Transition(obs, torch.tanh(action), reward, next_obs, torch.rand(*lead) < 0.3, torch.rand(*lead) < 0.3)


def minibatch(told: int = 0) -> TaskMinibatch:
    torch.manual_seed(1)
    return TaskMinibatch(transitions(B, M), transitions(B, C), torch.randn(B, told))


# One update, written out ---------------------------------------------------------------------------------------------


class Plain:
    """The released update with one network and one Adam for each thing, z repeated for every transition."""

    def __init__(self, module: PEARL, lr: dict[str, float]) -> None:
        state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.nets = {
            "q1": self.member(state, "critic.trunk", 0),
            "q2": self.member(state, "critic.trunk", 1),
            "value": self.member(state, "value.trunk", 0),
            "target": self.member(state, "target_value.trunk", 0),
            "actor": self.linear(state, "actor.trunk"),
            "encoder": self.linear(state, "encoder.trunk"),
        }
        self.adam = {
            name: torch.optim.Adam([w for layer in net for w in layer], lr=lr[name])
            for name, net in self.nets.items()
            if name != "target"
        }

    def member(self, state: dict[str, Tensor], name: str, e: int) -> list[list[Tensor]]:
        layers = [[state[f"{name}.{n}.weight"][e].T, state[f"{name}.{n}.bias"][e, 0]] for n in (0, 2)]
        return [[w.clone().requires_grad_(name != "target_value.trunk") for w in layer] for layer in layers]

    def linear(self, state: dict[str, Tensor], name: str) -> list[list[Tensor]]:
        return [[state[f"{name}.{n}.{w}"].requires_grad_() for w in ("weight", "bias")] for n in (0, 2)]

    def __call__(self, net: str, *inputs: Tensor) -> Tensor:
        (w1, b1), (w2, b2) = self.nets[net]
        return F.linear(torch.relu(F.linear(torch.cat(inputs, dim=-1), w1, b1)), w2, b2)

    def policy(self, obs: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, raw = self("actor", obs, z).chunk(2, dim=-1)
        log_std = raw.clamp(-20.0, 2.0)
        u = mean + log_std.exp() * noise
        normal = torch.distributions.Normal(mean, log_std.exp())
        log_prob = (normal.log_prob(u) - torch.log(1.0 - torch.tanh(u) ** 2)).sum(-1, keepdim=True)
        return torch.tanh(u), log_prob, mean, log_std

    def infer(self, context: Transition) -> tuple[Tensor, Tensor]:
        means, variances = [], []
        for task in range(B):
            precision, weighted = torch.zeros(Z), torch.zeros(Z)
            for i in range(C):
                made = self("encoder", context.obs[task, i], context.action[task, i], context.reward[task, i][None])
                variance = F.softplus(made[Z:]).clamp(min=1e-7)
                precision, weighted = precision + 1.0 / variance, weighted + made[:Z] / variance
            variances.append(1.0 / precision)
            means.append(weighted / precision)
        return torch.stack(means), torch.stack(variances)

    def update(self, batch: TaskMinibatch, scale: float, kl_weight: float, penalty: float) -> None:
        mean, variance = self.infer(batch.context)
        z = mean + variance.sqrt() * torch.randn(B, Z)
        rows = z.repeat_interleave(M, dim=0)
        obs, action, _, next_obs, _, _ = (x.flatten(0, 1) for x in batch.transitions)
        reward = batch.transitions.reward.reshape(-1, 1)
        alive = 1.0 - batch.transitions.terminated.reshape(-1, 1).to(reward.dtype)
        new_action, log_prob, mu, log_std = self.policy(obs, rows.detach(), torch.randn(B, M, A).flatten(0, 1))
        prior = torch.distributions.Normal(torch.zeros(Z), torch.ones(Z))
        posteriors = [torch.distributions.Normal(m, v.sqrt()) for m, v in zip(mean, variance, strict=True)]
        kl = sum(torch.distributions.kl_divergence(posterior, prior).sum() for posterior in posteriors)
        for adam in self.adam.values():
            adam.zero_grad()
        (kl_weight * kl).backward(retain_graph=True)
        with torch.no_grad():
            target = scale * reward + alive * 0.9 * self("target", next_obs, rows)
        q1, q2 = self("q1", obs, rows, action), self("q2", obs, rows, action)
        (((q1 - target) ** 2).mean() + ((q2 - target) ** 2).mean()).backward()
        for name in ("q1", "q2", "encoder"):
            self.adam[name].step()
        fixed = rows.detach()
        lower = torch.min(self("q1", obs, fixed, new_action), self("q2", obs, fixed, new_action))  # updated critics
        ((self("value", obs, fixed) - (lower - log_prob).detach()) ** 2).mean().backward()
        self.adam["value"].step()
        with torch.no_grad():
            for slow, fast in zip(self.nets["target"], self.nets["value"], strict=True):
                for a, b in zip(slow, fast, strict=True):
                    a.copy_(0.9 * a + 0.1 * b)
        self.adam["actor"].zero_grad()
        ((log_prob - lower).mean() + penalty * (mu**2).mean() + penalty * (log_std**2).mean()).backward()
        self.adam["actor"].step()


LR = {"q1": 1e-2, "q2": 1e-2, "value": 2e-2, "actor": 3e-2, "encoder": 4e-2}


@pytest.fixture
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_updates_are_the_released_ones() -> None:
    settings = {"critic_lr": 1e-2, "value_lr": 2e-2, "actor_lr": 3e-2, "encoder_lr": 4e-2}
    module = attach(make(reward_scale=5.0, kl_weight=0.3, gamma=0.9, polyak=0.1, policy_penalty=0.2, **settings))
    plain, batch = Plain(module, LR), minibatch()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    for _ in range(3):
        module.update(batch)
    torch.manual_seed(3)
    for _ in range(3):
        plain.update(batch, 5.0, 0.3, 0.2)
    after = module.state_dict()
    for name, net in plain.nets.items():
        path, e = {"q1": ("critic", 0), "q2": ("critic", 1), "target": ("target_value", 0)}.get(name, (name, 0))
        for layer, (weight, bias) in zip((0, 2), net, strict=True):
            found = after[f"{path}.trunk.{layer}.weight"], after[f"{path}.trunk.{layer}.bias"]
            if name not in ("actor", "encoder"):
                found = found[0][e].T, found[1][e, 0]
            torch.testing.assert_close(found[0], weight.detach(), atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(found[1], bias.detach(), atol=1e-9, rtol=1e-9)
    moved = {name for name in after if not torch.allclose(after[name], before[name], atol=1e-4)}
    assert set(after) - moved == {"log_temperature"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("wrong", [{"kl_weight": 0.0}, {"kl_reduction": "mean"}, {"policy_penalty": 0.1}])
def test_another_rule_is_told_apart(wrong: dict[str, Any]) -> None:
    results = []
    for settings in ({}, wrong):
        module = attach(make(actor_lr=3e-2, **settings))
        torch.manual_seed(3)
        for _ in range(3):
            module.update(minibatch())
        results.append(torch.cat([value.flatten() for value in module.state_dict().values()]))
    assert (results[0] - results[1]).abs().max() > 1e-6


def test_a_mean_of_divergences_is_a_sum_with_another_weight() -> None:
    batch, found = minibatch(), []
    for reduction, weight in (("sum", 0.3), ("mean", 0.3 * B * Z)):
        module = make(kl_reduction=reduction, kl_weight=weight)
        torch.manual_seed(2)
        found.append(module._infer(batch)[1])
    torch.testing.assert_close(*found)


# The gradient to z ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [True, False])
def test_the_encoder_learns_from_critics_alone(released: bool) -> None:
    """With critics that cannot move and no divergence it stands still, however far policy and value move."""
    module = attach(make(released, kl_weight=0.0))
    for name, parameter in module.critic.named_parameters():
        if name.startswith("trunk.0"):
            parameter.data.zero_()  # critics that do not see z
    module.trainer.optimizers[0].param_groups[0]["lr"] = 0.0
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.update(minibatch())
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("encoder"))
    assert not torch.equal(after["actor.trunk.0.weight"], before["actor.trunk.0.weight"])
    seeing = attach(make(released, kl_weight=0.0))
    before = seeing.encoder.trunk[0].weight.clone()
    seeing.update(minibatch())
    assert not torch.equal(seeing.encoder.trunk[0].weight, before)


def test_the_divergence_pulls_the_posterior_to_the_prior() -> None:
    batch = minibatch()
    module = attach(make(kl_weight=1e4, encoder_lr=1e-2))
    before = float(module._infer(batch)[2]["kl"])
    for _ in range(50):
        module.update(batch)
    assert float(module._infer(batch)[2]["kl"]) < 0.2 * before


# The form of today ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_without_a_value_network_it_is_soft_actor_critic_of_the_concatenation() -> None:
    """With z told, an update is SAC's on observations that end with z: losses and gradients are those of SAC's code."""
    from lit_metarl.algorithms import SAC

    module = attach(make(released=False, context_dim=2, policy_penalty=0.0, initial_temperature=0.3, gamma=0.9))
    sac = SAC(O + 2, A, TanhGaussianMLP([WIDTH]), EnsembleCriticMLP([WIDTH]), initial_temperature=0.3, gamma=0.9)
    weights = dict(module.state_dict())
    moved = {}
    for name, value in weights.items():
        if "critic.trunk.0.weight" in name:  # [E, in, out]: (obs, z, action), as SAC's (obs, action)
            assert value.shape == (2, O + 2 + A, WIDTH)
        moved[name] = value
    sac.load_state_dict(moved)
    sac = attach(sac)
    batch = minibatch(told=2)
    z = batch.told[:, None].expand(B, M, 2)
    data = batch.transitions
    flat = data._replace(obs=torch.cat([data.obs, z], -1), next_obs=torch.cat([data.next_obs, z], -1))
    flat = Transition(*(x.flatten(0, 1) for x in flat))
    draws = [torch.randn(B, M, A) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        queue = [draws[0], draws[1]]  # PEARL draws the policy's noise first, SAC the target's
        patch.setattr(torch, "randn_like", lambda x: queue.pop(0))
        first = module.update(batch)
        queue = [draws[1].flatten(0, 1), draws[0].flatten(0, 1)]
        second = sac.update(flat)
    for name in ("critic_loss", "actor_loss", "entropy", "temperature"):
        torch.testing.assert_close(first[name], second[name])
    for name, value in sac.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, atol=1e-7, rtol=1e-6)
    assert not torch.equal(module.log_temperature, torch.tensor(math.log(0.3)))


# Knowledge of tasks --------------------------------------------------------------------------------------------------


def rounds(tasks: int, episodes: int, steps: int, seed: int) -> Trajectories:
    torch.manual_seed(seed)
    mask = (torch.arange(steps) < torch.randint(1, steps + 1, (tasks, episodes, 1))).float()
    obs, reward = torch.randn(tasks, episodes, steps, O) * mask[..., None], torch.randn(tasks, episodes, steps) * mask
    action = torch.rand(tasks, episodes, steps, A) * mask[..., None]
    ends = torch.randn(tasks, episodes, O), torch.zeros(tasks, episodes, dtype=torch.bool)
    return Trajectories(obs, action, reward, reward, mask, *ends, torch.zeros(tasks, 0))


def test_the_posterior_is_that_of_all_transitions_explored() -> None:
    module = make(encoder=ProductOfGaussians(latent=Z, hidden=[WIDTH], next_obs=True))
    first, second = rounds(2, 3, 4, seed=1), rounds(2, 3, 4, seed=2)
    adaptation = module.before_adaptation(torch.zeros(2, 0))
    for data in (first, second):
        adaptation = module.adapt(adaptation, data)
    for task in range(2):
        precision, weighted, number = torch.zeros(Z), torch.zeros(Z), 0
        for data in (first, second):
            for n in range(3):
                for t in range(int(data.mask[task, n].sum())):
                    length = int(data.mask[task, n].sum())
                    following = data.obs[task, n, t + 1] if t + 1 < length else data.final_obs[task, n]
                    x = [data.obs[task, n, t], data.action[task, n, t], data.reward[task, n, t][None], following]
                    made = module.encoder.trunk(torch.cat(x)).detach()
                    precision = precision + 1.0 / F.softplus(made[Z:])
                    weighted = weighted + made[:Z] / F.softplus(made[Z:])
                    number += 1
        torch.testing.assert_close(adaptation["precision"][task], precision)
        torch.testing.assert_close(adaptation["weighted_mean"][task], weighted)
        assert int(adaptation["number"][task]) == number


class Watched(PEARL):
    """Keeps every round that it adapts to."""

    def adapt(self, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
        self.__dict__.setdefault("seen", []).append((adaptation, trajectories))
        return super().adapt(adaptation, trajectories)


def small_data(**settings: Any) -> TaskReplayDataModule:
    numbers = {"train_tasks": 4, "num_tasks": 2, "meta_batch": 2, "eval_tasks": 3, "test_tasks": 3}
    steps = {"initial_steps": 10, "prior_steps": 10, "extra_steps": 10}
    draws = {"batch_size": 6, "context_size": 5, "updates_per_iteration": 4, "updates_per_block": 2}
    env = settings.pop("env", PointRobot(max_episode_steps=5))
    return TaskReplayDataModule(env, **numbers | steps | draws | settings)


def test_curves_have_one_point_at_every_number_of_environment_steps() -> None:
    """Three blocks an iteration, a point asked for after every second: a mean over what came since the last."""
    data = small_data(updates_per_iteration=6, epoch_iterations=4)
    module = PEARL(2, 2, actor=TanhGaussianMLP([8]), critic=EnsembleCriticMLP([8]))
    points: list[tuple[int, float]] = []
    module.log_points = lambda metrics: points.append((module.env_steps, metrics["train/number"]))
    numbers, update = iter(range(100)), module.update
    module.update = lambda batch: update(batch) | {"number": torch.tensor(float(next(numbers)))}
    quiet_trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=2).fit(module, data)
    first, period = 4 * 10 + 2 * 20, 2 * 20
    # blocks 1 and 2 of iteration 1; then, as nothing is logged twice at a place, with block 1 of the next, …
    means = [sum(range(4)) / 4, sum(range(4, 8)) / 4, sum(range(8, 14)) / 6, sum(range(14, 20)) / 6]
    assert points == [(first + k * period, pytest.approx(mean)) for k, mean in enumerate(means)]


def test_the_context_at_test_is_exactly_the_exploration_episodes() -> None:
    """Not the replay, which holds other tasks: the adaptation of a task has what it did in this test, and no more."""
    data = small_data(trajectories=2, eval_adaptation_steps=2)
    torch.manual_seed(0)
    module = Watched(2, 2, actor=TanhGaussianMLP([8]), critic=EnsembleCriticMLP([8]))
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, data)
    module.seen.clear()
    data.bind(module.eval())
    episodes = data.test()
    (nothing, first), (known, second) = module.seen[:2]
    assert all((value == 0).all() for value in nothing.values())  # no evidence before the first round
    assert (known["number"] == 2 * 5).all()  # then two episodes of five steps
    fields = first.obs, first.action, first.reward, first.next_obs, first.mask > 0, first.mask > 0
    evidence = module.encoder(Transition(*(field.flatten(1, 2) for field in fields)))
    torch.testing.assert_close(known["precision"], evidence.precision)
    for step, seen in enumerate((first, second)):
        torch.testing.assert_close(seen.returns, episodes.returns["test"][step])
        goal = episodes.tasks["test"]["goal"].view(3, 1, 1, 2)
        torch.testing.assert_close(seen.reward, -(seen.next_obs - goal).norm(dim=-1))
    replayed = {tuple(row) for row in data.replay.storage.obs.flatten(0, 1).tolist()}
    assert not replayed & {tuple(row) for row in first.obs.flatten(0, 2).tolist()}


def test_every_episode_of_a_round_has_its_own_z() -> None:
    module = make()
    generator = torch.Generator().manual_seed(0)
    prior = module.before_adaptation(torch.zeros(3, 0))
    acting = module.begin_round(prior, 4, generator)
    z = acting["context"]
    assert z.shape == (3, 4, Z)
    assert len({tuple(row) for row in z.flatten(0, 1).tolist()}) == 12
    assert torch.equal(z, torch.randn(3, 4, Z, generator=torch.Generator().manual_seed(0)))
    obs = torch.randn(3, 4, O)
    actions = module.mode_actions(acting, obs)
    for task in range(3):
        for n in range(4):
            expected = module.actor(obs[task, n], z[task, n]).mode_action
            torch.testing.assert_close(actions[task, n], expected)


def test_evaluation_is_deterministic_given_z_if_so_set() -> None:
    obs, told = torch.randn(2, 3, O), torch.zeros(2, 0)
    for setting, same in ((True, True), (False, False)):
        module, generator = make(deterministic_evaluation=setting).eval(), torch.Generator().manual_seed(0)
        acting = module.begin_round(module.before_adaptation(told), 3, generator)
        action, log_prob = module.sample_actions(acting, obs, generator)
        assert torch.equal(action, module.mode_actions(acting, obs)) is same
        assert log_prob.shape == (2, 3)
        assert not torch.equal(
            module.train().sample_actions(acting, obs, generator)[0], module.mode_actions(acting, obs)
        )


def test_a_limit_keeps_the_posterior_as_wide_as_in_training() -> None:
    data = rounds(2, 3, 4, seed=1)
    stds = []
    for limit in (None, 2):
        module = make(evidence_limit=limit)
        adaptation = module.adapt(module.before_adaptation(torch.zeros(2, 0)), data)
        acting = module.begin_round(adaptation, 4000, torch.Generator().manual_seed(0))
        stds.append(acting["context"].std(1))
    number = data.mask.sum((1, 2))[:, None]
    torch.testing.assert_close(stds[1] / stds[0], (number / 2).sqrt().expand(2, Z))


def test_an_oracle_is_told_and_infers_nothing() -> None:
    module = attach(make(context_dim=2))
    assert module.encoder is None
    told = torch.randn(3, 2)
    adaptation = module.before_adaptation(told)
    assert torch.equal(module.adapt(adaptation, rounds(3, 2, 4, seed=0))["z"], told)
    acting = module.begin_round(adaptation, 4, torch.Generator())
    obs = torch.randn(3, 4, O)
    expected = module.actor(obs, told).mode_action
    torch.testing.assert_close(module.mode_actions(acting, obs), expected)
    assert {"critic_loss", "value_loss", "actor_loss"} <= module.update(minibatch(told=2)).keys()
    with pytest.raises(ConfigError, match=r"model\.context_dim = 2 .* told with 0 numbers"):
        module.before_adaptation(torch.zeros(3, 0))


# Training ------------------------------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {"hidden": (6,), "widths": (8,), "blocks": 1}
HYPER = HyperCritic(meta=("obs",), base=("action", "context"), **SMALL)
HYPER_VALUE = HyperCritic(meta=("obs",), base=("action", "context"), members=1, **SMALL)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ({}, {}),
        ({}, {"actor": HyperActor(**SMALL), "critic": HYPER}),
        ({}, {"actor": HyperActor(**SMALL), "critic": HYPER, "value": HYPER_VALUE}),
        ({"oracle_context": True}, {}),
        ({}, {"encoder": ProductOfGaussians(latent=2, hidden=[8], deterministic=True)}),
        ({}, {"encoder": ProductOfGaussians(latent=2, hidden=[8], next_obs=True)}),
        ({"env": SparsePointRobot(max_episode_steps=5), "shaped_rewards": True}, {}),
        ({}, {"value": EnsembleCriticMLP([8], members=1)}),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_trains(data: dict[str, Any], model: dict[str, Any], precision: str) -> None:
    datamodule = small_data(**data)
    told = {"context_dim": datamodule.context_dim, "action_scale": datamodule.action_scale}
    module = PEARL(2, 2, **{"actor": TanhGaussianMLP([8]), "critic": EnsembleCriticMLP([8])} | told | model)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = quiet_trainer(max_epochs=2, precision=precision)
    trainer.fit(module, datamodule)
    assert module.updates == 8
    assert {"eval/return", "eval/out_of_distribution/return_after_1_steps"} <= trainer.callback_metrics.keys()
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    weights = next(name for name in before if name.startswith("actor") and name.endswith("0.weight"))
    assert not torch.equal(after[weights], before[weights])


@dataclass(frozen=True)
class Wider(ProductOfGaussians):
    """An encoder that makes a longer z than it says."""

    def build(self, sizes: Sizes) -> ContextEncoder:
        return ContextEncoder(sizes, replace(self, latent=self.latent + 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_actions": 4}, r"data\.env = '4 discrete actions'"),
        ({"reward_scale": 0.0}, r"model\.reward_scale = 0\.0"),
        ({"kl_weight": -1.0}, r"model\.kl_weight = -1\.0"),
        ({"kl_reduction": "max"}, r"model\.kl_reduction = 'max' .* choose sum or mean"),
        ({"target_entropy": -1.0}, r"model\.target_entropy = -1\.0 .* with a value network"),
        ({"evidence_limit": 0}, r"model\.evidence_limit = 0"),
        ({"actor": DeterministicMLP([8])}, r"model\.actor = DeterministicMLP.* take TanhGaussianMLP"),
        ({"context_dim": 2, "encoder": ProductOfGaussians()}, r"model\.encoder = .* the task is told"),
        ({"encoder": Wider(latent=2)}, r"model\.encoder\.latent = 2 .* makes a z of 3 entries"),
        ({"polyak": 0.0}, r"model\.polyak = 0\.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_each_algorithm_names_the_data_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"data = 'TaskReplayBlock' .* learns from trajectories; take TrajectoryData"):
        quiet_trainer(max_epochs=1).fit(MAML(2, 2), small_data())
    trajectories = TrajectoryDataModule(PointRobot(max_episode_steps=5), 2, 2, eval_tasks=2, test_tasks=2)
    with pytest.raises(ConfigError, match=r"data = 'MetaBatch' .* learns from replays of tasks; take TaskReplayData"):
        quiet_trainer(max_epochs=1).fit(PEARL(2, 2), trajectories)


# Losses --------------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    mean, variance = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    # ½ (4 + 1 − 1 − log 4) and 0
    torch.testing.assert_close(kl_to_prior(mean, variance), torch.tensor([2.0 - math.log(2.0), 0.0]))
    normal = torch.distributions.Normal
    torch.testing.assert_close(
        kl_to_prior(mean, variance), torch.distributions.kl_divergence(normal(mean, variance.sqrt()), normal(0.0, 1.0))
    )
    value = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    log_prob = torch.tensor([0.5, -1.0])
    assert soft_value_target(value, log_prob, torch.tensor(2.0)).tolist() == [1.0, 3.0]
    assert float(policy_penalty(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))) == 5.0 + 2.0


def test_a_value_network_is_a_critic_of_no_action() -> None:
    module = make()
    value = EnsembleCriticMLP([WIDTH], members=1).build(Sizes(O, 0, None, Z))
    assert {n: p.shape for n, p in value.named_parameters()} == {n: p.shape for n, p in module.value.named_parameters()}
    assert module.value(torch.randn(B, M, O), torch.randn(B, M, 0), torch.randn(B, Z)).shape == (1, B, M)
