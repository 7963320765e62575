"""Recipes say in a yaml file what a sweep trains: experiments × grid of settings × seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lit_metarl.config import load_config, merge
from lit_metarl.settings import Seed
from lit_metarl.types import ConfigError, require

KEYS = ("title", "note", "experiments", "grid", "seeds", "overrides", "metrics", "published")
ARM_KEYS = ("config", "overrides")
PUBLISHED_KEYS = ("value", "source")
TASK = "data.env"
SECTIONS = ("trainer", "model", "data")

Settings = Mapping[str, Any]
"""Dotted settings as on the command line, ``{"model.gamma": 0.98}``."""


class Arm(NamedTuple):
    """One of the things that are compared: a config and settings on top of it."""

    name: str
    config: dict[str, Any]
    overrides: Settings


class Published(NamedTuple):
    """A number that somebody published for an arm.

    Attributes:
        value: the return.
        source: where it stands, and after how much training.
    """

    value: float
    source: str


class Label(NamedTuple):
    """The name of an arm at a place of the grid, in two parts.

    Attributes:
        arm: with the settings of the grid that are not the environment's.
        task: those that are, ``robot=ant``; empty if there is none.
    """

    arm: str
    task: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe file's content, checked.

    Attributes:
        path: the file; its name without the ending names the recipe and the MLflow experiment of its runs.
        title: one sentence.
        note: what a reader of the results should know, such as why they are as they are; empty if nothing.
        arms: the experiments.
        grid: for each dotted setting the values that every arm is trained with.
        seeds: every arm is trained with each.
        overrides: settings of all arms.
        metrics: what is recorded of its runs besides returns, such as ``critic_gradient/cosine`` of a callback.
        published: published returns, by an arm's :meth:`label`.
    """

    path: Path
    title: str
    note: str
    arms: tuple[Arm, ...]
    grid: Mapping[str, list[Any]]
    seeds: tuple[int, ...]
    overrides: Settings
    metrics: tuple[str, ...]
    published: Mapping[str, Published]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def points(self) -> list[Settings]:
        """Every combination of the grid's values; one without settings where there is no grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]

    def labels(self) -> dict[str, Label]:
        """Name of every arm with its place in the grid → the same in two parts, its own and the environment's.

        Tables name the environment in a column of its own: what is trained on three tasks is one arm there.
        """
        found = {}
        for arm in self.arms:
            for point in self.points():
                own = {key: value for key, value in point.items() if not _is_task(key)}
                task = {key.removeprefix(f"{TASK}."): value for key, value in point.items() if _is_task(key)}
                found[label(arm, point)] = Label(label(arm, own), _text(task))
        return found


def load_recipe(path: Path) -> Recipe:
    """The recipe in ``path``.

    Raises:
        ConfigError: a file that is missing or no recipe; the message names the key, its value and the remedy.
    """
    content = load_config(path)
    for key in content:
        require(key in KEYS, f"a key of {path}", key, f"choose from {', '.join(KEYS)}")
    title = content.get("title")
    require(isinstance(title, str) and bool(title), f"title of {path}", title, "say in one sentence what it shows")
    note = content.get("note", "")
    require(isinstance(note, str), f"note of {path}", note, "write a text")
    grid = content.get("grid") or {}
    require(isinstance(grid, dict), f"grid of {path}", grid, "write a mapping of settings to lists of values")
    for key, values in grid.items():
        _check_setting(f"grid of {path}", key)
        usable = isinstance(values, list) and len(values) > 0
        require(usable, f"grid.{key} of {path}", values, "write a list of at least one value")
    metrics = content.get("metrics") or []
    named = isinstance(metrics, list) and all(isinstance(metric, str) for metric in metrics)
    require(named, f"metrics of {path}", metrics, "write a list of names, such as [critic_gradient/cosine]")
    recipe = Recipe(
        path,
        str(title),
        note.strip(),
        _arms(path, content.get("experiments")),
        grid,
        read_seeds(content.get("seeds"), f"seeds of {path}"),
        _settings(f"overrides of {path}", content.get("overrides")),
        tuple(metrics),
        {},
    )
    return replace(recipe, published=_published(recipe, content.get("published")))


def label(arm: Arm, point: Settings) -> str:
    """The name of ``arm`` at a point of the grid, ``sac model.gamma=0.9``."""
    return f"{arm.name} {_text(point)}".rstrip()


def _is_task(key: str) -> bool:
    return f"{key}.".startswith(f"{TASK}.")


def _text(settings: Settings) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def read_seeds(value: object, key: str = "seeds") -> tuple[int, ...]:
    """The seeds that ``value`` stands for: a list of them, or how many, from 0 on.

    Raises:
        ConfigError: neither, or a seed twice; ``key`` names it.
    """
    remedy = "write how many there are, or a list of different ones"
    if isinstance(value, int) and not isinstance(value, bool):
        require(value > 0, key, value, remedy)
        return tuple(range(value))
    require(isinstance(value, list) and len(value) > 0, key, value, remedy)
    assert isinstance(value, list)
    seeds = tuple(Seed()(each) for each in value if not isinstance(each, bool))
    require(len(set(seeds)) == len(value), key, value, remedy)
    return seeds


def flags(settings: Settings) -> list[str]:
    """``settings`` as words of a command line."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _arms(path: Path, value: object) -> tuple[Arm, ...]:
    key = f"experiments of {path}"
    remedy = "write a list of experiment files, or a mapping of names to {config: [files], overrides: {…}}"
    require(isinstance(value, list | dict) and bool(value), key, value, remedy)
    if isinstance(value, dict):
        return tuple(_arm(path, str(name), content) for name, content in value.items())
    assert isinstance(value, list)
    names = [Path(str(file)).stem for file in value]
    twice = [name for name in names if names.count(name) > 1]
    require(not twice, key, value, f"two arms would be called {twice[:1]}; write a mapping of names to files")
    return tuple(Arm(name, _read(path, key, file), {}) for name, file in zip(names, value, strict=True))


