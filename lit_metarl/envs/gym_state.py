"""Saving and restoring Gymnasium environments, wrappers included, from outside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.saved_state import load_physics, mutable_parts, pack, packable, save_physics, shared, unpack

# Set at construction and constant, or concerning pictures only.
_STATELESS = {
    "env", "spec", "mujoco_renderer", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs",
    "_action_space", "_observation_space", "_metadata",
}  # fmt: skip


def _layers(env: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every wrapper and the environment itself, outermost first, each with the attributes that may be state."""
    while True:
        skipped = _STATELESS | ({"model", "data"} if _has_physics(env) else set())
        attributes = {name: value for name, value in vars(env).items() if name not in skipped}
        # Surfaces and clocks of pygame belong to the pictures.
        yield env, {name: v for name, v in attributes.items() if not type(v).__module__.startswith("pygame")}
        if env is env.unwrapped:
            return
        env = env.env


def _has_physics(env: Any) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(getattr(env, "data", None), mujoco.MjData)


def _own_state(env: Any) -> bool:
    return callable(getattr(env, "state_dict", None)) and callable(getattr(env, "load_state_dict", None))


def obstacles(env: Any) -> Iterator[str]:
    """Reasons why the state of ``env`` cannot be saved and restored; none if it can."""
    parts: list[tuple[str, Any]] = []
    for layer, attributes in _layers(env):
        if _own_state(layer):
            continue
        label = type(layer).__name__
        if any(base.__dict__.get("__slots__") for base in type(layer).__mro__):
            yield f"{label} has __slots__"
        for name, value in attributes.items():
            if not (packable(value) or _is_space(value)):
                yield f"{label}.{name} is of type {type(value).__name__}, which cannot be saved"
            parts += [(f"{label}.{name}", part) for part in mutable_parts(value)]
        shared_spaces = [value for base in type(layer).__mro__ for value in vars(base).values() if _is_space(value)]
        if any(space._np_random is not None for space in shared_spaces):
            yield f"{label} draws from a space of its class, which all environments share"
    yield from shared(parts)


def _is_space(value: Any) -> bool:
    from gymnasium import Space

    return isinstance(value, Space)


def env_state(env: Any) -> list[dict[str, Any]]:
    """State of every layer, outermost first, as tensors and scalars."""
    return [_layer_state(layer, attributes) for layer, attributes in _layers(env)]


def _layer_state(layer: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    spaces = {name: value._np_random for name, value in attributes.items() if _is_space(value)}
    state = {"spaces": pack({name: rng for name, rng in spaces.items() if rng is not None})}
    values = {name: value for name, value in attributes.items() if packable(value)}
    if _own_state(layer):  # it answers for everything but Gymnasium's generator
        generator = {name: value for name, value in values.items() if name == "_np_random"}
        own = layer.state_dict()
        if not packable(own):
            raise EnvError(f"{type(layer).__name__}.state_dict() must return numbers, strings, arrays and containers.")
        return state | {"values": pack(generator), "own": pack(own)}
    if _has_physics(layer):
        state["physics"] = save_physics(layer.model, layer.data)
    return state | {"values": pack(values)}


def load_env(env: Any, saved: list[dict[str, Any]]) -> None:
    """Inverse of :func:`env_state`."""
    for (layer, attributes), state in zip(_layers(env), saved, strict=True):
        for name, generator in unpack(state["spaces"]).items():
            attributes[name]._np_random = generator
        values = unpack(state["values"])
        if "physics" in state:
            load_physics(layer.model, layer.data, state["physics"])
        if "own" not in state:
            for name in [name for name, value in attributes.items() if packable(value) and name not in values]:
                delattr(layer, name)  # it appeared after the saved moment
        for name, value in values.items():
            setattr(layer, name, value)
        if "own" in state:
            layer.load_state_dict(unpack(state["own"]))


def shown(value: Any) -> str:
    """``value`` as an error message shows it: shape and type of an array, the beginning of anything else."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
