"""Action-value networks: the MLP, the hypernetwork, and what Sarafian et al. 2021 compare it with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lit_metarl.nn.conditioning import named_inputs, with_context
from lit_metarl.nn.hyper_initialisation import HyperInitialisation, Released
from lit_metarl.nn.hypernetwork import Hypernetwork, ResidualNetwork, dynamic_mlp, mlp_layers
from lit_metarl.nn.mlp import EnsembleLinear, Initialisation, ensemble_mlp
from lit_metarl.types import Sizes, require

Input = Literal["obs", "action", "context"]


class CriticFactory(ABC):
    """A critic as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, sizes: Sizes) -> nn.Module:
        """Module from ``(obs [M, O], action [M, A])`` to action values ``[E, M]`` of ``E`` independent members.

        Where ``sizes.context`` is not 0 it is called with the context besides, ``[C]`` or with axes in front that the
        observations begin with.
        """


@dataclass(frozen=True)
class EnsembleCriticMLP(CriticFactory):
    """Independent MLP critics evaluated in one batched product.

    Attributes:
        hidden: widths of the hidden layers.
        members: E; SAC and TD3 take the minimum over them.
        initialisation: of every layer.
    """

    hidden: Sequence[int] = (256, 256)
    members: int = 2
    initialisation: Initialisation = "orthogonal"

    def build(self, sizes: Sizes) -> nn.Module:
        return EnsembleCritic(sizes, self.hidden, self.members, self.initialisation)


@dataclass(frozen=True)
class HyperCritic(CriticFactory):
    """Critics whose weights a hypernetwork makes of one input and applies to the other (Sarafian et al. 2021).

    SA-Hyper, the default: a dynamic network of the action for every observation. AS-Hyper: the other way round. With a
    context, Hyper-PEARL's are ``meta: [obs]``, ``base: [action, context]``; their ``combine`` is
    ``meta: [obs, context]``, ``base: [action]``. The control without an input, "random hyper": ``embedding`` 5,
    ``meta`` empty, ``base`` observation and action; there every member has its own vector, where the released code
    shares it.

    Attributes:
        meta: input of the primary network; the context goes last.
        base: input of the dynamic network; likewise.
        hidden: widths of the dynamic network's hidden layers.
        widths: of the primary network's stages; the last is the length of z.
        blocks: residual blocks of a stage.
        members: E.
        initialisation: of the hypernetwork.
        embedding: length of a learned vector that takes the place of ``meta``; 0 for none.
    """

    meta: Sequence[Input] = ("obs",)
    base: Sequence[Input] = ("action",)
    hidden: Sequence[int] = (256,)
    widths: Sequence[int] = (256, 512, 1024)
    blocks: int = 2
    members: int = 2
    initialisation: HyperInitialisation = field(default_factory=Released)
    embedding: int = 0

    def build(self, sizes: Sizes) -> nn.Module:
        for key, names in {"meta": self.meta, "base": self.base}.items():
            known = set(names) <= {"obs", "action", "context"} and len(set(names)) == len(names)
            require(known, f"critic.{key}", names, "choose from obs, action and context, each once")
        require(bool(self.base), "critic.base", self.base, "the dynamic network needs an input")
        require(self.embedding >= 0, "critic.embedding", self.embedding, "a vector has a length; 0 is for none")
        one = bool(self.meta) != bool(self.embedding)
        require(one, "critic.meta", self.meta, "name the primary network's input, or give an embedding instead")
        told = {"obs", "action"} | ({"context"} if sizes.context else set())
        missing = sorted(told ^ {*self.meta, *self.base})
        require(not missing, "critic.meta, critic.base", (*self.meta, *self.base),
                f"together they must be {', '.join(sorted(told))}")  # fmt: skip
        require(self.members >= 1, "critic.members", self.members, "an ensemble has 1 or more")
        for key, names in {"meta": self.meta, "base": self.base}.items():
            some = not names or sum(getattr(sizes, name) for name in names) > 0
            require(some, f"critic.{key}", names, "a value network has no action: name another input besides")
        return HyperEnsembleCritic(sizes, self)


