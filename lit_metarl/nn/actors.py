"""Policies: networks from observations to action distributions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lit_metarl.nn.conditioning import with_context
from lit_metarl.nn.distributions import Deterministic, TanhGaussian
from lit_metarl.nn.hyper_initialisation import DynamicLayer, HyperInitialisation, Released
from lit_metarl.nn.hypernetwork import Hypernetwork, dynamic_linear, dynamic_mlp, layer_weights, mlp_layers
from lit_metarl.nn.mlp import Initialisation, mlp
from lit_metarl.types import Sizes, require

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
RELEASED_LOG_STD = (-20.0, 2.0)
ActorInput = Literal["obs", "context"]


class ActorFactory(ABC):
    """A policy network as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """Module from observations ``[..., O]`` to a distribution with ``mode_action``, for SAC ``sample(noise)`` too.

        Where ``sizes.context`` is not 0 it is called with the context besides, ``[C]`` or with axes in front that the
        observations begin with.
        """


@dataclass(frozen=True)
class TanhGaussianMLP(ActorFactory):
    """MLP policy of SAC (Haarnoja et al. 2018; sizes of pytorch_sac: 2 × 1024).

    PEARL's is released with ``output_bound: 1.0e-3`` and ``clamp_log_std: true``: untrained, its actions are tanh of
    N(0, 1) whatever the state. With the defaults they vary less, around a mean that depends on the state.

    Attributes:
        hidden: widths of the hidden layers.
        initialisation: of every layer.
        output_bound: instead, of the last layer: weights and biases U(±bound); None for none.
        clamp_log_std: clamp log σ to [-20, 2] instead of mapping it onto [-5, 2].
    """

    hidden: Sequence[int] = (256, 256)
    initialisation: Initialisation = "orthogonal"
    output_bound: float | None = None
    clamp_log_std: bool = False

    def build(self, sizes: Sizes) -> nn.Module:
        bound = self.output_bound
        require(bound is None or 0.0 <= bound < math.inf, "actor.output_bound", bound, "0 or more, or null")
        return TanhGaussianActor(sizes, self)


@dataclass(frozen=True)
class DeterministicMLP(ActorFactory):
    """MLP policy of TD3, tanh of the last layer (Fujimoto et al. 2018, appendix C).

    Attributes:
        hidden: widths of the hidden layers.
        initialisation: of every layer.
    """

    hidden: Sequence[int] = (256, 256)
    initialisation: Initialisation = "torch"

    def build(self, sizes: Sizes) -> nn.Module:
        return DeterministicActor(sizes, self.hidden, self.initialisation)


@dataclass(frozen=True)
class HyperActor(ActorFactory):
    """Policy whose weights a hypernetwork makes of one input and applies to the other (Sarafian et al. 2021).

    Hyper-PEARL, the default: a dynamic network of the observation for every context, made once per task. Their
    ``reverse`` is ``meta: [obs]``, ``base: [context]``. The dynamic network has two output layers, for μ and log σ,
    which is clamped to [-20, 2].

    Attributes:
        meta: input of the primary network; the context goes last.
        base: input of the dynamic network; likewise.
        hidden: widths of the dynamic network's hidden layers, at least one.
        widths: of the primary network's stages; the last is the length of the embedding.
        blocks: residual blocks of a stage.
        initialisation: of the hypernetwork.
        log_std_bound: of the weights of the heads that make log σ, in :class:`~lit_metarl.nn.Released`.
    """

    meta: Sequence[ActorInput] = ("context",)
    base: Sequence[ActorInput] = ("obs",)
    hidden: Sequence[int] = (256,)
    widths: Sequence[int] = (256, 512, 1024)
    blocks: int = 2
    initialisation: HyperInitialisation = field(default_factory=lambda: Released(primary_gain=0.5))
    log_std_bound: float = 0.001

    def build(self, sizes: Sizes) -> nn.Module:
        names = sorted([*self.meta, *self.base])
        remedy = "together they must be obs and context, each once, and neither empty"
        fits = names == ["context", "obs"] and bool(self.meta) and bool(self.base)
        require(fits, "actor.meta, actor.base", (*self.meta, *self.base), remedy)
        require(sizes.context > 0, "actor", type(self).__name__, "it needs a context; take TanhGaussianMLP")
        require(bool(self.hidden), "actor.hidden", self.hidden, "both output layers need a hidden one before them")
        return (HyperTanhGaussian if "context" in self.meta else ReversedHyperTanhGaussian)(sizes, self)


