"""Simulator states as tensors and Python scalars: a MuJoCo simulation, and the attributes of Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lit_metarl.envs.base import Array, EnvError

# Compiled assets: megabytes that no task writes to (height fields, which tasks do write to, are saved).
_ASSETS = ("tex_", "mesh_", "skin_", "bvh_", "oct_", "name", "paths", "text_")


def save_physics(model: Any, data: Any) -> dict[str, Any]:
    """State of a MuJoCo simulation from which it goes on bit for bit.

    Besides the integration state (time, positions, velocities, warm start) it holds every array of ``MjData`` outside
    the arena, since after a step some are older than the positions and environments read them, and every array of
    ``MjModel`` but compiled assets, since tasks move targets and raise terrain by writing to the model.

    Args:
        model, data: native ``mujoco.MjModel`` and ``mujoco.MjData``.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    persistent = _arrays(mujoco.MjData(model))  # the arrays of the arena are empty before the first step
    derived = {name: pack(getattr(data, name)) for name, array in persistent.items() if array.size}
    fields = {name: pack(array) for name, array in _arrays(model).items() if array.size}
    return {"integration": pack(integration), "data": derived, "model": fields}


def load_physics(model: Any, data: Any, state: Mapping[str, Any]) -> None:
    """Inverse of :func:`save_physics`, in place. Raises ``EnvError`` if the state is of another model."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = unpack(state["integration"])
    if integration.size != mujoco.mj_stateSize(model, kind):
        raise EnvError("The saved physics is of another model: the size of its state differs.")
    _write(model, state["model"])
    mujoco.mj_setState(model, data, integration, kind)
    # Contacts and constraint rows live in the arena and have to be rebuilt. That overwrites the warm start and
    # brings lagging arrays up to date, therefore the saved arrays are written last.
    mujoco.mj_forward(model, data)
    _write(data, state["data"])


def _arrays(struct: Any) -> dict[str, Array]:
    names = (name for name in dir(struct) if not name.startswith(("_", *_ASSETS)))
    values = ((name, getattr(struct, name)) for name in names)
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def _write(struct: Any, saved: Mapping[str, Any]) -> None:
    for name, packed in saved.items():
        array, value = getattr(struct, name), unpack(packed)
        if array.shape != value.shape:
            raise EnvError(f"The saved physics is of another model: {name} is {value.shape}, here {array.shape}.")
        array[...] = value


def packable(value: Any) -> bool:
    """Whether :func:`pack` can hold ``value`` so that :func:`unpack` gives it back, types included."""
    if isinstance(value, np.ndarray | np.generic):
        numeric = value.dtype.kind in "fiub" and value.dtype.itemsize <= 8
        return numeric or (type(value) is np.ndarray and value.dtype.kind == "S")
    if isinstance(value, np.random.Generator):
        return True
    if type(value) in (list, tuple):
        return all(packable(item) for item in value)
    if type(value) is dict:
        return all(packable(item) for pair in value.items() for item in pair)
    return value is None or type(value) in (bool, int, float, str, bytes)


def pack(value: Any) -> Any:
    """Numbers, strings, arrays, generators and containers of them as tensors and scalars (``weights_only=True``)."""
    if isinstance(value, np.random.Generator):
        return {"generator": pack(value.bit_generator.state)}
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":  # no tensor holds byte strings; FrozenLake's map
        return {"bytes": (value.tolist(), value.dtype.str)}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(value.copy())}
    if isinstance(value, np.generic):
        return {"scalar": torch.from_numpy(np.array(value))}
    if isinstance(value, list | tuple):
        return type(value)(pack(item) for item in value)
    if isinstance(value, dict):
        return {"dict": [(pack(key), pack(item)) for key, item in value.items()]}
    return value


def unpack(packed: Any) -> Any:
    """Inverse of :func:`pack`; arrays and generators are new objects."""
    if isinstance(packed, list | tuple):
        return type(packed)(unpack(item) for item in packed)
    if isinstance(packed, dict):
        kind, content = next(iter(packed.items()))
        if kind == "generator":
            state = unpack(content)
            generator = np.random.Generator(getattr(np.random, state["bit_generator"])(0))
            generator.bit_generator.state = state
            return generator
        if kind == "bytes":
            return np.array(content[0], dtype=content[1])
        if kind == "dict":
            return {unpack(key): unpack(item) for key, item in content}
        return content.numpy().copy() if kind == "array" else content.numpy()[()]
    return packed


def shared(parts: list[tuple[str, Any]]) -> Iterator[str]:
    """Attributes that are one object or view one memory: restored as copies, they would part."""
    owners: dict[int, str] = {}
    arrays: list[tuple[str, Array]] = []
    for name, part in parts:
        if id(part) in owners:
            yield f"{owners[id(part)]} and {name} share one object"
        owners[id(part)] = name
        if isinstance(part, np.ndarray):
            if _foreign(part):
                yield f"{name} is a view of memory that is not NumPy's"
            for other, array in arrays:
                if np.may_share_memory(part, array):
                    yield f"{other} and {name} share memory"
            arrays.append((name, part))


def mutable_parts(value: Any) -> Iterator[Any]:
    """Objects inside ``value`` that two attributes could share."""
    if isinstance(value, np.ndarray | list | dict | np.random.Generator):
        yield value
    if isinstance(value, list | tuple):
        for item in value:
            yield from mutable_parts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from mutable_parts(item)


def _foreign(array: Array) -> bool:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None
