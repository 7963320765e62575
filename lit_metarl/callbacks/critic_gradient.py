"""Whether the critic's action gradient leads where returns rise, during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_metarl.algorithms.actor_critic import ActorCritic
from lit_metarl.callbacks.monitor import Monitor
from lit_metarl.data.perturbation import SavedStates, collect_states, perturbed_returns, replayed_states
from lit_metarl.diagnostics.critic_gradients import agreement, fitted_gradient
from lit_metarl.envs.base import EnvFactory
from lit_metarl.types import require

SOURCES = ("policy", "exploration", "random", "replay")


@dataclass(frozen=True)
class GradientProtocol:
    """How a critic's gradient is compared with returns; the defaults are those of Sarafian et al. 2021, Fig. 3.

    Attributes:
        states: S.
        actions: K at each state: the policy's own, and K − 1 with noise.
        noise: its standard deviation; actions are clipped to [-1, 1].
        repeats: steps for which an action is taken. The return of more than one is not quite the critic's Q.
        horizon: most steps of a roll-out; beyond them the target critics' minimum stands for the rest.
        spread: a state is found after 0 to ``spread`` − 1 steps of an episode; not read with a replay.
        source: who gets there: the ``policy`` without noise, as published; ``exploration``, the policy as it acts in
            training; ``random``, uniform actions; or ``replay``, all that has acted in the run, whose states the
            critic has learned from. A replay holds observations, which tell the state only of half_cheetah, hopper,
            walker2d, swimmer and inverted_pendulum of :class:`~lit_metarl.envs.locomotion.MuJoCo`, and of points.
            Hopper and walker2d observe joint velocities up to 10 rad/s; states beyond are left out.
        seed: of states, actions and noise, which are the same in every measurement.
    """

    states: int = 15
    actions: int = 15
    noise: float = 0.3
    repeats: int = 3
    horizon: int = 1000
    spread: int = 1000
    source: str = "policy"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("states", "repeats", "spread"):
            require(getattr(self, key) >= 1, f"critic gradient: {key}", getattr(self, key), "it must be at least 1")
        require(self.actions >= 3, "critic gradient: actions", self.actions, "a fit needs at least 3")
        finite = 0 < self.noise < math.inf
        require(finite, "critic gradient: noise", self.noise, "it must be positive and finite")
        require(self.seed >= 0, "critic gradient: seed", self.seed, "seeds are non-negative integers")
        enough = self.horizon >= self.repeats
        require(enough, "critic gradient: horizon", self.horizon, f"an action is taken for {self.repeats} steps")
        known = ", ".join(SOURCES)
        require(self.source in SOURCES, "critic gradient: source", self.source, f"choose from {known}")


class Measured(NamedTuple):
    """Gradients at the states, and the adjusted R² of the fits."""

    critic: Tensor  # [S, A] ∇_a Q of the first online critic at the policy's action
    fitted: Tensor  # [S, A]
    r_squared: Tensor  # [S]

    def metrics(self) -> dict[str, float]:
        """``cosine``, ``above_quarter`` and ``above_three_quarters`` over the states, and ``r_squared``, a median."""
        scalars = {name: float(value) for name, value in agreement(self.critic, self.fitted)._asdict().items()}
        return scalars | {"r_squared": float(self.r_squared.nanmedian())}


def measure(
    module: ActorCritic, factory: EnvFactory, protocol: GradientProtocol, replay: Tensor | None = None
) -> Measured:
    """Gradients of the module's critic and of roll-outs, at states of the chosen source.

    Args:
        module: the actor-critic.
        factory: of its environment.
        protocol: how it is measured.
        replay: observations ``[n, O]`` that the module has learned from, for the source of that name.

    Raises:
        EnvError: the environment cannot go on from a saved state, or from an observation.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    states = _states(module, factory, protocol, replay, generator)
    device = module.device
    with torch.no_grad():
        own = module.act(states.obs.to(device)).cpu()
    shifts = protocol.noise * torch.randn(protocol.states, protocol.actions, own.shape[-1], generator=generator)
    shifts[:, 0] = 0.0
    action = (own.unsqueeze(1) + shifts).clamp(-1.0, 1.0)

    def act(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        chosen, bonus = module.evaluated_action(obs.to(device), noise.to(device))
        return chosen.cpu(), bonus.cpu()

    def value(obs: Tensor, chosen: Tensor) -> Tensor:
        return module.target_critic(obs.to(device), chosen.to(device)).amin(0).cpu()

    rest = module.gamma, protocol.repeats, protocol.horizon, generator
    fitted = fitted_gradient(action, perturbed_returns(factory, states, action, act, value, *rest))
    with torch.enable_grad():
        at = own.to(device).requires_grad_()
        (critic,) = torch.autograd.grad(module.action_value(states.obs.to(device), at)[0].sum(), at)
    return Measured(critic.cpu(), *fitted)


def _states(
    module: ActorCritic,
    factory: EnvFactory,
    protocol: GradientProtocol,
    replay: Tensor | None,
    generator: torch.Generator,
) -> SavedStates:
    """States of the protocol's source."""
    env = factory.make(protocol.states, protocol.seed)
    device = module.device

    def choose(obs: Tensor) -> Tensor:
        if protocol.source == "random":
            return env.spec.sizes.uniform_actions(obs, generator)
        policy = module.act(obs.to(device)) if protocol.source == "policy" else None
        return (module.explore(obs.to(device), generator) if policy is None else policy).cpu()

    if protocol.source == "replay":
        assert replay is not None
        states = replayed_states(env, replay, generator)
    else:
        steps = np.random.default_rng(protocol.seed).integers(protocol.spread, size=protocol.states)
        states = collect_states(env, choose, steps)
    env.close()
    return states


class CriticGradientMonitor(Monitor):
    """Logs how well ``module.critic`` leads the actor, before training and after epochs (Sarafian et al. 2021, Fig. 3).

    Metrics: ``critic_gradient/cosine`` between ∇_a Q and the gradient that roll-outs of perturbed actions show, the
    shares of states where it is ``above_quarter`` and ``above_three_quarters``, and the median ``r_squared`` of the
    fits. Q is that of the first critic; SAC's actor follows the lower of two. A measurement takes up to ``states`` ×
    (``actions`` × ``horizon`` + ``spread``) environment steps, at about 10,000 a second and core on half-cheetah, so
    half a minute with the defaults; it leaves the run as it is.

    Args:
        every_n_epochs: epochs between two measurements.
        protocol: how it is measured; :class:`GradientProtocol` with its defaults if None. Before training there is no
            replay to take states from.
    """

    def __init__(self, every_n_epochs: int = 2, protocol: GradientProtocol | None = None) -> None:
        super().__init__(every_n_epochs)
        self.protocol = protocol or GradientProtocol()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that is no actor-critic, and a replay whose observations do not tell the state."""
        known = isinstance(pl_module, ActorCritic)
        require(known, "CriticGradientMonitor", type(pl_module).__name__, "it has no critic of actions to look at")
        if self.protocol.source == "replay":
            datamodule: Any = trainer.datamodule
            env = datamodule.env_factory.make(1, 0)
            told = bool(env.tells_state(env.reset()).all())
            remedy = f"observations of {env.spec.name} do not tell the simulator's state; take the policy's"
            require(told, "critic gradient: source", "replay", remedy)
            env.close()

    def measure(self, trainer: Trainer, module: Any) -> None:
        """Log the agreement of the critic's action gradient with that of roll-outs."""
        datamodule: Any = trainer.datamodule
        if not trainer.is_global_zero:
            return
        replay = datamodule.replay.storage.obs[: datamodule.replay.size] if self.protocol.source == "replay" else None
        if replay is None or len(replay):
            metrics = measure(module, datamodule.env_factory, self.protocol, replay).metrics()
            module.log_points({f"critic_gradient/{name}": value for name, value in metrics.items()})
