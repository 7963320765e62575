"""The values that travel between the parts of the package, and the protocols of the way back.

Axes, always in this order and with these letters: ``B`` tasks, ``N`` trajectories per task, ``T`` steps,
``O`` observation, ``A`` action, ``K`` inner steps, ``E`` ensemble members, ``M`` minibatch of transitions,
``U`` updates, ``Z`` latent, ``D`` directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and the remedy."""


class DivergenceError(RuntimeError):
    """Training left the finite numbers; the message says where, and what to change.

    Args:
        message: what is shown.
        state_is_finite: whether the step was not taken, on every process, so that the state is worth saving.
    """

    def __init__(self, message: str, state_is_finite: bool = False) -> None:
        super().__init__(message)
        self.state_is_finite = state_is_finite


class Interrupted(BaseException):
    """A signal stopped the run; the message says what is saved and how to go on.

    No ``Exception``, like KeyboardInterrupt: it is not an error, and no handler of errors should take it for one.

    Args:
        message: what is shown.
        number: of the signal; a shell's exit code of a stopped program is 128 more.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise :class:`ConfigError` naming ``key``, ``value`` and ``remedy`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} = {value!r} cannot be used: {remedy}.")


def require_positive(owner: str, **values: float) -> None:
    """Raise :class:`ConfigError` naming ``<owner>.<name>`` unless all ``values`` are positive and finite."""
    for name, value in values.items():
        require(value > 0 and math.isfinite(value), f"{owner}.{name}", value, "it must be a positive number")


class Sizes(NamedTuple):
    """Sizes of observations, actions and contexts, for which every network is built."""

    obs: int  # O
    action: int  # A of a continuous action space; not read for a discrete one
    num_actions: int | None = None  # of a discrete action space, None for a continuous one
    context: int = 0  # C, entries that describe the task; 0 where the networks are not told

    def uniform_actions(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniformly random actions for ``obs [..., O]``: ``[..., A]`` in [-1, 1], or integers ``[...]`` if discrete."""
        if self.num_actions is not None:
            return torch.randint(self.num_actions, obs.shape[:-1], generator=generator, device=obs.device)
        return 2.0 * torch.rand(*obs.shape[:-1], self.action, generator=generator, device=obs.device) - 1.0


class Transition(NamedTuple):
    """One environment step; every field shares the leading axes."""

    obs: Tensor  # [..., O]
    action: Tensor  # [..., A] in [-1, 1]
    reward: Tensor  # [...] raw
    next_obs: Tensor  # [..., O] the true successor, never the first observation of a new episode
    terminated: Tensor  # [...] bool: the MDP ended
    truncated: Tensor  # [...] bool: the time limit cut the episode

    @property
    def discount(self) -> Tensor:
        """0 where the MDP ended, 1 elsewhere: values are bootstrapped through time limits. ``[...]`` float."""
        return 1.0 - self.terminated.to(self.reward.dtype)


class ReplayBlock(NamedTuple):
    """The batch of one training step: ``U`` minibatches, and the episodes that ended while it was collected."""

    transitions: Transition  # [U, M, ...]
    env_steps: int  # environment steps so far: warm-up and action repeat included, all processes together
    episode_returns: Tensor  # [n] undiscounted returns of the episodes that ended since the last block
    episode_lengths: Tensor  # [n] agent steps
    warm_up: bool = False  # whether a random policy acted, for updates before the algorithm's own does

    def minibatches(self) -> list[Transition]:
        """One minibatch per update, U of them, fields ``[M, ...]``."""
        return [Transition(*fields) for fields in zip(*self.transitions, strict=True)]


class TaskMinibatch(NamedTuple):
    """The data of one update of a meta-learner from replay: ``B`` tasks, ``C`` transitions each to infer them from."""

    transitions: Transition  # [B, M, ...]
    context: Transition  # [B, C, ...] of the same tasks
    told: Tensor  # [B, D] what the policy was told of the tasks; D = 0 for nothing


class TaskReplayBlock(NamedTuple):
    """The batch of one training step: ``U`` minibatches of ``B`` tasks, and the episodes that were collected for it."""

    transitions: Transition  # [U, B, M, ...]
    contexts: Transition  # [U, B, C, ...]
    told: Tensor  # [U, B, D]
    env_steps: int  # environment steps so far, all processes together
    episode_returns: Tensor  # [n] undiscounted returns of the episodes that were collected since the last block
    episode_lengths: Tensor  # [n] agent steps

    def minibatches(self) -> list[TaskMinibatch]:
        """One minibatch per update, U of them."""
        rows = (zip(*fields, strict=True) for fields in (self.transitions, self.contexts))
        pairs = zip(*rows, self.told, strict=True)
        return [TaskMinibatch(Transition(*data), Transition(*context), told) for data, context, told in pairs]


class Episodes(NamedTuple):
    """Complete evaluation episodes."""

    returns: Tensor  # [N] undiscounted
    lengths: Tensor  # [N] agent steps
    frames: Tensor | None = None  # [T, height, width, 3] uint8 of the first episode, where asked for
    frames_per_second: float = 0.0


