"""Action-value networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_metarl.nn.conditioning import with_context
from lit_metarl.nn.mlp import Initialisation, ensemble_mlp
from lit_metarl.types import Sizes


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


class EnsembleCritic(nn.Module):
    """Q_e(obs, action) for ``e = 1 … E``: ``[..., M, O], [..., M, A] → [E, ..., M]``."""

    def __init__(
        self, sizes: Sizes, hidden: Sequence[int], members: int, initialisation: Initialisation = "orthogonal"
    ) -> None:
        super().__init__()
        self.members = members
        self.trunk = ensemble_mlp(members, [sizes.obs + sizes.context + sizes.action, *hidden, 1], initialisation)

    def forward(self, obs: Tensor, action: Tensor, context: Tensor | None = None) -> Tensor:
        x = torch.cat([with_context(obs, context), action], dim=-1)
        value = self.trunk(x.flatten(0, -2).expand(self.members, -1, -1)).unflatten(1, x.shape[:-1])
        # bf16 products under autocast, float32 values; float64 parameters keep their precision.
        return value.to(torch.promote_types(value.dtype, torch.float32)).squeeze(-1)