class TanhGaussianActor(nn.Module):
    """Observations ``[..., O]`` → :class:`TanhGaussian` over actions ``[..., A]``.

    The raw log-std passes a tanh and an affine map onto [-5, 2], so it never saturates at a clamp with zero gradient,
    but for a policy that is to be as released.
    """

    def __init__(self, sizes: Sizes, settings: TanhGaussianMLP) -> None:
        super().__init__()
        self.trunk = mlp([sizes.obs + sizes.context, *settings.hidden, 2 * sizes.action], settings.initialisation)
        self.clamp_log_std = settings.clamp_log_std
        if settings.output_bound is not None:
            for values in self.trunk[-1].parameters():
                nn.init.uniform_(values, -settings.output_bound, settings.output_bound)

    def forward(self, obs: Tensor, context: Tensor | None = None) -> TanhGaussian:
        mean, raw = at_least_float32(self.trunk(with_context(obs, context))).chunk(2, dim=-1)
        if self.clamp_log_std:
            return TanhGaussian(mean, raw.clamp(*RELEASED_LOG_STD))
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1.0)
        return TanhGaussian(mean, log_std)


class DeterministicActor(nn.Module):
    """Observations ``[..., O]`` → :class:`Deterministic` action ``[..., A]``, tanh of an MLP."""

    def __init__(self, sizes: Sizes, hidden: Sequence[int], initialisation: Initialisation) -> None:
        super().__init__()
        self.trunk = mlp([sizes.obs + sizes.context, *hidden, sizes.action], initialisation)

    def forward(self, obs: Tensor, context: Tensor | None = None) -> Deterministic:
        return Deterministic(torch.tanh(at_least_float32(self.trunk(with_context(obs, context)))))


class HyperTanhGaussian(nn.Module):
    """Observations ``[*lead, ..., O]`` and weights ``[*lead, ...]`` that ``hypernetwork`` made of a context.

    It follows the contract of :mod:`lit_metarl.nn.conditioning`, by which weights are made once per task.
    """

    def __init__(self, sizes: Sizes, settings: HyperActor) -> None:
        super().__init__()
        self.hypernetwork = actor_hypernetwork(sizes.context, sizes.obs, sizes.action, settings)

    def forward(self, obs: Tensor, weights: dict[str, Tensor]) -> TanhGaussian:
        return dynamic_policy(weights, obs)


class ReversedHyperTanhGaussian(nn.Module):
    """The other way round: observations ``[..., O]`` make the weights, which are applied to the context."""

    def __init__(self, sizes: Sizes, settings: HyperActor) -> None:
        super().__init__()
        self.weight_maker = actor_hypernetwork(sizes.obs, sizes.context, sizes.action, settings)

    def forward(self, obs: Tensor, context: Tensor) -> TanhGaussian:
        return dynamic_policy(self.weight_maker(obs), with_context(obs[..., :0], context))


def actor_hypernetwork(meta: int, base: int, action: int, settings: HyperActor) -> Hypernetwork:
    """Hypernetwork of a dynamic policy: layers "0", "1", … of hidden units, then "mean" and "log_std"."""
    hidden = {name: layer._replace(is_output=False) for name, layer in mlp_layers([base, *settings.hidden]).items()}
    mean = DynamicLayer(settings.hidden[-1], action, after_relu=True, is_output=True)
    layers = hidden | {"mean": mean, "log_std": mean._replace(bound=settings.log_std_bound)}
    return Hypernetwork(meta, layers, 0, settings.widths, settings.blocks, settings.initialisation)


def dynamic_policy(weights: dict[str, Tensor], x: Tensor) -> TanhGaussian:
    """Policy of the layers of :func:`actor_hypernetwork`: ``x [*lead, ..., base]`` → distribution over ``[..., A]``."""
    hidden = [name for name in dict.fromkeys(key.split(".")[0] for key in weights) if name.isdecimal()]
    features = torch.relu(dynamic_mlp(weights, x, hidden))
    heads = (dynamic_linear(layer_weights(weights, name), features) for name in ("mean", "log_std"))
    mean, log_std = (at_least_float32(head) for head in heads)
    return TanhGaussian(mean, log_std.clamp(*RELEASED_LOG_STD))


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` without half precision: under bf16-mixed only matrix products are bf16, and densities need float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
