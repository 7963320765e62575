"""The runs that a recipe asks for, each known by a key of its config."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from lit_metarl.config import chosen, merge
from lit_metarl.sweep.recipe import Arm, Recipe, Settings, flags, label
from lit_metarl.types import ConfigError, require

KEY_TAG = "sweep_key"
"""Tag of a run with the key of its cell."""

# What shows a run but does not change its result.
_DISPLAY = ("ProgressBar", "TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary")
_AT_THE_END = ("TestTable", "EpisodeVideo")
_SAVING = ("KeepCheckpoints",)
_LONGEST = 150  # of an arm in a file's name, which has 255 bytes at most
_OF_THE_SWEEP = {
    "--seed_everything": "seeds are those of the recipe, or of --seeds",
    **dict.fromkeys(
        (f"--trainer.logger.{name}" for name in ("experiment_name", "run_name", "run_id", "tags", "artifacts")),
        "a run is recorded under the names of recipe, arm and seed; copy the recipe to have other ones",
    ),
}
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
        key: of the config, see :func:`key_of`.
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
        arm = re.sub(r"[^\w.-]+", "_", self.arm)[:_LONGEST]  # the key tells those apart that begin alike
        return self.root / "sweeps" / self.recipe / f"{arm}-seed{self.seed}-{self.key}.{ending}"


def make_cells(
    recipe: Recipe,
    resolve: Resolve,
    overlays: Sequence[Config] = (),
    more: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
) -> list[Cell]:
    """All cells of ``recipe``, one seed of every arm after the other, so that arms can soon be compared.

    Later ones win: the arm's config, the recipe's overrides, the arm's, ``overlays``, the grid, ``more``, the seed.

    Args:
        recipe: what is trained.
        resolve: makes a config complete.
        overlays: configs on top of every arm.
        more: flags of ``fit``, for every cell.
        seeds: instead of the recipe's.
        only: the arms to make cells of, by their names with their place in the grid or shell patterns of them; all if
            empty.

    Raises:
        ConfigError: two cells would be the same run, their runs would not be recorded, there is no such arm, or
            they would have other seeds, or go on from a checkpoint.
    """
    for word in more:
        flag = word.partition("=")[0].replace(".init_args", "")
        require(flag not in _OF_THE_SWEEP, flag, word, _OF_THE_SWEEP.get(flag, ""))
    chosen = [(arm, point) for arm in recipe.arms for point in recipe.points() if _named(label(arm, point), only)]
    for pattern in only:
        found = any(_named(name, [pattern]) for name in recipe.labels())
        names = f"the arms of {recipe.path} are {', '.join(recipe.labels())}"
        require(found, "--arm", pattern, f"{names}; a pattern such as '*cheetah*' names several")
    configs: dict[str, Config] = {}
    for arm, _ in chosen:
        if arm.name not in configs:
            config = resolve(arm.config, flags({**recipe.overrides, **arm.overrides}))
            configs[arm.name] = reduce(merge, overlays, config)
    complete = [resolve(configs[arm.name], [*flags(point), *more]) for arm, point in chosen]
    cells: dict[str, Cell] = {}
    for seed in recipe.seeds if seeds is None else seeds:
        for (arm, point), config in zip(chosen, complete, strict=True):
            cell = _cell(recipe, arm, point, seed, deepcopy(config) | {"seed_everything": seed})
            other = cells.setdefault(cell.key, cell)
            if other is not cell:
                raise ConfigError(f"{recipe.path}: {other} and {cell} are the same run: drop one, or what they share.")
    return list(cells.values())


def _named(name: str, patterns: Sequence[str]) -> bool:
    # The place in the grid may have brackets, which a pattern reads as a set of letters.
    return not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def key_of(config: Mapping[str, Any]) -> str:
    """Sixteen digits of the hash of a complete ``config``, without what does not change the result of a run.

    That is where and how it is recorded and shown, how often it is saved, and whether a GPU computes it by CUDA
    graphs. Nor do settings at their default count (:func:`~lit_metarl.config.chosen`).
    """
    kept: Config = deepcopy({name: config[name] for name in ("seed_everything", "trainer", "model", "data")})
    trainer = kept["trainer"]
    trainer["callbacks"] = _callbacks(trainer, (*_DISPLAY, *_AT_THE_END, *_SAVING))
    for name in _OF_A_START:
        trainer.pop(name, None)
    for callback in trainer["callbacks"]:
        if _class_of(callback) == "RunCheckpoint":
            callback.get("init_args", {}).pop("every_n_batches", None)
    kept["model"].get("init_args", {}).pop("cuda_graphs", None)
    text = json.dumps(chosen(kept), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cell(recipe: Recipe, arm: Arm, point: Settings, seed: int, config: Config) -> Cell:
    """The cell of a complete ``config``, which here gets its place in the store; its bars would fill a file."""
    trainer, key = config["trainer"], key_of(config)
    logger = trainer["logger"]
    recorded = isinstance(logger, dict) and logger["class_path"].endswith("MLflowLogger")
    require(recorded, "trainer.logger", logger, "a sweep reads in the store what is done; use MLflowLogger")
    remedy = "a run of a sweep begins anew, or goes on from its own checkpoint"
    require(config.get("ckpt_path") is None, "ckpt_path", config.get("ckpt_path"), remedy)
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
