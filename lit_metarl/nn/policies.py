"""Policies whose parameters are values: networks for ``torch.func``, mapped over tasks and differentiated twice."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lit_metarl.nn.conditioning import with_context
from lit_metarl.nn.distributions import Categorical, DiagonalGaussian
from lit_metarl.nn.hyper_initialisation import HyperInitialisation, Released
from lit_metarl.nn.hypernetwork import Hypernetwork, dynamic_mlp, mlp_layers
from lit_metarl.nn.layers import Linear, fused_tanh
from lit_metarl.nn.mlp import check_layer
from lit_metarl.types import Sizes, require


class Tanh(nn.Module):
    """tanh(x), computed as 2σ(2x) − 1 in full precision on the CPU, where σ is up to ten times faster.

    The two differ by a rounding of 1: no more than the matrix product before it. In half precision that would be
    most of a small x, so there, and on a GPU, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """tanh(x) element-wise, ``[...]`` → ``[...]``."""
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
            return fused_tanh(x)
        return torch.tanh(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU}
Activation = Literal["tanh", "relu"]


class PolicyFactory(ABC):
    """A policy network as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """Module from observations ``[..., O]`` to a distribution with ``log_prob``, ``sample`` and ``mode_action``.

        Where ``sizes.context`` is not 0 it is called with what :func:`~lit_metarl.nn.conditioning.condition` makes of
        the task's context besides.

        Raises:
            ConfigError: the policy is for the other kind of action space.
        """


@dataclass(frozen=True)
class GaussianMLP(PolicyFactory):
    """Gaussian policy of MAML and its successors (Finn et al. 2017; Rothfuss et al. 2019): unbounded actions.

    Attributes:
        hidden: widths of the hidden layers.
        activation: ``tanh`` or ``relu``; ReLU has no curvature, so second derivatives see the output layer only.
        initial_log_std: log of the initial standard deviation, the same for every action dimension.
        min_log_std: floor of the log-std that acts; see :class:`GaussianPolicy`.
    """

    hidden: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    initial_log_std: float = 0.0
    min_log_std: float = math.log(1e-6)

    def build(self, sizes: Sizes) -> nn.Module:
        require(
            sizes.num_actions is None,
            "policy",
            "GaussianMLP",
            f"it draws continuous actions and this environment has {sizes.num_actions} discrete ones; use "
            "CategoricalMLP",
        )
        trunk = glorot_mlp([sizes.obs + sizes.context, *self.hidden, sizes.action], self.activation)
        return GaussianPolicy(trunk, sizes.action, self.initial_log_std, self.min_log_std)


@dataclass(frozen=True)
class HyperGaussian(PolicyFactory):
    """Gaussian policy whose weights a hypernetwork makes of the task's context (Sarafian et al. 2021, Hyper-MAML).

    The hypernetwork is what adapts, along with the log-std. The same step size moves it far less, or more, than an MLP:
    the released one is 5e-5 where the MLP's is 0.1, and "no adaptation needed" is then a matter of the step.

    Attributes:
        hidden: widths of the dynamic network's hidden layers.
        widths: of the primary network's stages; the last is the length of the embedding.
        blocks: residual blocks of a stage.
        initialisation: of the hypernetwork.
        initial_log_std: as of :class:`GaussianMLP`.
        min_log_std: as of :class:`GaussianMLP`.
    """

    hidden: Sequence[int] = (256,)
    widths: Sequence[int] = (256, 512, 1024)
    blocks: int = 2
    initialisation: HyperInitialisation = field(default_factory=lambda: Released(primary_gain=0.5))
    initial_log_std: float = 0.0
    min_log_std: float = math.log(1e-6)

    def build(self, sizes: Sizes) -> nn.Module:
        remedy = "it draws continuous actions and this environment has {} discrete ones; use CategoricalMLP"
        require(sizes.num_actions is None, "policy", "HyperGaussian", remedy.format(sizes.num_actions))
        remedy = "it makes weights of a context, and there is none: set data.oracle_context true"
        require(sizes.context > 0, "policy", "HyperGaussian", remedy)
        return HyperGaussianPolicy(sizes, self)


@dataclass(frozen=True)
class CategoricalMLP(PolicyFactory):
    """Softmax policy over C discrete actions.

    Attributes:
        hidden: widths of the hidden layers; empty for logits linear in the observation, which is one free logit per
            state and action where observations are one-hot.
        activation: ``tanh`` or ``relu``.
        bias: whether the layers have biases; a tabular softmax has none.
        zero_output: start the output layer at 0, hence with the uniform policy.
    """

    hidden: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    bias: bool = True
    zero_output: bool = False

    def build(self, sizes: Sizes) -> nn.Module:
        require(
            sizes.num_actions is not None,
            "policy",
            "CategoricalMLP",
            "it draws one of finitely many actions and this environment's are continuous; use GaussianMLP",
        )
        widths = [sizes.obs + sizes.context, *self.hidden, sizes.num_actions or 0]
        trunk = glorot_mlp(widths, self.activation, self.bias)
        if self.zero_output:
            nn.init.zeros_(cast(nn.Linear, trunk[-1]).weight)
        return CategoricalPolicy(trunk)


def glorot_mlp(sizes: Sequence[int], activation: Activation = "tanh", bias: bool = True) -> nn.Sequential:
    """Linear layers ``sizes[0] → … → sizes[-1]`` with ``activation`` between them; Glorot-uniform weights, biases 0.

    Raises:
        ConfigError: an ``activation`` that is not one of ``ACTIVATIONS``.
    """
    require(activation in ACTIVATIONS, "activation", activation, f"choose one of {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        check_layer(fan_in, fan_out)
        linear = Linear(fan_in, fan_out, bias=bias)
        nn.init.xavier_uniform_(linear.weight)
        if bias:
            nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class GaussianPolicy(nn.Module):
    """Observations ``[..., O]`` → :class:`DiagonalGaussian` over ``[..., A]``; the log-std depends on no observation.

    The inner loop adapts ``log_std`` like any other parameter, and a large step can drive the standard deviation to 0
    and densities out of range; the policy therefore acts with max(log_std, min_log_std). The gradient passes the floor
    as if it were not there: with the true derivative, 0, a parameter below it could never come back.
    """

    def __init__(self, trunk: nn.Module, action_dim: int, initial_log_std: float, min_log_std: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.min_log_std = min_log_std
        self.log_std = nn.Parameter(torch.full((action_dim,), float(initial_log_std)))

    def forward(self, obs: Tensor, context: Tensor | None = None) -> DiagonalGaussian:
        # The parameters' dtype: under bf16-mixed only the matrix products are bf16, densities need float32.
        mean = self.trunk(with_context(obs, context)).to(self.log_std.dtype)
        return DiagonalGaussian(mean, with_floor(self.log_std, self.min_log_std).expand_as(mean))


class HyperGaussianPolicy(nn.Module):
    """Observations ``[..., O]`` and the weights that ``hypernetwork`` made of the task's context → Gaussian actions.

    It follows the contract of :mod:`lit_metarl.nn.conditioning`. The log-std is that of :class:`GaussianPolicy`.
    """

    def __init__(self, sizes: Sizes, settings: HyperGaussian) -> None:
        super().__init__()
        layers = mlp_layers([sizes.obs, *settings.hidden, sizes.action])
        initialisation = settings.initialisation
        self.hypernetwork = Hypernetwork(sizes.context, layers, 0, settings.widths, settings.blocks, initialisation)
        self.min_log_std = settings.min_log_std
        self.log_std = nn.Parameter(torch.full((sizes.action,), float(settings.initial_log_std)))

    def forward(self, obs: Tensor, weights: dict[str, Tensor]) -> DiagonalGaussian:
        mean = dynamic_mlp(weights, obs, list(self.hypernetwork.layers)).to(self.log_std.dtype)
        return DiagonalGaussian(mean, with_floor(self.log_std, self.min_log_std).expand_as(mean))


def with_floor(log_std: Tensor, floor: float) -> Tensor:
    """max(log_std, floor), ``[A]``, with the gradient of ``log_std`` itself; see :class:`GaussianPolicy`."""
    return log_std + (log_std.clamp(min=floor) - log_std).detach()


class CategoricalPolicy(nn.Module):
    """Observations ``[..., O]`` → :class:`Categorical` over C actions, logits ``[..., C]``."""

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, obs: Tensor, context: Tensor | None = None) -> Categorical:
        return Categorical(self.trunk(with_context(obs, context)).to(self.trunk[-1].weight.dtype))
