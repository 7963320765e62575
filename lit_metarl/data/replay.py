"""Uniform experience replay in torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_metarl.types import State, Transition


class Replay:
    """Ring of the last ``capacity`` transitions: raw rewards, ``terminated`` and ``truncated`` apart.

    Args:
        capacity: number of transitions kept; the oldest is overwritten.
        obs_dim: O.
        action_dim: A.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.position = 0
        self.storage = Transition(
            obs=torch.zeros(capacity, obs_dim),
            action=torch.zeros(capacity, action_dim),
            reward=torch.zeros(capacity),
            next_obs=torch.zeros(capacity, obs_dim),
            terminated=torch.zeros(capacity, dtype=torch.bool),
            truncated=torch.zeros(capacity, dtype=torch.bool),
        )

    def insert(self, transition: Transition) -> None:
        """Append ``E ≤ capacity`` transitions, each field ``[E, ...]``."""
        count = transition.reward.shape[0]
        rows: slice | Tensor = slice(self.position, self.position + count)
        if self.position + count > self.capacity:
            rows = (self.position + torch.arange(count)) % self.capacity
        for stored, new in zip(self.storage, transition, strict=True):
            stored[rows] = new
        self.position = (self.position + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def clear(self) -> None:
        """Forget everything."""
        self.size = self.position = 0

    def sample(self, generator: torch.Generator, available: Tensor, batch_size: int) -> Transition:
        """Minibatches drawn uniformly with replacement.

        Args:
            generator: stream of the indices.
            available: ``[U]`` float64; minibatch ``u`` draws from the ``available[u]`` oldest transitions of an
                unfilled ring, and from all of a full one.
            batch_size: M.

        Returns:
            Fields ``[U, M, ...]``.
        """
        updates = available.shape[0]
        # float64: a float32 uniform has 2^24 values and would favour some rows of a large ring.
        uniform = torch.rand(updates, batch_size, generator=generator, dtype=torch.float64)
        index = (uniform * available.clamp(max=self.size)[:, None]).long().flatten()
        return Transition(*(field.index_select(0, index).unflatten(0, (updates, batch_size)) for field in self.storage))

    def state_dict(self) -> State:
        """The filled part of the ring (cloned), its write position included."""
        return {
            "capacity": self.capacity,
            "position": self.position,
            "storage": {name: field[: self.size].clone() for name, field in self.storage._asdict().items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: the saved ring has another capacity or other dimensions.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the checkpoint's replay has capacity {state['capacity']}, this one {self.capacity}; "
                "set data.init_args.capacity to the checkpoint's value"
            )
        saved = Transition(**state["storage"])
        if saved.obs.shape[1:] != self.storage.obs.shape[1:] or saved.action.shape[1:] != self.storage.action.shape[1:]:
            raise ValueError(
                f"the checkpoint's replay holds {saved.obs.shape[1]} observations and {saved.action.shape[1]} actions, "
                f"this environment has {self.storage.obs.shape[1]} and {self.storage.action.shape[1]}"
            )
        self.size = saved.reward.shape[0]
        self.position = state["position"]
        for field, values in zip(self.storage, saved, strict=True):
            field[: self.size] = values