def _arm(path: Path, name: str, content: object) -> Arm:
    key = f"experiments.{name} of {path}"
    require(isinstance(content, dict) and bool(content), key, content, "write {config: [files], overrides: {…}}")
    assert isinstance(content, dict)
    for each in content:
        require(each in ARM_KEYS, f"a key of {key}", each, f"choose from {', '.join(ARM_KEYS)}")
    files = content.get("config")
    files = [files] if isinstance(files, str) else files
    require(isinstance(files, list) and bool(files), f"config of {key}", files, "write a list of files")
    config: dict[str, Any] = {}
    for file in files or []:
        config = merge(config, _read(path, f"config of {key}", file))
    return Arm(name, config, _settings(f"overrides of {key}", content.get("overrides")))


def _published(recipe: Recipe, value: object) -> dict[str, Published]:
    key = f"published of {recipe.path}"
    remedy = "write a mapping of arms to {value: number, source: where it stands}"
    require(isinstance(value or {}, dict), key, value, remedy)
    found = {}
    for name, content in (value if isinstance(value, dict) else {}).items():
        require(name in recipe.labels(), f"an arm of {key}", name, f"choose from {', '.join(recipe.labels())}")
        fits = isinstance(content, dict) and content.keys() == set(PUBLISHED_KEYS)
        require(fits, f"published.{name} of {recipe.path}", content, remedy)
        number, source = content["value"], content["source"]
        fits = isinstance(number, int | float) and not isinstance(number, bool)
        require(
            fits and isinstance(source, str) and bool(source), f"published.{name} of {recipe.path}", content, remedy
        )
        found[name] = Published(float(number), source)
    return found


def _read(path: Path, key: str, file: object) -> dict[str, Any]:
    require(isinstance(file, str), key, file, f"name a file, relative to {path.parent}")
    try:
        return load_config(path.parent / Path(str(file)).expanduser())
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _settings(key: str, value: object) -> Settings:
    require(isinstance(value or {}, dict), key, value, "write a mapping, such as {trainer.max_epochs: 20}")
    settings: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
    for each in settings:
        _check_setting(key, each)
    return settings


def _check_setting(key: str, setting: object) -> None:
    dotted = str(setting)
    require(dotted != "seed_everything", key, setting, "seeds are written under seeds")
    section, dot, _ = dotted.partition(".")
    fits = section in SECTIONS and (bool(dot) or section == "model")
    require(fits, key, setting, "write a setting as on the command line, such as model.gamma or trainer.max_epochs")
