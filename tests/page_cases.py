"""A page of known curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lit_metarl.reports.html.page import make_page
from lit_metarl.reports.html.sources import tables_of
from lit_metarl.reports.html.store import Details
from lit_metarl.reports.tables.curves import RETURN, Run

STEPS = np.arange(1, 201) * 1000.0
HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror=alert(1)>'


def value(arm: int, seed: int, step: float) -> float:
    """Return of a seed: a line whose slope is the arm's, from the seed's own height."""
    return -10.0 + arm * step / 100_000 + 0.1 * seed


def runs(arms: int = 8, seeds: int = 5, environment: str = "points/navigation_2d") -> list[Run]:
    return [
        Run(
            experiment=f"arm {arm}" if arm else HOSTILE,
            algorithm="MAML",
            environment=environment,
            seed=str(seed),
            commit="abc1234",
            config=f"config{arm}",
            status="FINISHED",
            start=0,
            steps=STEPS,
            returns=np.array([value(arm, seed, step) for step in STEPS]) + 1e-3 * np.sin(STEPS * (arm + seed)),
            times=STEPS * 60 * (1 + arm),  # a minute for a thousand steps of the first arm
            run_id=f"{environment} {arm} {seed}",
            settings={"model": {"class_path": "lit_metarl.algorithms.MAML", "init_args": {"inner_lr": arm / 10}}},
        )
        for arm in range(arms)
        for seed in range(seeds)
    ]


def details(of: list[Run], steps: Mapping[int, int] = {}) -> dict[str, Details]:
    """One adaptation step from -12 to -8 - arm, tasks spread by one around it; further ones, by arm, add 4 each."""
    tasks = np.linspace(-1, 1, 20)

    def table(arm: int) -> np.ndarray:
        return np.stack([-12 + 4 * k - arm * (k > 0) + tasks for k in range(steps.get(arm, 1) + 1)])

    return {run.run_id: Details({"test": table(index // 5)}, {"test": -20.0}) for index, run in enumerate(of)}


def page(path: Path, of: list[Run] | None = None, steps: Mapping[int, int] = {}) -> str:
    """The page of 8 arms × 5 seeds × 200 points; ``steps`` of adaptation by arm, 1 if not given."""
    of = runs() if of is None else of
    metrics = {RETURN: of}
    return make_page(f"Sweep {HOSTILE}", metrics, tables_of(metrics), details(of, steps), path)
