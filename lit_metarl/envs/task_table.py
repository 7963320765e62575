"""Tasks in force in environments, and those that wait for the next reset. Axes: ``E`` environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from lit_metarl.envs.base import Array, EnvError, Tasks


class PendingTasks:
    """Tasks ``rows``, each parameter ``[E, ...]``, that environments ``waiting`` ``[E]`` begin at their next reset."""

    def __init__(self, num_envs: int) -> None:
        self.rows: dict[str, Array] = {}
        self.waiting = np.zeros(num_envs, dtype=bool)

    def give(self, rows: dict[str, Array]) -> None:
        """Let ``rows``, which are nobody else's, wait in the place of all others."""
        self.rows = rows
        self.waiting[:] = True

    def begin(self, ids: Array) -> Array:
        """Indices of those among the environments ``ids`` ``[n]`` whose reset, made now, begins another task."""
        changed = ids[self.waiting[ids]]
        self.waiting[changed] = False
        return changed


class TaskTable(PendingTasks):
    """Task parameters, float64, of vectorised environments; one that is not named keeps its value.

    Args:
        name: of the simulator, for errors.
        num_envs: E.
        defaults: all parameters, each with its value ``[...]`` where nobody sets it.
        present: those in the table from the beginning (all if None); others join when they are given.

    Attributes:
        in_force: parameters ``[E, ...]`` of the running episodes.
    """

    def __init__(
        self, name: str, num_envs: int, defaults: Mapping[str, Any], present: Iterable[str] | None = None
    ) -> None:
        super().__init__(num_envs)
        self.name = name
        self.defaults = defaults
        self.in_force: dict[str, Array] = {}
        self._add(defaults if present is None else present)

    def default(self, key: str) -> Array:
        """Values ``[E, ...]`` of a parameter that nobody set."""
        value = np.asarray(self.defaults[key], dtype=np.float64)
        return np.broadcast_to(value, (self.waiting.size, *value.shape)).copy()

    def checked(self, tasks: Tasks) -> dict[str, Array]:
        """Float64 copies of ``tasks``; ``EnvError`` on an unknown, ill-shaped or infinite parameter."""
        for key, value in tasks.items():
            if key not in self.defaults:
                raise EnvError(f"{self.name} has no task parameter {key!r}; known: {', '.join(self.defaults)}.")
            rows, shape = np.asarray(value, dtype=np.float64), self.default(key).shape
            if rows.shape != shape or not np.isfinite(rows).all():
                raise EnvError(f"{self.name}: task {key!r} has to be finite and of shape {shape}, got {rows.shape}.")
        return {key: np.array(value, dtype=np.float64) for key, value in tasks.items()}

    def give(self, rows: dict[str, Array]) -> None:
        """Let ``rows``, which are :meth:`checked`, wait."""
        if rows:
            self._add(rows)
            super().give(self.rows | rows)

    def begin(self, ids: Array) -> Array:
        """Indices of those among the environments ``ids`` ``[n]`` whose other task is in force from now on."""
        changed = super().begin(ids)
        for key, value in self.in_force.items():
            value[changed] = self.rows[key][changed]
        return changed

    def state(self) -> dict[str, Any]:
        """Tasks in force and waiting, as tensors."""
        tables = {"tasks": self.in_force, "next_tasks": self.rows}
        tensors = {name: {key: torch.tensor(rows) for key, rows in table.items()} for name, table in tables.items()}
        return {**tensors, "task_changed": torch.tensor(self.waiting)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`; a parameter that only this table has goes back to its default."""
        present = [*self.in_force, *state["tasks"]]
        self.in_force, self.rows = {}, {}
        self._add(present)
        self.in_force |= {key: rows.numpy().copy() for key, rows in state["tasks"].items()}
        self.rows |= {key: rows.numpy().copy() for key, rows in state["next_tasks"].items()}
        self.waiting[:] = state["task_changed"].numpy()

    def _add(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self.in_force:
                self.in_force[key], self.rows[key] = self.default(key), self.default(key)