@dataclass(frozen=True)
class ResNetFeatures(CriticFactory):
    """Control of SA-Hyper: the primary network makes features of the observation, an MLP takes them and the action.

    The defaults are the released code's for SAC; for TD3 it has ``widths`` [1024], ``blocks`` 4 and ``features`` None.

    Attributes:
        widths: of the residual network's stages.
        blocks: residual blocks of a stage.
        features: their number, O if None.
        hidden: widths of the MLP's hidden layers.
        members: E.
        initialisation: of every layer.
    """

    widths: Sequence[int] = (256, 512, 1024)
    blocks: int = 2
    features: int | None = 10
    hidden: Sequence[int] = (256,)
    members: int = 2
    initialisation: Initialisation = "glorot"

    def build(self, sizes: Sizes) -> nn.Module:
        return ResNetFeaturesCritic(sizes, self)


@dataclass(frozen=True)
class ResNetCritic(CriticFactory):
    """Residual critics, "Res35" in the paper: linear layer, residual blocks, ReLU, linear layer.

    Attributes:
        width: of all blocks.
        blocks: their number; 35 with SAC, 70 with TD3 in the released code.
        members: E.
        initialisation: of every layer.
    """

    width: int = 256
    blocks: int = 35
    members: int = 2
    initialisation: Initialisation = "glorot"

    def build(self, sizes: Sizes) -> nn.Module:
        inputs = sizes.obs + sizes.context + sizes.action
        trunk = ResidualNetwork(self.members, inputs, [self.width], self.blocks, self.initialisation)
        head = EnsembleLinear(self.members, self.width, 1, self.initialisation)
        return TrunkCritic(self.members, nn.Sequential(trunk, nn.ReLU(), head))


@dataclass(frozen=True)
class D2RLCritic(CriticFactory):
    """MLP critics whose hidden layers all see the input again (Sinha et al. 2020), "Q-D2RL": the critics only.

    Attributes:
        hidden: widths of the hidden layers.
        members: E.
        initialisation: of every layer.
    """

    hidden: Sequence[int] = (256, 256, 256, 256)
    members: int = 2
    initialisation: Initialisation = "glorot"

    def build(self, sizes: Sizes) -> nn.Module:
        inputs = sizes.obs + sizes.context + sizes.action
        return TrunkCritic(self.members, D2RLTrunk(self.members, inputs, self.hidden, self.initialisation))


def ensemble_value(value: Tensor, shape: torch.Size) -> Tensor:
    """Action values ``[E, *shape]`` of a last layer's ``[E, M, 1]``, M rows in all.

    bf16 products under autocast, float32 values; float64 parameters keep their precision.
    """
    return value.to(torch.promote_types(value.dtype, torch.float32)).squeeze(-1).unflatten(1, shape)


class TrunkCritic(nn.Module):
    """Q_e(obs, action) for ``e = 1 … E`` by a network of both: ``[..., M, O], [..., M, A] → [E, ..., M]``.

    Args:
        members: E.
        trunk: observation, context and action ``[E, M, O + C + A]`` → ``[E, M, 1]``.
    """

    def __init__(self, members: int, trunk: nn.Module) -> None:
        super().__init__()
        self.members = members
        self.trunk = trunk

    def forward(self, obs: Tensor, action: Tensor, context: Tensor | None = None) -> Tensor:
        x = torch.cat([with_context(obs, context), action], dim=-1)
        return ensemble_value(self.trunk(x.flatten(0, -2).expand(self.members, -1, -1)), x.shape[:-1])


class EnsembleCritic(TrunkCritic):
    """An MLP for every member."""

    def __init__(
        self, sizes: Sizes, hidden: Sequence[int], members: int, initialisation: Initialisation = "orthogonal"
    ) -> None:
        inputs = sizes.obs + sizes.context + sizes.action
        super().__init__(members, ensemble_mlp(members, [inputs, *hidden, 1], initialisation))


