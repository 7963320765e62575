"""What a user adds is new files and a yaml: packages outside the tree, run by the command line, resumed bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracles import assert_same
from test_cli import CONFIGS
from test_resume import metrics_of, whole_run

import lit_metarl
from lit_metarl.__main__ import main

SURROGATE = """
from dataclasses import dataclass
from lit_metarl.estimators import InnerSurrogate

@dataclass(frozen=True)
class Tempered(InnerSurrogate):
    power: float = 1.0

    def per_trajectory(self, log_prob, signals, gamma, discounted):
        return (log_prob * signals.advantage.abs() ** self.power * signals.advantage.sign() * signals.mask).sum(-1)
"""

OUTER = """
from dataclasses import dataclass, field
from lit_metarl.optim import OuterUpdate
from lit_metarl.optim.outer_updates import likelihood

@dataclass(frozen=True)
class HeavyBall(OuterUpdate):
    lr: float = 0.05
    momentum: float = 0.9
    velocity: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def update(self, iteration):
        for name, gradient in iteration.gradient(likelihood).items():
            before = self.velocity.get(name, 0.0)
            self.velocity[name] = self.momentum * before + iteration.reduce(gradient)
        iteration.assign({name: p + self.lr * self.velocity[name] for name, p in iteration.parameters.items()})
        return {"objective": iteration.objective(iteration.unroll(), likelihood).detach()}

    def state(self):
        return {"velocity": dict(self.velocity)}

    def load_state(self, state):
        self.velocity.update(state["velocity"])
"""

NETWORKS = """
from dataclasses import dataclass, field
import torch
from torch import nn
from lit_metarl.nn import ActorFactory, CriticFactory, TanhGaussianMLP
from lit_metarl.nn.mlp import EnsembleLinear

@dataclass(frozen=True)
class Layer:
    width: int = 8
    members: int = 2

    def build(self, inputs):
        return EnsembleLinear(self.members, inputs, self.width)

@dataclass(frozen=True)
class TwoLayers(CriticFactory):
    first: Layer = field(default_factory=Layer)

    def build(self, sizes):
        return Critic(sizes.obs + sizes.action, self.first)

class Critic(nn.Module):
    def __init__(self, inputs, first):
        super().__init__()
        self.members = first.members
        self.trunk = nn.Sequential(first.build(inputs), nn.ReLU(), EnsembleLinear(first.members, first.width, 1))

    def forward(self, obs, action):
        x = torch.cat([obs, action], -1).expand(self.members, -1, -1)
        return self.trunk(x).squeeze(-1)

@dataclass(frozen=True)
class Calm(ActorFactory):
    inner: ActorFactory = field(default_factory=TanhGaussianMLP)
    factor: float = 0.5

    def build(self, sizes):
        actor = self.inner.build(sizes)
        with torch.no_grad():
            actor.trunk[-1].weight.mul_(self.factor)
        return actor
"""

DELAYED = '''
from dataclasses import dataclass
from typing import NamedTuple
import torch
from torch import Tensor, nn
from lit_metarl.algorithms import ActorCritic
from lit_metarl.nn import ActorFactory, EnsembleCriticMLP
from lit_metarl.nn.mlp import mlp

class Point(NamedTuple):
    mode_action: Tensor

class Network(nn.Module):
    def __init__(self, sizes, hidden):
        super().__init__()
        self.trunk = mlp([sizes.obs, *hidden, sizes.action])

    def forward(self, obs):
        return Point(torch.tanh(self.trunk(obs)))

@dataclass(frozen=True)
class Deterministic(ActorFactory):
    hidden: tuple = (16,)

    def build(self, sizes):
        return Network(sizes, self.hidden)

class Delayed(ActorCritic):
    """A deterministic policy whose actor moves at every second update of the critics."""

    def __init__(self, obs_dim, action_dim, noise: float = 0.1, delay: int = 2, **actor_critic):
        super().__init__(obs_dim, action_dim, Deterministic(), EnsembleCriticMLP((16,)), **actor_critic)
        self.noise, self.delay = noise, delay
        self.follow("actor")

    def target(self, batch):
        noise = (0.2 * torch.randn_like(batch.action)).clamp(-0.5, 0.5)
        action = (self.target_actor(batch.next_obs).mode_action + noise).clamp(-1.0, 1.0)
        return batch.reward + self.gamma * batch.discount * self.target_critic(batch.next_obs, action).amin(0)

    def update_actor(self, batch):
        return {} if self.updates % self.delay else super().update_actor(batch)

    def actor_objective(self, batch):
        loss = -self.action_value(batch.obs, self.actor(batch.obs).mode_action)[0].mean()
        return loss, {"actor_loss": loss.detach(), "actor_steps": torch.tensor(1.0)}

    def explore(self, obs, generator):
        mode = self.actor(obs).mode_action
        return (mode + self.noise * torch.randn(mode.shape, generator=generator).to(mode.device)).clamp(-1.0, 1.0)
'''

HYPER = """
from dataclasses import dataclass
import torch
from torch import nn
from lit_metarl.nn import PolicyFactory
from lit_metarl.nn.distributions import DiagonalGaussian

