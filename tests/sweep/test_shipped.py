"""Shipped recipes: every arm of those that the README does not train runs two iterations, and is reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from sweep_cases import CONFIGS, resolver

from lit_metarl.__main__ import main
from lit_metarl.config import load_config
from lit_metarl.reports.tables.record import metrics_of, read_record
from lit_metarl.sweep.cells import make_cells
from lit_metarl.sweep.recipe import load_recipe


@pytest.mark.parametrize(
    ("name", "overlay"),
    [
        ("sac", "smoke"),
        ("preconditioning", "smoke"),
        ("half_cheetah_velocity_steps", "smoke_meta"),
        ("inference_point_robots", "smoke_pearl"),
        pytest.param("inference_learning_rates", "smoke_pearl", marks=pytest.mark.slow),  # they are the point robots'
        pytest.param("inference_half_cheetah", "smoke_pearl", marks=pytest.mark.slow),  # as the point robots
        pytest.param("context_maml", "smoke_meta", marks=pytest.mark.slow),  # half of its arms are such experiments
        pytest.param("td3_hyper_critics", "smoke", marks=pytest.mark.slow),  # roll-outs of whole episodes
        pytest.param("corners", "smoke_meta", marks=pytest.mark.slow),  # its arms are experiments of test_configs.py
    ],
)
def test_arms_of_a_recipe_run_two_iterations_and_are_reported(name: str, overlay: str) -> None:
    """One task of each: the others differ by a name."""
    shutil.copytree(CONFIGS, "configs")
    path = Path("configs/sweep") / f"{name}.yaml"
    for left in (path.with_suffix(".csv"), path.with_suffix(".md")):
        left.unlink(missing_ok=True)
    recipe = load_recipe(path)
    smoke = load_config(CONFIGS / "overlay" / f"{overlay}.yaml")
    cells = make_cells(recipe, resolver(), [smoke], ["--trainer.accelerator=cpu"], [0])
    first = {cell.arm.partition(" ")[0]: cell for cell in reversed(cells)}
    assert first.keys() == {arm.name for arm in recipe.arms}
    for cell in first.values():
        Path("cell.yaml").write_text(yaml.safe_dump(cell.config))
        assert main(["fit", "--config=cell.yaml"]) == 0
    assert main(["report", str(path)]) == 0
    rows = read_record(path.with_suffix(".csv"))
    assert {(row.arm, row.key) for row in rows} == {(cell.arm, cell.key) for cell in first.values()}
    assert len({row.step for row in rows if (row.arm, row.metric) == (rows[0].arm, "eval/return")}) == 2
    assert set(recipe.metrics) <= set(metrics_of(rows))
    page = path.with_suffix(".md").read_text()
    assert page.startswith(f"# {recipe.title}\n")
    assert all(f"`{arm}`" in page for arm in first)
