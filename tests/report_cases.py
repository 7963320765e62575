"""A store with the runs of known curves, and the exit code of a command that reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from mlflow.entities import Metric
from test_cli import CONFIGS

from lit_metarl.__main__ import main as lit_metarl
from lit_metarl.reports.command import main
from lit_metarl.sweep.cells import KEY_TAG
from lit_metarl.tracking import MLflowLogger

CHEETAH, WALKER = "dm_control/cheetah_run", "dm_control/walker_walk"
STEPS = range(5_000, 100_001, 5_000)


def add_run(
    root: Path,
    experiment: str,
    seed: int,
    slope: float,
    *,
    environment: str = CHEETAH,
    steps: range = STEPS,
    status: str = "success",
    width: int = 64,
    commit: str = "abc1234",
    before: float | None = None,
    arm: str = "",
    more: Mapping[str, float] | None = None,
) -> str:
    """One run through the logger of a training run; its evaluation at step s comes s / 1000 seconds after its start.

    Args:
        before: slope of the return before adaptation.
        arm: of the recipe ``experiment``; its key follows from ``seed``, ``arm`` and ``width``.
        more: slopes of other metrics.
    """
    logger = MLflowLogger(str(root), experiment, run_name=f"seed {seed}")
    logger.set_tags({"algorithm": "SAC", "environment": environment, "seed": seed, "git_commit": commit})
    if arm:
        logger.set_tags({"recipe": experiment, "arm": arm, KEY_TAG: f"{arm}-{seed}-{width}"})
    config = {
        "seed_everything": seed,
        "trainer": {"logger": {"init_args": {"experiment_name": experiment, "run_id": logger.run_id}}},
        "model": {"init_args": {"width": width}},
        "data": {"init_args": {"seed": seed}},
        "ckpt_path": None if seed else "last.ckpt",
    }
    logger.log_text(yaml.safe_dump(config), "config/fit.yaml")
    start = logger.experiment.get_run(logger.run_id).info.start_time
    points = [Metric("eval/return", slope * step / 1000, start + step, step) for step in steps]
    slopes = dict(more or {}) | ({} if before is None else {"eval/return_after_0_steps": before})
    for metric, rise in slopes.items():
        points += [Metric(metric, rise * step / 1000, start + step, step) for step in steps]
    logger.experiment.log_batch(logger.run_id, metrics=points)
    logger.log_metrics({"train/return": -1.0}, step=steps[-1])
    if status == "running":
        logger.flush()
        logger._status = "RUNNING elsewhere"  # so that the end of the test process does not end it
    else:
        logger.finalize(status)
    assert logger.run_id is not None
    return logger.run_id


def code_of(words: list[str]) -> int | str | None:
    """Exit code of ``lit-metarl`` with ``words``, be they refused by the parser or later."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def cells(line: str) -> list[str]:
    """Cells of a line of a Markdown table; a single one of any other line."""
    return [cell.strip() for cell in line.strip("| \n").split("|")]


def trained(folder: Path, experiment: str, overlay: str) -> Path:
    """The checkpoint of an epoch of an experiment in its smallest form, in a store of its own."""
    files = [f"--config={CONFIGS / 'experiment' / experiment}", f"--config={CONFIGS / 'overlay' / overlay}"]
    store = [f"--trainer.logger.root={folder}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    assert lit_metarl(["fit", *files, *store]) == 0
    (path,) = folder.glob("runs/*/last.ckpt")
    return path