class Hypernetwork(nn.Module):
    calls = 0

    def __init__(self, context, obs, action):
        super().__init__()
        self.shape, self.primary = (action, obs), nn.Linear(context, action * obs)

    def forward(self, context):
        Hypernetwork.calls += 1
        return {"weight": self.primary(context).view(self.shape)}

class Policy(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.hypernetwork = Hypernetwork(sizes.context, sizes.obs, sizes.action)
        self.log_std = nn.Parameter(torch.zeros(sizes.action))

    def forward(self, obs, weights):
        mean = obs @ weights["weight"].mT
        return DiagonalGaussian(mean, self.log_std.expand_as(mean))

@dataclass(frozen=True)
class HyperPolicy(PolicyFactory):
    def build(self, sizes):
        return Policy(sizes)
"""

BASELINE = """
from dataclasses import dataclass
import torch
from torch import nn
from lit_metarl.nn import Baseline, BaselineFactory

class Value(Baseline):
    def __init__(self, sizes, lr):
        super().__init__()
        self.net, self.lr = nn.Linear(sizes.obs + 1, 1), lr

    def forward(self, trajectories):
        obs = trajectories.obs
        time = torch.linspace(0.0, 1.0, obs.shape[-2], device=obs.device).expand(obs.shape[:-1])
        return self.net(torch.cat([trajectories.obs, time.unsqueeze(-1)], -1)).squeeze(-1) * trajectories.mask

    @torch.no_grad()
    def predict(self, trajectories, returns):
        return self(trajectories)

    def loss(self, trajectories, returns):
        return ((self(trajectories) - returns) * trajectories.mask).square().mean()

    def optimizer(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

@dataclass(frozen=True)
class Learned(BaselineFactory):
    lr: float = 0.01

    def build(self, sizes):
        return Value(sizes, self.lr)
"""

META, SINGLE = "quickstart.yaml", "sac_small_pendulum.yaml"


class Workshop:
    """A folder outside the tree with one module of a user's and a yaml that names it."""

    def __init__(self, folder: Path, name: str, source: str, experiment: str, settings: str) -> None:
        (folder / f"{name}.py").write_text(source)
        self.module: ModuleType = importlib.import_module(name)
        self.folder = folder
        self.overlay = CONFIGS / "overlay" / ("smoke_meta.yaml" if experiment == META else "smoke.yaml")
        self.config = folder / f"{name}.yaml"
        self.config.write_text(f"include: [{CONFIGS / 'experiment' / experiment}]\n{settings}")

    def fit(self, root: str, *flags: str) -> Path:
        """Last checkpoint of a training in the store ``root``."""
        logger = f"--trainer.logger.root={self.folder / root}"
        files = [f"--config={self.config}", f"--config={self.overlay}", "--trainer.accelerator=cpu"]
        assert main(["fit", *files, "--trainer.log_every_n_steps=1", logger, *flags]) == 0
        (path,) = (self.folder / root / "runs").glob("*/last.ckpt")
        return path

    def curves(self, checkpoint: Path) -> dict[str, list[tuple[int, float]]]:
        """All metrics of the run of a checkpoint."""
        return metrics_of(checkpoint.parents[2], checkpoint.parent.name)

    def check_resume(self) -> dict[str, list[tuple[int, float]]]:
        """Two epochs and one epoch resumed after the first leave the same state; curves of the first."""
        straight = self.fit("straight")
        self.fit("resumed", "--trainer.max_epochs=1")
        resumed = self.fit("resumed", "--ckpt_path=last")
        assert_same(whole_run(resumed), whole_run(straight))
        curves, again = (self.curves(path) for path in (straight, resumed))
        timed = [name for name in curves if "seconds" in name or name.startswith("time/")]
        assert [name for name in curves if name not in timed and curves[name] != again[name]] == []
        return curves


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workshop]:
    monkeypatch.syspath_prepend(tmp_path)
    return lambda *arguments: Workshop(tmp_path, *arguments)


def test_an_inner_surrogate(workshop: Callable[..., Workshop]) -> None:
    mine = workshop("my_surrogate", SURROGATE, META, "model: {init_args: {inner: my_surrogate.Tempered}}")
    curves = mine.check_resume()
    assert len(curves["train/objective"]) == 2
    other = mine.curves(mine.fit("other", "--model.inner.power=0.5"))
    assert other["train/objective"] != curves["train/objective"]


def test_an_outer_update_with_a_state_of_its_own(workshop: Callable[..., Workshop]) -> None:
    mine = workshop("my_outer", OUTER, META, "model: {init_args: {outer: my_outer.HeavyBall}}")
    mine.check_resume()
    state = torch.load(mine.fit("other"), weights_only=True)["algorithm"]["counters"]["outer"][1]
    assert all(value.abs().max() > 0 for value in state["velocity"].values())


@pytest.mark.parametrize("algorithm", ["SAC", "PreconditionedSAC"])
def test_a_critic_with_a_nested_factory(algorithm: str, workshop: Callable[..., Workshop]) -> None:
    mine = workshop(
        "my_networks",
        NETWORKS,
        SINGLE,
        f"""
model:
  class_path: lit_metarl.algorithms.{algorithm}
  init_args:
    critic: {{class_path: my_networks.TwoLayers, init_args: {{first: {{width: 6, members: 3}}}}}}
    actor:
      class_path: my_networks.Calm
      init_args: {{inner: {{class_path: lit_metarl.nn.TanhGaussianMLP, init_args: {{hidden: [5]}}}}, factor: 0.25}}
data: {{init_args: {{warmup_updates: {4 * (algorithm != "SAC")}}}}}
""",
    )
    mine.check_resume()
    path = mine.fit("other")
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert weights["critic.trunk.0.weight"].shape == (3, 4, 6)
    policy = lit_metarl.load_policy(path)
    inner = lit_metarl.nn.TanhGaussianMLP(hidden=[5])
    assert repr(policy) == f"TrainedPolicy(Calm(inner={inner}, factor=0.25): 3 observations → 1 actions in [-1, 1])"
    assert torch.equal(policy.actor.trunk[0].weight, weights["actor.trunk.0.weight"])
    assert policy(np.zeros(3)).shape == (1,)


def test_a_deterministic_policy_with_a_delayed_actor(workshop: Callable[..., Workshop]) -> None:
    mine = workshop(
        "my_delayed",
        DELAYED,
        SINGLE,
        "model: {class_path: my_delayed.Delayed, init_args: {target_update_every: 2}}\n"
        "data: {init_args: {updates_per_block: 4, steps_per_block: 4}}",
    )
    curves = mine.check_resume()
    assert [value for _, value in curves["train/actor_steps"]] == [1.0] * 4  # a mean over those updates that made one
    assert len(curves["train/critic_loss"]) == 4
    policy = lit_metarl.load_policy(mine.fit("other"))
    assert policy.sizes == (3, 1, None, 0)


def test_a_policy_that_makes_its_weights_of_a_context_does_so_once_per_task(workshop: Callable[..., Workshop]) -> None:
    mine = workshop(
        "my_hyper",
        HYPER,
        META,
        "model: {init_args: {policy: my_hyper.HyperPolicy}}\ndata: {init_args: {oracle_context: true}}",
    )
    mine.check_resume()
    calls = []
    for horizon in (4, 12):
        mine.module.Hypernetwork.calls = 0
        path = mine.fit(f"horizon{horizon}", f"--data.env.max_episode_steps={horizon}", "--trainer.max_epochs=1")
        calls.append(mine.module.Hypernetwork.calls)
    assert calls[0] == calls[1]  # not once per step
    assert calls[0] < 30
    policy, obs = lit_metarl.load_policy(path), np.ones(2)
    assert not np.array_equal(policy(obs, np.array([0.5, 0.0])), policy(obs, np.array([0.0, 0.5])))


def test_a_baseline_that_learns(workshop: Callable[..., Workshop]) -> None:
    mine = workshop("my_baseline", BASELINE, META, "model: {init_args: {baseline: my_baseline.Learned}}")
    curves = mine.check_resume()
    assert len(curves["train/baseline_loss"]) == 2
    torch.manual_seed(0)
    path = mine.fit("still", "--model.baseline.lr=1e-30", "--trainer.max_epochs=1")
    moved = mine.fit("moving", "--trainer.max_epochs=1")
    policy = [torch.load(file, weights_only=True)["state_dict"] for file in (path, moved)]
    # The first outer update uses predictions from before the baseline's first step, whatever that is.
    for name in (name for name in policy[0] if name.startswith("policy.")):
        assert torch.equal(policy[0][name], policy[1][name])
    assert not torch.equal(policy[0]["baseline.net.weight"], policy[1]["baseline.net.weight"])