class Trajectories(NamedTuple):
    """One round of on-policy experience of ``B`` tasks: ``N`` episodes each, padded to the horizon ``T``.

    Padded entries hold observation, action, reward and log-probability 0 and are marked by ``mask``.
    """

    obs: Tensor  # [B, N, T, O]
    action: Tensor  # [B, N, T, A] as sampled, before the map to the simulator's bounds; [B, N, T] int if discrete
    reward: Tensor  # [B, N, T] raw
    log_prob: Tensor  # [B, N, T] of the behaviour policy at ``action``, summed over A
    mask: Tensor  # [B, N, T] 1 while the episode ran, 0 after its end
    final_obs: Tensor  # [B, N, O] the successor of the last step, which no policy acted on
    terminated: Tensor  # [B, N] bool: the MDP ended with the last step; otherwise the time limit cut the episode
    context: Tensor  # [B, C] what the policy was told of the task; C = 0 for nothing

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, ``[B, N]``."""
        return self.reward.sum(-1)

    @property
    def next_obs(self) -> Tensor:
        """True successor of every step, ``[B, N, T, O]``; anything where the mask is 0."""
        ahead = torch.cat([self.obs[:, :, 1:], self.final_obs.unsqueeze(2)], dim=2)
        last = torch.cat([self.mask[:, :, 1:] == 0, torch.ones_like(self.mask[:, :, :1], dtype=torch.bool)], dim=2)
        return torch.where(last.unsqueeze(-1), self.final_obs.unsqueeze(2), ahead)


class MetaBatch(NamedTuple):
    """One meta-iteration: ``B`` tasks, before and after each of ``K`` adaptation steps."""

    rounds: tuple[Trajectories, ...]  # K + 1 of them
    adaptations: tuple[Adaptation, ...]  # K + 1 of them; round k was sampled after k steps, with adaptation k
    env_steps: int  # environment steps so far, all processes together


class MetaEpisodes(NamedTuple):
    """Meta-evaluation: returns on test tasks after 0 … K adaptation steps."""

    returns: dict[str, Tensor]  # split → [K + 1, B, N] undiscounted
    tasks: dict[str, dict[str, Tensor]]  # split → parameter → [B, ...]
    random: dict[str, Tensor]  # split → [B, N] returns of uniform random actions; empty for films
    frames: dict[str, Tensor]  # film by name → [T, height, width, 3] uint8; empty unless asked for
    frames_per_second: float = 0.0


class Dimensions(NamedTuple):
    """A round of a policy whose action dimensions are independent given the state, dimension by dimension."""

    log_prob: Tensor  # [..., N, T, A] of the behaviour policy
    effect: Tensor  # [..., N, T, A] d_i(s_t, a_t^i), what coordinate i adds to b(s_t), in the units of ``value``


class Signals(NamedTuple):
    """A round as estimators read it: data without a graph, every field ``[..., N, T]``, padded entries 0."""

    behaviour_log_prob: Tensor
    reward: Tensor
    value: Tensor  # baseline b(s_t), in the units of the discounted reward-to-go
    advantage: Tensor  # GAE(λ), as the module normalised it
    mask: Tensor
    dimensions: Dimensions | tuple[()] = ()  # where the baseline depends on actions

    def map(self, function: Callable[[Tensor], Tensor]) -> Signals:
        """Signals of ``function(tensor)`` of all tensors."""
        return Signals.of({name: function(value) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those of ``dimensions`` as ``dimensions/…``."""
        found = {name: value for name, value in self._asdict().items() if name != "dimensions"}
        extra = self.dimensions._asdict() if self.dimensions else {}
        return found | {f"dimensions/{name}": value for name, value in extra.items()}

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> Signals:
        """Inverse of :meth:`tensors`."""
        extra = {name: value for name, value in tensors.items() if name.startswith("dimensions/")}
        fields = {name: value for name, value in tensors.items() if name not in extra}
        return Signals(**fields, dimensions=Dimensions(*extra.values()) if extra else ())


Params = dict[str, Tensor]
"""Parameters by name, as ``torch.func.functional_call`` takes them; adapted ones have a leading task axis ``B``."""

Adaptation = dict[str, Tensor]
"""A meta-learner's knowledge of ``B`` tasks, ``[B, ...]``: adapted parameters, a posterior, a context."""


@runtime_checkable
class MetaPolicy(Protocol):
    """The back edge from a module to the collector of trajectories: how to act and how to adapt.

    The collector looks into no :data:`Adaptation`; it keeps it from one call to the next.
    """

    def before_adaptation(self, context: Tensor) -> Adaptation:
        """Knowledge of ``B`` tasks before any data, without a graph; ``context [B, C]``, C = 0 for nothing."""
        ...

    def begin_round(self, adaptation: Adaptation, trajectories: int, generator: torch.Generator) -> Adaptation:
        """An adaptation to act a round of that many episodes per task with, such as a draw of a posterior for each.

        All randomness comes from ``generator``, which is on the CPU.
        """
        ...

    def adapt(self, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
        """Knowledge of the tasks after one more round of each, without a graph."""
        ...

    def sample_actions(self, adaptation: Adaptation, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Action and log-probability for ``obs [B, N, O]``: ``[B, N, A]`` (int ``[B, N]`` if discrete), ``[B, N]``.

        All randomness comes from ``generator``, which is on the CPU.
        """
        ...

    def mode_actions(self, adaptation: Adaptation, obs: Tensor) -> Tensor:
        """Deterministic action for ``obs [B, N, O]``: ``[B, N, A]`` (int ``[B, N]`` if discrete)."""
        ...

    def diverged(self, what: str) -> DivergenceError:
        """The error to raise because of ``what``, such as an action that is not finite; it names the step sizes."""
        ...


@runtime_checkable
class Policy(Protocol):
    """The back edge from a module to the collector: how to act."""

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Action for training ``[E, A]``; all randomness comes from ``generator`` (on the CPU)."""
        ...

    def act(self, obs: Tensor) -> Tensor:
        """Deterministic action for evaluation, ``[E, A]``."""
        ...

    def diverged(self, what: str) -> DivergenceError:
        """The error to raise because of ``what``, such as an action that is not finite; it names the step sizes."""
        ...


State = dict[str, Any]
"""Tensors and Python scalars only, so that checkpoints load with ``weights_only=True``."""
