"""Running means of a module's metrics and of its episodes, and what is said of a meta-evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from lit_metarl.processes import world_size
from lit_metarl.types import MetaEpisodes, State


class MeanMetrics:
    """Means of scalars, each over the updates that produced it, and of the episodes that ended.

    An update may leave a metric out, such as an actor's loss while only the critics move: nothing is counted for it.
    Scalars are not synchronised with the device, nor anything between processes, before :meth:`pop`.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._returns: list[Tensor] = []
        self._lengths: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one update's detached scalars, on any device."""
        for name, value in values.items():
            # A copy, since the value may be a parameter's own memory; bf16 sums would stop growing.
            value = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def add_episodes(self, returns: Tensor, lengths: Tensor) -> None:
        """Count the undiscounted returns ``[n]`` and lengths ``[n]`` in agent steps of episodes that ended."""
        if returns.numel():
            self._returns.append(returns.cpu())
            self._lengths.append(lengths.cpu())

    def pop(self, device: torch.device) -> dict[str, float]:
        """Means over all processes since the last call, by name; ``return`` and ``episode_length`` if any ended.

        Args:
            device: where tensors of all processes are added up; every process has counted the same names.
        """
        returns = torch.cat(self._returns) if self._returns else torch.zeros(0)
        lengths = torch.cat(self._lengths) if self._lengths else torch.zeros(0)
        sums = [value.float().to(device) for value in (*self._sums.values(), returns.sum(), lengths.sum())]
        counts = torch.tensor([*self._counts.values(), len(returns), len(lengths)], dtype=torch.float32)
        totals = torch.stack([torch.stack(sums), counts.to(device)])
        if world_size() > 1:
            dist.all_reduce(totals)
        names = [*self._sums, "return", "episode_length"]
        self._clear()
        return {name: value / count for name, value, count in zip(names, *totals.tolist(), strict=True) if count}

    def state(self) -> State:
        """The sums and counts since the last :meth:`pop`."""
        return {
            "sums": {name: value.detach().cpu() for name, value in self._sums.items()},
            "counts": dict(self._counts),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    def load_state(self, state: State, device: torch.device) -> None:
        """Inverse of :meth:`state`; sums go to ``device``."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])


def adaptation_metrics(batch: MetaEpisodes, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """``return`` (after adaptation, on test tasks) and ``return_after_k_steps``; other splits below their name.

    Args:
        batch: this process's share of the evaluation.
        gather: ``[..., n]`` of this process → ``[..., n of all processes]``.
    """
    metrics: dict[str, Tensor] = {}
    for split, returns in batch.returns.items():
        where = "" if split == "test" else f"{split}/"
        per_task = gather(returns.float().mean(-1))  # [K + 1, B]
        metrics[f"{where}return"] = per_task[-1].mean()
        metrics[f"{where}return_std"] = per_task[-1].std(correction=0)
        metrics |= {f"{where}return_after_{k}_steps": value.mean() for k, value in enumerate(per_task)}
        if split in batch.random:
            metrics[f"{where}return_random"] = gather(batch.random[split].float().mean(-1)).mean()
    return metrics
