"""Composing a run's config from yaml files.

A file may name others under ``include`` (paths relative to itself); they are merged beneath it, in order. Several
``--config`` files are merged the same way. Mappings merge key by key; anything else replaces what was there; a mapping
that names another ``class_path`` replaces the old one whole, so no argument of another class is left behind; settings
without a ``class_path`` are for whatever class a later file names.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lit_metarl.types import ConfigError

_TRAINER = "lightning.pytorch.Trainer"


def load_config(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read one yaml file with everything it includes.

    Raises:
        ConfigError: a missing or unreadable file, a file that is no mapping, or a circle of includes.
    """
    chain = (*including, path.resolve())
    if path.resolve() in including:
        raise ConfigError(f"include: {' → '.join(map(str, chain))} is a circle.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        source = f" (included by {including[-1]})" if including else ""
        raise ConfigError(f"config file {path}{source} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is no UTF-8 (byte {error.start}): save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is no valid yaml: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} must be a mapping of keys to values, not {type(content).__name__}.")
    included = content.pop("include", [])
    if not isinstance(included, list):
        raise ConfigError(f"include in {path} must be a list of files, not {included!r}.")
    merged: dict[str, Any] = {}
    for name in included:
        merged = merge(merged, load_config(path.parent / Path(name).expanduser(), chain))
    return merge(merged, content)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The merge of ``over`` on top of ``base``; neither is changed."""
    if "class_path" in over and over["class_path"] != base.get("class_path", over["class_path"]):
        return over
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def read_word(text: str) -> Any:
    """The value that a word of the command line stands for: a number, ``true`` or ``false``, a list as JSON has it.

    Anything else is the text itself. As yaml, 12:00:00 would be 43200, 010 would be 8, and [a|b] a list.
    """
    lower = text.lower()
    try:
        return json.loads(lower if lower in ("true", "false") else text)
    except ValueError:
        return text


def compose_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace all ``--config FILE`` of a command line by one, with the merged content in its place.

    Later flags still override it. The sub-command, if there is one, comes first.
    """
    rest: list[str] = []
    merged: dict[str, Any] = {}
    found = False
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            if not equals:
                value = next(words, "")
            if not value:
                raise ConfigError("--config needs a file: --config configs/experiment/quickstart.yaml")
            merged = merge(merged, load_config(Path(value)))
            found = True
        else:
            rest.append(word)
    if not found:
        return rest
    content = yaml.safe_dump(merged, sort_keys=False)
    position = 1 if rest and not rest[0].startswith("-") else 0
    return [*rest[:position], "--config", content, *rest[position:]]


def chosen(config: dict[str, Any]) -> dict[str, Any]:
    """A complete ``config`` of ``fit`` without the arguments that are at the default of their class.

    It is the same of two runs with the same settings, whichever versions trained them: an option that a later one adds
    does not make runs of all that were trained without it differ. (Nor does a default that it changes; a run names its
    commit.)
    """
    trainer = {name: {"class_path": _TRAINER, "init_args": config[name]} for name in config.keys() & {"trainer"}}
    kept: dict[str, Any] = _chosen(config | trainer)
    return kept


def _chosen(tree: Any) -> Any:
    """``tree`` without the arguments that are at the default of their class."""
    if isinstance(tree, list):
        return [_chosen(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "class_path" in tree:
        defaults, kept = _defaults(tree["class_path"]), {}
        for name, value in (tree.get("init_args") or {}).items():
            default = defaults.get(name, dataclasses.MISSING)
            if dataclasses.is_dataclass(default) and isinstance(value, dict):  # which is written without its class
                value = {key: each for key, each in value.items() if each != getattr(default, key, dataclasses.MISSING)}
            if value != default:
                kept[name] = value
        return {"class_path": tree["class_path"], "init_args": _chosen(kept)}
    return {name: _chosen(value) for name, value in tree.items()}


@cache
def _defaults(class_path: str) -> dict[str, Any]:
    """The defaults of a class's arguments as a config has them; none of a class that there is not."""
    module, _, name = class_path.rpartition(".")
    try:
        owner = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return {}
    found: dict[str, Any] = {}
    for base in reversed(inspect.getmro(owner)):  # later ones take the place of those they override
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    for field in dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ():
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
