"""``lit-metarl study critic_gradient``: whether critics' action gradients lead where returns rise.

Fig. 3 of Sarafian et al. 2021, of checkpoints, beside an exact critic in a linear world: what its line lacks to 1
is the error of the study itself, there. It is larger where actions have more coordinates than the two of that world, or
returns are less smooth: R² tells.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lit_metarl.checkpoint import CheckpointError, read_checkpoint, run_name
from lit_metarl.diagnostics.critic_gradients import chance_above
from lit_metarl.envs.linear_quadratic import LinearQuadratic, dynamics, value_matrix
from lit_metarl.errors import one_line
from lit_metarl.nn import ActorFactory, CriticFactory
from lit_metarl.nn.distributions import Deterministic
from lit_metarl.reports.arguments import positive, seed
from lit_metarl.reports.section import ReportError, Section, markdown_table
from lit_metarl.types import Sizes

if TYPE_CHECKING:
    from lit_metarl.algorithms import ActorCritic
    from lit_metarl.callbacks import GradientProtocol
    from lit_metarl.envs.base import EnvFactory

GAIN = ((1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0))  # of the policy in the linear world
GAMMA = 0.95


@dataclass(frozen=True)
class LinearPolicy(ActorFactory):
    """The policy a = −s Kᵀ with K = :data:`GAIN`."""

    def build(self, sizes: Sizes) -> nn.Module:
        return LinearActor()


class LinearActor(nn.Module):
    """Observations ``[..., 4]`` → actions ``[..., 2]`` in float64, rounded at the end."""

    def forward(self, obs: Tensor) -> Deterministic:
        return Deterministic((-obs.double() @ torch.tensor(GAIN, dtype=torch.float64).T).float())


@dataclass(frozen=True)
class ExactCritic(CriticFactory):
    """The action value of :class:`LinearPolicy` in :class:`~lit_metarl.envs.linear_quadratic.LinearQuadratic`."""

    def build(self, sizes: Sizes) -> nn.Module:
        return ExactValue()


class ExactValue(nn.Module):
    """Q = −s' (I + γP) s'ᵀ, ``[1, ...]``."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        a, b = (torch.from_numpy(matrix) for matrix in dynamics())
        weight = torch.from_numpy(np.eye(4) + GAMMA * value_matrix(np.array(GAIN), GAMMA))
        after = obs.double() @ a.T + action.double() @ b.T
        return -torch.linalg.vecdot(after @ weight, after).unsqueeze(0).to(action.dtype)


class Restored(NamedTuple):
    """An actor-critic, with what its gradient is measured in."""

    label: str
    module: ActorCritic
    factory: EnvFactory
    replay: Tensor | None  # observations of the run's replay, [n, O]; None of a module that nothing trained


@dataclass(frozen=True)
class Line:
    """One critic's agreement with returns.

    Attributes:
        label: of the critic.
        environment: its name.
        env_steps: that it has learned from.
        horizon: most steps of a roll-out.
        directions: A, of an action.
        metrics: see :meth:`lit_metarl.callbacks.critic_gradient.Measured.metrics`.
        seconds: that it took.
    """

    label: str
    environment: str
    env_steps: int
    horizon: int
    directions: int
    metrics: dict[str, float]
    seconds: float


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study critic_gradient``; the defaults are those of the paper."""
    add = parser.add_argument
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="of off-policy actor-critics")
    add("--states", type=positive, default=15, help="at which gradients are compared (default: %(default)s)")
    add("--actions", type=positive, default=15, help="tried at each (default: %(default)s)")
    add("--noise", type=float, default=0.3, help="standard deviation of the actions (default: %(default)s)")
    add("--repeats", type=positive, default=3, help="steps for which an action is taken (default: %(default)s)")
    add("--horizon", type=positive, nargs="+", default=[1000], help="most steps of a roll-out (default: 1000)")
    add("--spread", type=positive, default=1000, help="states lie in so many first steps (default: %(default)s)")
    add("--source", default="policy", help="of states: policy, exploration, random or replay (default: %(default)s)")
    add("--seed", type=seed, default=0)
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Every critic's agreement with returns.

    Raises:
        ReportError, ConfigError, EnvError: a checkpoint that cannot be used, or a setting that cannot work.
    """
    from lit_metarl.callbacks import GradientProtocol

    settings = ("states", "actions", "noise", "repeats", "spread", "source", "seed")
    shared = {name: getattr(args, name) for name in settings}
    protocols = [GradientProtocol(**shared, horizon=horizon) for horizon in args.horizon]
    restored = [restore(path) for path in args.checkpoints]
    # The linear world comes to rest soon, where no gradient is left to compare; and no run in it has left a replay.
    source = "exploration" if args.source == "replay" else args.source
    near = replace(protocols[-1], spread=min(args.spread, 5), source=source)
    lines = []
    for repeats in sorted({1, args.repeats}):
        exact = Restored(f"exact critic, {repeats} step{'s' * (repeats > 1)}", *linear_world(), None)
        lines.append(measured(exact, replace(near, repeats=repeats)))
    lines += [measured(one, protocol) for one in restored for protocol in protocols]
    note = (
        f"Cosine of ∇_a Q (first critic, the policy's action) with the gradient fitted to returns, at {args.states} "
        f"states of source `{args.source}`: mean, and shares above two thresholds. {args.actions} actions at each, "
        f"noise {args.noise:g}, each taken for {args.repeats} steps; at most as many steps as the horizon, then the "
        "target critics. R²: adjusted, median of the fits. What the exact critic lacks to 1 is the error of the study: "
        "the fit's, and where an action is taken for more than one step, that this is not what its gradient is of."
    )
    chance = {line.environment: [chance_above(level, line.directions) for level in (0.25, 0.75)] for line in lines}
    shares = [f"{100 * low:.1f} % and {100 * high:.1f} % on {name}" for name, (low, high) in chance.items()]
    note += f" Random directions are above the thresholds in {', '.join(shares)}."
    if args.source == "replay":
        note += " The exact critic's states are of exploration: no run in its world has a replay."
    return Section(table_of(lines), [note])


