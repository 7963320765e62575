"""The processes of one run: their memory, means over them, gathered states, and noticing that one has died."""

from __future__ import annotations

import ctypes
import io
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_metarl.types import State

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, up to 1 GiB, for what it allocates next; glibc only.

    By default the C library gives large blocks back to the system, which clears their pages before it lends them again:
    hundreds of thousands of page faults an iteration where gigabytes of activations come and go.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest it takes; else every tensor is mapped and unmapped
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def world_size() -> int:
    """Number of processes of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every ``.grad`` by its mean over processes, in one flattened all-reduce.

    Explicit because no DDP hook sees gradients of ``autograd.grad``: without it the processes drift apart silently.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of ``tensor`` over processes, a new tensor; itself on one process."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def sum_over_processes(count: int, device: torch.device) -> int:
    """Sum of every process's ``count``, which travels by ``device``; all must call it."""
    if world_size() == 1:
        return count
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)


def gather_states(local: State) -> list[State]:
    """Every process's ``local`` in the order of their ranks on process 0, nothing elsewhere; all must call it."""
    if world_size() == 1:
        return [local]
    # As a file: pickled without one, tensors of some dtypes (uint32, of NumPy's streams) cannot be read back.
    file = io.BytesIO()
    torch.save(local, file)
    gathered: list[Any] = [None] * world_size()
    here = dist.get_rank() == 0
    dist.gather_object(file.getvalue(), gathered if here else None, dst=0, group=_cpu_group(dist.group.WORLD))
    return [torch.load(io.BytesIO(part), weights_only=True) for part in gathered] if here else []


@lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    # NCCL would send a replay through GPU memory. One group for each world: a later run in this process has another.
    return dist.new_group(backend="gloo")


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` is what a collective raises when another process of the run has died."""
    if isinstance(error, dist.DistError):
        return True
    # gloo raises a bare RuntimeError
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer"))
