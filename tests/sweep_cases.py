"""A recipe whose cells take seconds, and what makes configs complete."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lit_metarl.cli import Resolver
from lit_metarl.sweep.cells import Cell, make_cells
from lit_metarl.sweep.recipe import load_recipe

fork = multiprocessing.get_context("fork")  # a sweep in a process of its own, without the imports of a new one
CONFIGS = Path(__file__).parents[1] / "configs"
PENDULUM = str(CONFIGS / "experiment" / "sac_small_pendulum.yaml")
SMOKE = ["--config", str(CONFIGS / "overlay" / "smoke.yaml"), "--trainer.accelerator=cpu"]
RECIPE: dict[str, Any] = {"title": "SAC on a pendulum.", "experiments": {"sac": {"config": [PENDULUM]}}, "seeds": 1}


@lru_cache(maxsize=1)
def resolver() -> Resolver:
    """One parser for all tests of a process."""
    return Resolver()


def write_recipe(path: str = "swing.yaml", **changes: Any) -> Path:
    """A recipe file; a change of None leaves the key out."""
    content = {key: value for key, value in (RECIPE | changes).items() if value is not None}
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False))
    return Path(path)


def cells_of(make: Callable[..., list[Cell]] = make_cells, more: tuple[str, ...] = (), **changes: Any) -> list[Cell]:
    """The cells of that recipe."""
    return make(load_recipe(write_recipe(**changes)), resolver(), more=more)