def linear_world() -> tuple[ActorCritic, EnvFactory]:
    """A policy with an exact critic, and its world."""
    from lit_metarl.algorithms import TD3

    module = TD3(4, 2, LinearPolicy(), ExactCritic(), gamma=GAMMA)
    return module, LinearQuadratic(max_episode_steps=1000)


def measured(one: Restored, protocol: GradientProtocol) -> Line:
    """The line of one module in its environment."""
    from lit_metarl.callbacks.critic_gradient import measure

    began = time.perf_counter()
    metrics = measure(one.module, one.factory, protocol, one.replay).metrics()
    seconds, spec = time.perf_counter() - began, one.factory.make(1, 0).spec
    return Line(one.label, spec.name, one.module.env_steps, protocol.horizon, spec.sizes.action, metrics, seconds)


def restore(path: Path) -> Restored:
    """The actor-critic of a checkpoint, with its environment and its replay.

    Raises:
        ReportError: it cannot be read, or is not of an off-policy actor-critic.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_metarl.algorithms import ActorCritic
    from lit_metarl.envs.base import EnvFactory

    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise ReportError(str(error)) from error
    config, name = yaml.safe_load(checkpoint.get("run", {}).get("config", "{}")), checkpoint["algorithm"]["name"]
    if not {"data", "model"} <= config.keys():
        raise ReportError(f"{path} holds no config; it was not written by `lit-metarl fit`.")
    try:
        algorithm = resolve_name(config["model"]["class_path"])
    except (ImportError, AttributeError) as error:
        raise ReportError(f"{path} is of {name}, which cannot be imported: {error}.") from error
    if not issubclass(algorithm, ActorCritic):
        raise ReportError(f"{path} is of {name}, which has no critic of actions; name one of SAC or TD3.")
    sizes = checkpoint["algorithm"]["policy"]["sizes"]
    config["model"]["init_args"] |= {"obs_dim": sizes["obs"], "action_dim": sizes["action"]}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=ActorCritic)
    parser.add_argument("--env", type=EnvFactory)
    settings = {"model": config["model"], "env": config["data"]["init_args"]["env"]}
    try:
        built: Any = parser.instantiate(parser.parse_object(settings))
    except ArgumentError as error:
        raise ReportError(f"{path} was written by another version of lit_metarl: {one_line(str(error))}") from error
    built.model.load_state_dict(checkpoint["state_dict"])
    built.model.load_counters(checkpoint["algorithm"]["counters"])
    label = run_name(checkpoint) or f"{name}, {type(built.model.critic).__name__}, {path.parent.name[:8]}"
    experience = checkpoint[config["data"]["class_path"].rpartition(".")[2]]["ranks"]
    replay = torch.cat([rank["experience"]["replay"]["storage"]["obs"] for rank in experience])
    return Restored(label, built.model, built.env, replay)


def table_of(lines: Sequence[Line]) -> str:
    """One line per critic and horizon."""
    head = ("critic", "environment", "steps", "horizon", "cosine", "> 0.25", "> 0.75", "R²", "seconds")
    rows = []
    for line in lines:
        m = line.metrics
        shares = [f"{100 * m[name]:.0f} %" for name in ("above_quarter", "above_three_quarters")]
        values = [f"{m['cosine']:.3f}", *shares, f"{m['r_squared']:.2f}", f"{line.seconds:.1f}"]
        rows.append([line.label, line.environment, f"{line.env_steps:,}", f"{line.horizon:,}", *values])
    return markdown_table(head, rows)