class D2RLTrunk(nn.Module):
    """An MLP with ReLU whose input is appended to that of all hidden layers: ``[E, M, in] → [E, M, 1]``."""

    def __init__(self, members: int, inputs: int, hidden: Sequence[int], initialisation: Initialisation) -> None:
        super().__init__()
        widths = [0, *hidden]
        pairs = [(inputs + before, after) for before, after in zip(widths[:-1], hidden, strict=True)]
        self.layers = nn.ModuleList(EnsembleLinear(members, *pair, initialisation) for pair in pairs)
        self.head = EnsembleLinear(members, widths[-1], 1, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        h = x[..., :0]
        for layer in self.layers:
            h = torch.relu(layer(torch.cat([h, x], dim=-1)))
        return self.head(h)


class ResNetFeaturesCritic(nn.Module):
    """Q_e(obs, action) by an MLP of the action and of features of the observation: ``→ [E, ..., M]``."""

    def __init__(self, sizes: Sizes, settings: ResNetFeatures) -> None:
        super().__init__()
        self.members, init = settings.members, settings.initialisation
        features = sizes.obs if settings.features is None else settings.features
        self.primary = ResidualNetwork(self.members, sizes.obs + sizes.context, settings.widths, settings.blocks, init)
        self.features = EnsembleLinear(self.members, settings.widths[-1], features, init)
        self.trunk = ensemble_mlp(self.members, [features + sizes.action, *settings.hidden, 1], init)

    def forward(self, obs: Tensor, action: Tensor, context: Tensor | None = None) -> Tensor:
        shape, told = obs.shape[:-1], with_context(obs, context)
        features = self.features(self.primary(told.flatten(0, -2).expand(self.members, -1, -1)))
        rows = action.flatten(0, -2).expand(self.members, -1, -1)
        return ensemble_value(self.trunk(torch.cat([features, rows.to(features.dtype)], dim=-1)), shape)


class HyperEnsembleCritic(nn.Module):
    """Q_e(obs, action) by dynamic networks: ``[..., M, O], [..., M, A] → [E, ..., M]``.

    The weights are values of their own (:meth:`weights`, :meth:`value`). Made of observations, which are data, they
    need no gradient where only actions do: the primary network then has no backward pass.
    """

    def __init__(self, sizes: Sizes, settings: HyperCritic) -> None:
        super().__init__()
        self.members, self.meta, self.base = settings.members, tuple(settings.meta), tuple(settings.base)
        inputs, base = (sum(getattr(sizes, name) for name in names) for names in (self.meta, self.base))
        self.hypernetwork = Hypernetwork(
            inputs or settings.embedding,
            mlp_layers([base, *settings.hidden, 1]),
            settings.members,
            settings.widths,
            settings.blocks,
            settings.initialisation,
        )
        self.embedding = nn.Parameter(torch.randn(self.members, settings.embedding)) if settings.embedding else None

    def weights(self, obs: Tensor, action: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Weights of the dynamic network by name, ``[E, ..., M, ...]``, once for as many as share a meta input."""
        if self.embedding is not None:
            return self.hypernetwork.weights_of(self.embedding)
        return self.hypernetwork(named_inputs(self.meta, obs, action, context))

    def value(self, weights: dict[str, Tensor], obs: Tensor, action: Tensor, context: Tensor | None = None) -> Tensor:
        """Action values ``[E, ..., M]`` with the given weights."""
        # A context alone has the axes of tasks only, weights made of transitions have theirs besides.
        alone = self.base == ("context",)
        x = with_context(obs[..., :0], context) if alone else named_inputs(self.base, obs, action, context)
        value = dynamic_mlp(weights, x.unsqueeze(0), list(self.hypernetwork.layers)).squeeze(-1)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    def forward(self, obs: Tensor, action: Tensor, context: Tensor | None = None) -> Tensor:
        return self.value(self.weights(obs, action, context), obs, action, context)
