"""Tasks in force in environments, and those that wait for the next reset. Axes: ``E`` environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lit_metarl.envs.base import Array, EnvError, Tasks


class PendingTasks:
    """Tasks that wait for the next reset of their environment.

    Attributes:
        rows: the tasks given last, each parameter ``[E, ...]``.
        waiting: ``[E]`` bool, environments that were not reset since.
    """

    def __init__(self, num_envs: int) -> None:
        self.rows: dict[str, Array] = {}
        self.waiting = np.zeros(num_envs, dtype=bool)

    def give(self, rows: dict[str, Array]) -> None:
        """Replace the tasks that wait by ``rows``, parameters ``[E, ...]`` that are nobody else's."""
        self.rows = rows
        self.waiting[:] = True

    def begin(self, ids: Array) -> Array:
        """Indices of those of the environments ``ids`` ``[n]`` whose reset, made now, begins another task."""
        changed = ids[self.waiting[ids]]
        self.waiting[changed] = False
        return changed


class TaskTable(PendingTasks):
    """Task parameters ``[E, ...]`` float64 of vectorised environments; one that is not named keeps its value.

    Args:
        name: of the simulator, for errors.
        num_envs: E.
        known: all parameters.
        default: known parameter → its value ``[E, ...]`` where nobody sets it.
        always: parameters that are in the table from the beginning, the others once they are given.

    Attributes:
        in_force: the parameters of the running episodes.
    """

    def __init__(
        self, name: str, num_envs: int, known: Sequence[str], default: Callable[[str], Array], always: Sequence[str]
    ) -> None:
        super().__init__(num_envs)
        self.name = name
        self.known = known
        self.default = default
        self.in_force: dict[str, Array] = {}
        self._add(always)

    def checked(self, tasks: Tasks) -> dict[str, Array]:
        """Float64 copies of ``tasks``; ``EnvError`` on an unknown, ill-shaped or infinite parameter."""
        checked = {}
        for key, value in tasks.items():
            if key not in self.known:
                raise EnvError(f"{self.name} has no task parameter {key!r}; known: {', '.join(self.known)}.")
            checked[key] = rows = np.array(value, dtype=np.float64)
            if rows.shape != (shape := self.default(key).shape) or not np.isfinite(rows).all():
                raise EnvError(f"{self.name}: task {key!r} has to be finite and of shape {shape}, got {rows.shape}.")
        return checked

    def give(self, rows: dict[str, Array]) -> None:
        """Have ``rows``, which are :meth:`checked`, in force from each environment's next reset."""
        if rows:
            self._add(rows)
            super().give(self.rows | rows)

    def begin(self, ids: Array) -> Array:
        """Indices of those of the environments ``ids`` ``[n]`` that begin another task, which is in force now."""
        changed = super().begin(ids)
        for key, value in self.in_force.items():
            value[changed] = self.rows[key][changed]
        return changed

    def state(self) -> dict[str, Any]:
        """Both kinds of tasks, as tensors."""
        return {
            "tasks": {key: torch.from_numpy(value.copy()) for key, value in self.in_force.items()},
            "next_tasks": {key: torch.from_numpy(value.copy()) for key, value in self.rows.items()},
            "task_changed": torch.from_numpy(self.waiting.copy()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`; a parameter that only this table has goes back to its default."""
        present = [*self.in_force, *state["tasks"]]
        self.in_force, self.rows = {}, {}
        self._add(present)
        for name, table in (("tasks", self.in_force), ("next_tasks", self.rows)):
            table.update((key, value.numpy().copy()) for key, value in state[name].items())
        self.waiting[...] = state["task_changed"].numpy()

    def _add(self, keys: Sequence[str] | Mapping[str, Any]) -> None:
        for key in keys:
            if key not in self.in_force:
                self.in_force[key] = np.array(self.default(key), dtype=np.float64)
                self.rows[key] = self.in_force[key].copy()
