"""Initialisations of hypernetworks: how large the weights are that an untrained one makes.

====================  ============================================================================================
:class:`Released`     bounds of the published code; dynamic weights three to five times smaller than an MLP's
:class:`BiasHyper`    head weights 0, head biases an MLP's usual values: it starts as an MLP without a meta input
:class:`HyperFanIn`   variances such that the dynamic network keeps that of its input, z's measured
====================  ============================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_metarl.nn.mlp import EnsembleLinear, initialise
from lit_metarl.types import require


class DynamicLayer(NamedTuple):
    """A linear layer whose weights are made by a hypernetwork."""

    inputs: int
    outputs: int
    after_relu: bool  # whether its input has passed a ReLU
    is_output: bool  # whether its output is the network's
    bound: float | None = None  # of its heads' weights in Released, where it is not that of all such layers

    @property
    def parts(self) -> tuple[int, int, int]:
        """How many numbers are its weight, its bias and its gain."""
        return self.inputs * self.outputs, self.outputs, self.outputs


class Head(NamedTuple):
    """The heads of one dynamic layer: views ``[E, z, n]`` and ``[E, 1, n]`` of the parameters that make n numbers."""

    weight: tuple[Tensor, Tensor]  # n = in·out, row by row of [in, out]
    bias: tuple[Tensor, Tensor]  # n = out
    gain: tuple[Tensor, Tensor]  # n = out; s, of which 1 + s is used


def heads_of(heads: EnsembleLinear, layers: Mapping[str, DynamicLayer]) -> Iterator[tuple[DynamicLayer, Head]]:
    """Every layer with the views of its heads."""
    start = 0
    for layer in layers.values():
        views = []
        for size in layer.parts:
            part = slice(start, start + size)
            views.append((heads.weight.detach()[..., part], heads.bias.detach()[..., part]))
            start += size
        yield layer, Head(*views)


@dataclass(frozen=True)
class HyperInitialisation(ABC):
    """Values of a new hypernetwork.

    Attributes:
        primary_gain: the primary network's weights are U(±primary_gain/√in), its biases U(±1/√in). Released: √½ with
            SAC, 0.5 with TD3 and PEARL.
        zero_output: whether output layers make 0, whatever the input, until they have learned something.
    """

    primary_gain: float = 0.5**0.5
    zero_output: bool = False

    @torch.no_grad()
    def fill(self, primary: nn.Module, heads: EnsembleLinear, layers: Mapping[str, DynamicLayer]) -> None:
        """Fill all parameters in place.

        Args:
            primary: meta inputs ``[E, M, inputs]`` → z ``[E, M, z]``, made of :class:`EnsembleLinear`.
            heads: z → all numbers of all layers, weight, bias and gain of one after those of another.
            layers: the dynamic layers, in this order.
        """
        gain = self.primary_gain
        require(0 <= gain < math.inf, "initialisation.primary_gain", gain, "it must be finite and not negative")
        for layer in primary.modules():
            if isinstance(layer, EnsembleLinear):
                bound = layer.weight.shape[1] ** -0.5
                layer.weight.uniform_(-gain * bound, gain * bound)
                layer.bias.uniform_(-bound, bound)
        nn.init.zeros_(heads.weight)
        nn.init.zeros_(heads.bias)
        for dynamic, head in heads_of(heads, layers):
            if not (self.zero_output and dynamic.is_output):
                self.fill_head(head, dynamic, primary)

    @abstractmethod
    def fill_head(self, head: Head, layer: DynamicLayer, primary: nn.Module) -> None:
        """Fill the heads of one layer in place; they hold 0, and the primary network its own values."""


@dataclass(frozen=True)
class Released(HyperInitialisation):
    """U(±r) for all heads' weights, 0 for their biases, as the code of Sarafian et al. 2021.

    Attributes:
        hidden_bound: r of hidden layers.
        output_bound: r of output layers, unless a layer has its own.
    """

    hidden_bound: float = 0.05
    output_bound: float = 0.008

    def fill_head(self, head: Head, layer: DynamicLayer, primary: nn.Module) -> None:
        """Uniform weights for all three heads."""
        bound = self.output_bound if layer.is_output else self.hidden_bound
        bound = bound if layer.bound is None else layer.bound
        remedy = "it must be finite and not negative"
        require(0 <= bound < math.inf, "initialisation's bound of a head's weights", bound, remedy)
        for weight, _ in head:
            weight.uniform_(-bound, bound)


@dataclass(frozen=True)
class BiasHyper(HyperInitialisation):
    """Heads' weights 0, their biases the usual values of ``nn.Linear`` (Beck et al. 2022, "bias-hyperinit")."""

    def fill_head(self, head: Head, layer: DynamicLayer, primary: nn.Module) -> None:
        """U(±1/√in) for the biases of the weight's and the bias's head; the gain is 1."""
        for weight, bias in zip(head.weight[1], head.bias[1], strict=True):
            initialise(weight.view(layer.inputs, layer.outputs).T, bias[0], "torch")


@dataclass(frozen=True)
class HyperFanIn(HyperInitialisation):
    """Normal weights of the weight's and the bias's head, such that every layer's output has the variance of its input.

    Half of it from the dynamic weights, half from the dynamic biases, as hyperfan-in of Chang et al. 2020:
    Var = c/(2 · in · n_z · E[z²]), c = 2 after a ReLU and 1 elsewhere, and 1/(2 · n_z · E[z²]). The gain is 1. E[z²] of
    every member is measured on meta inputs from N(0, 1), so that it holds for any primary network. The biases' half
    does not follow the input: its variance is taken for 1.

    Attributes:
        samples: meta inputs that E[z²] is measured on.
    """

    samples: int = 1024

    def fill_head(self, head: Head, layer: DynamicLayer, primary: nn.Module) -> None:
        """Normal weights of these two heads; the third keeps 0."""
        require(self.samples >= 1, "initialisation.samples", self.samples, "a variance is measured on 1 or more")
        first = next(module for module in primary.modules() if isinstance(module, EnsembleLinear))
        z = primary(torch.randn(first.weight.shape[0], self.samples, first.weight.shape[1]))
        std = (2.0 * z.square().sum(-1).mean(-1))[:, None, None].rsqrt()  # [E, 1, 1]
        head.weight[0].normal_().mul_(std * ((2.0 if layer.after_relu else 1.0) / layer.inputs) ** 0.5)
        head.bias[0].normal_().mul_(std)
