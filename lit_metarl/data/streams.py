"""Random streams: where they come from, and how they are saved."""

from __future__ import annotations

import random
from enum import IntEnum
from typing import Any

import numpy as np
import torch


class Stream(IntEnum):
    """Independent uses of randomness; each is a child of the run's seed."""

    TRAIN_ENV = 0
    EVAL_ENV = 1
    TEST_ENV = 2
    PREDICT_ENV = 3
    COLLECT = 4
    GLOBAL = 5
    TRAIN_TASKS = 6
    EVAL_TASKS = 7
    TEST_TASKS = 8
    PREDICT_TASKS = 9
    EVAL_COLLECT = 10
    TEST_COLLECT = 11
    PREDICT_COLLECT = 12
    INITIAL_ENV = 13


def derive_seed(seed: int, rank: int, stream: Stream) -> int:
    """63-bit seed that differs between runs, processes and uses."""
    low, high = np.random.SeedSequence((seed, rank, int(stream))).generate_state(2)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def seed_global(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global streams (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code may still draw from the global stream
    torch.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global streams, loadable with ``weights_only=True``."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # of this process's device
    }


def load_global_state(state: dict[str, Any]) -> None:
    """Inverse of :func:`global_state`."""
    name, keys, position, has_gauss, cached = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
