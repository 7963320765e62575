"""Recipes of networks in a form that a checkpoint can hold: class paths and primitives."""

from __future__ import annotations

import pkgutil
from dataclasses import fields, is_dataclass
from typing import Any

from lit_metarl.types import ConfigError, State

_KEYS = {"class_path", "init_args"}


def recipe_of(factory: Any) -> State:
    """``{"class_path": …, "init_args": …}`` that :func:`from_recipe` builds an equal ``factory`` from.

    Args:
        factory: a dataclass whose fields are numbers, strings, None, lists, dicts or such dataclasses.

    Raises:
        ConfigError: a field of another kind, or a class that cannot be imported: such a policy could be trained, and
            never be loaded again.
    """
    name = type(factory).__name__
    recipe = _described(factory, name)
    try:
        again = _described(from_recipe(recipe), name)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{factory!r} cannot be saved with the policy it builds: {error}") from error
    if again != recipe:
        raise ConfigError(f"{factory!r} cannot be saved with the policy it builds: {recipe} gives back {again}.")
    return recipe


def from_recipe(recipe: State) -> Any:
    """The object that ``recipe`` describes, nested ones built first.

    Raises:
        ConfigError: its class cannot be imported, or is no dataclass.
    """
    try:
        cls = pkgutil.resolve_name(recipe["class_path"])
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the class {recipe['class_path']} cannot be imported ({error}): define it at the top of a module that "
            "Python finds."
        ) from error
    if not (isinstance(cls, type) and is_dataclass(cls)):  # a checkpoint may be anybody's: nothing else is called
        raise ConfigError(f"{recipe['class_path']} is no dataclass: such a thing builds no network of ours.")
    return cls(**{key: _restored(value) for key, value in recipe["init_args"].items()})


def _described(value: Any, where: str) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        arguments = {f.name: _described(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    if isinstance(value, list | tuple):
        return [_described(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _described(item, f"{where}[{key!r}]") for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ConfigError(
        f"{where} = {value!r} cannot be saved with the policy it builds: use numbers, strings, lists, dicts or "
        "dataclasses of these."
    )


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if isinstance(value, dict):
        return from_recipe(value) if value.keys() == _KEYS else {key: _restored(item) for key, item in value.items()}
    return value
