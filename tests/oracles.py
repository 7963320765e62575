"""What several tests compare with: a checkpoint's way through a file, and a simulator's way through actions."""

from __future__ import annotations

import io

import numpy as np
import torch


def through_file(state):
    """As a checkpoint would: written, and read back with ``weights_only``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def rollout(env, actions):
    """Observations, rewards and ends of stepping through ``actions``, resetting the environments that end."""
    record = []
    for action in actions:
        result = env.step(action)
        record += [*result]
        ended = result.terminated | result.truncated
        if ended.any():
            record.append(env.reset(ended))
    return record


def assert_identical(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same(a, b, where=""):
    """Deep bit equality of tensors, arrays, containers and numbers; names the first place that differs."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor | np.ndarray):
        left, right = torch.as_tensor(a), torch.as_tensor(b)
        assert (left.dtype, left.shape) == (right.dtype, right.shape), where
        assert ((left == right) | ((left != left) & (right != right))).all(), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where
