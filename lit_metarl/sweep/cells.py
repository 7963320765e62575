"""The runs that a recipe asks for, each known by a key of its complete config."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from lit_metarl.config import merge
from lit_metarl.sweep.recipe import Arm, Recipe, Settings, flags, label
from lit_metarl.types import ConfigError, require

KEY_TAG = "sweep_key"
"""Tag of a run with the key of its cell."""

# What shows a run but does not change its result.
_DISPLAY = ("ProgressBar", "TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary")
_AT_THE_END = ("TestTable", "EpisodeVideo")
_SAVING = ("KeepCheckpoints",)
_OF_A_START = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "profiler")

Config = dict[str, Any]
Resolve = Callable[[Mapping[str, Any], Sequence[str]], Config]
"""(config, flags) → every option of ``fit``, defaults included."""


class Cell(NamedTuple):
    """One run of a sweep, as nested primitives.

    Attributes:
        recipe: name of the recipe, and of the MLflow experiment.
        arm: which of the things that are compared: the experiment, and where it stands in the grid.
        seed: of every random stream.
        key: of the complete config, see :func:`key_of`.
        config: complete, as it is trained.
    """

    recipe: str
    arm: str
    seed: int
    key: str
    config: Config

    @property
    def root(self) -> Path:
        """Folder of the store."""
        return Path(self.config["trainer"]["logger"]["init_args"]["root"]).expanduser()

    @property
    def evaluations(self) -> int | None:
        """How many evaluations the whole run has; None if its end is not a number of epochs."""
        trainer = self.config["trainer"]
        epochs, period = trainer["max_epochs"], trainer["check_val_every_n_epoch"]
        return epochs // period if epochs and epochs > 0 and period else None

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def file(self, ending: str) -> Path:
        """A file of this cell in the store: its config (``yaml``), what it printed (``log``), its ``lock``."""
        arm = re.sub(r"[^\w.-]+", "_", self.arm)
        return self.root / "sweeps" / self.recipe / f"{arm}-seed{self.seed}-{self.key}.{ending}"


def make_cells(
    recipe: Recipe,
    resolve: Resolve,
    overlays: Sequence[Config] = (),
    more: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> list[Cell]:
    """All cells of ``recipe``, one seed of every arm after the other, so that arms can soon be compared.

    Later ones win: the arm's config, the recipe's overrides, the arm's, ``overlays``, the grid, ``more``, the seed.

    Args:
        recipe: what is trained.
        resolve: makes a config complete.
        overlays: configs on top of every arm.
        more: flags of ``fit``, for every cell.
        seeds: instead of the recipe's.

    Raises:
        ConfigError: two cells would be the same run, or their runs would not be recorded.
    """
    arms = []
    for arm in recipe.arms:
        config = resolve(arm.config, flags({**recipe.overrides, **arm.overrides}))
        for overlay in overlays:
            config = merge(config, overlay)
        arms.append((arm, config))
    cells: dict[str, Cell] = {}
    for seed in recipe.seeds if seeds is None else seeds:
        for arm, config in arms:
            for point in recipe.points():
                complete = resolve(config, [*flags(point), *more, f"--seed_everything={seed}"])
                cell = _cell(recipe, arm, point, seed, complete)
                other = cells.setdefault(cell.key, cell)
                if other is not cell:
                    raise ConfigError(
                        f"{recipe.path}: {other} and {cell} are the same run: drop one, or what they share."
                    )
    return list(cells.values())


def key_of(config: Mapping[str, Any]) -> str:
    """Sixteen digits of the hash of a complete ``config``, without what does not change the result of a run.

    That is where and how it is recorded and shown, and how often it is saved.
    """
    kept: Config = deepcopy({name: config[name] for name in ("seed_everything", "trainer", "model", "data")})
    trainer = kept["trainer"]
    trainer["callbacks"] = _callbacks(trainer, (*_DISPLAY, *_AT_THE_END, *_SAVING))
    for name in _OF_A_START:
        trainer.pop(name, None)
    for callback in trainer["callbacks"]:
        if _class_of(callback) == "RunCheckpoint":
            callback.get("init_args", {}).pop("every_n_batches", None)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cell(recipe: Recipe, arm: Arm, point: Settings, seed: int, config: Config) -> Cell:
    """The cell of a complete ``config``, which here gets its place in the store; its bars would fill a file."""
    trainer, key = config["trainer"], key_of(config)
    logger = trainer["logger"]
    recorded = isinstance(logger, dict) and logger["class_path"].endswith("MLflowLogger")
    require(recorded, "trainer.logger", logger, "a sweep reads in the store what is done; use MLflowLogger")
    name = label(arm, point)
    logger["init_args"] |= {
        "experiment_name": recipe.name,
        "run_name": f"{name} seed {seed}",
        "run_id": "checkpoint",
        "tags": {"recipe": recipe.name, "arm": name, KEY_TAG: key},
        "artifacts": [str(recipe.path)],
    }
    trainer["callbacks"] = _callbacks(trainer, _DISPLAY)
    trainer["enable_progress_bar"] = False
    return Cell(recipe.name, name, seed, key, config)


def _callbacks(trainer: Config, without: Sequence[str]) -> list[Config]:
    given = trainer.get("callbacks") or []
    return [each for each in (given if isinstance(given, list) else [given]) if _class_of(each) not in without]


def _class_of(callback: Config) -> str:
    return str(callback["class_path"]).rpartition(".")[2]
