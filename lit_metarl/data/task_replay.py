"""Uniform experience replay of many tasks, and transitions out of trajectories and back."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_metarl.types import State, Trajectories, Transition


class TaskReplay:
    """A ring of transitions for each of ``K`` tasks, which all lie in one piece of memory that grows with its content.

    A transition takes 4·(2·O + A + 1) + 2 bytes. Space is made for as many transitions of every task as the fullest
    has, rounded up by at most a factor of two: 100 tasks with 27,000 transitions each, O = 20 and A = 6 (half-cheetah
    at a velocity, the whole of the published training), are 0.5 GB of content in little more than 1 GB; while space is
    made, the old and the new are held at once. A checkpoint holds the content. An encoder buffer is one more, there of
    at most the 2,000 initial transitions of a task: less than a tenth.

    Args:
        tasks: K.
        capacity: transitions kept of each task; the oldest is overwritten.
        obs_dim: O.
        action_dim: A.
    """

    def __init__(self, tasks: int, capacity: int, obs_dim: int, action_dim: int) -> None:
        self.capacity = capacity
        self.size = torch.zeros(tasks, dtype=torch.long)
        self.position = torch.zeros(tasks, dtype=torch.long)
        self.storage = Transition(
            obs=torch.zeros(tasks, 0, obs_dim),
            action=torch.zeros(tasks, 0, action_dim),
            reward=torch.zeros(tasks, 0),
            next_obs=torch.zeros(tasks, 0, obs_dim),
            terminated=torch.zeros(tasks, 0, dtype=torch.bool),
            truncated=torch.zeros(tasks, 0, dtype=torch.bool),
        )

    def insert(self, task: int, transitions: Transition) -> None:
        """Append ``n`` transitions of ``task``, each field ``[n, ...]``; of more than the capacity the last ones."""
        new = Transition(*(field[-self.capacity :] for field in transitions))
        count, position = len(new.reward), int(self.position[task])
        self._reserve(min(position + count, self.capacity))
        rows = (position + torch.arange(count)) % self.capacity
        for stored, field in zip(self.storage, new, strict=True):
            stored[task, rows] = field
        self.position[task] = (position + count) % self.capacity
        self.size[task] = min(int(self.size[task]) + count, self.capacity)

    def _reserve(self, rows: int) -> None:
        present = self.storage.reward.shape[1]
        if rows > present:
            more = min(max(rows, 2 * present), self.capacity) - present
            grown = (torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], dim=1) for x in self.storage)
            self.storage = Transition(*grown)

    def clear(self, task: int) -> None:
        """Forget all transitions of ``task``."""
        self.size[task] = self.position[task] = 0

    def sample(self, generator: torch.Generator, tasks: Tensor, batch_size: int) -> Transition:
        """Transitions drawn uniformly with replacement.

        Args:
            generator: stream of the indices.
            tasks: ``[...]`` int64, tasks that have transitions.
            batch_size: M of each.

        Returns:
            Fields ``[..., M, ...]``.

        Raises:
            ValueError: a task has no transition.
        """
        sizes = self.size[tasks]
        if (sizes == 0).any():
            raise ValueError(f"there is no transition of task {int(tasks[sizes == 0][0])} to draw from.")
        # float64: a float32 uniform has 2^24 values and would favour some rows of a large ring.
        uniform = torch.rand(*tasks.shape, batch_size, generator=generator, dtype=torch.float64)
        row = (uniform * sizes.unsqueeze(-1)).long() + self.storage.reward.shape[1] * tasks.unsqueeze(-1)
        drawn = (field.flatten(0, 1).index_select(0, row.flatten()) for field in self.storage)
        return Transition(*(field.unflatten(0, row.shape) for field in drawn))

    def state_dict(self) -> State:
        """The transitions of one task after those of another, without the space between them, and where each ends."""
        filled = torch.arange(self.storage.reward.shape[1]) < self.size[:, None]
        return {
            "capacity": self.capacity,
            "size": self.size.clone(),
            "position": self.position.clone(),
            "storage": {name: field[filled] for name, field in self.storage._asdict().items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: the saved rings are of another number of tasks, capacity or dimensions.
        """
        saved = Transition(**state["storage"])
        own, found = (
            [len(size), capacity, transitions.obs.shape[-1], transitions.action.shape[-1]]
            for size, capacity, transitions in (
                (self.size, self.capacity, self.storage),
                (state["size"], state["capacity"], saved),
            )
        )
        if own != found:
            raise ValueError(
                f"the checkpoint's replay is of {found} tasks, transitions of each, observations and actions, this one "
                f"of {own}; set data.init_args.train_tasks and data.init_args.capacity to the checkpoint's values"
            )
        self.size, self.position = state["size"].clone(), state["position"].clone()
        rows = int(self.size.max())
        filled = torch.arange(rows) < self.size[:, None]
        fields = []
        for field, values in zip(self.storage, saved, strict=True):
            loaded = field.new_zeros(len(self.size), rows, *field.shape[2:])
            loaded[filled] = values
            fields.append(loaded)
        self.storage = Transition(*fields)


def transitions_of(trajectories: Trajectories) -> list[Transition]:
    """All transitions of each of ``B`` tasks, fields ``[n, ...]``, episode by episode in the order of time."""
    alive = trajectories.mask > 0
    ahead = torch.cat([alive[..., 1:], torch.zeros_like(alive[..., :1])], dim=-1)
    last, terminated = alive & ~ahead, trajectories.terminated.unsqueeze(-1)
    fields = Transition(
        trajectories.obs,
        trajectories.action,
        trajectories.reward,
        trajectories.next_obs,
        last & terminated,
        last & ~terminated,
    )
    return [Transition(*(field[task][alive[task]] for field in fields)) for task in range(len(alive))]


def as_episodes(transitions: Transition, context: Tensor) -> Trajectories:
    """Transitions ``[B, C, ...]`` as C episodes of one step each: a policy adapts to trajectories.

    Args:
        transitions: fields ``[B, C, ...]``, in any order.
        context: what the policy was told of the tasks, ``[B, D]``.
    """
    reward = transitions.reward.unsqueeze(-1)
    return Trajectories(
        transitions.obs.unsqueeze(2),
        transitions.action.unsqueeze(2),
        reward,
        torch.zeros_like(reward),
        torch.ones_like(reward),
        transitions.next_obs,
        transitions.terminated,
        context,
    )
