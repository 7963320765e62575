"""Real learning on real physics; minutes each: `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_metarl.cli import run
from lit_metarl.tracking import connect

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.slow
def test_sac_swings_the_pendulum_up() -> None:
    """Measured on seed 0: eval/return −579 after 2,000 updates, −141 after 12,000."""
    run(["fit", "--config", str(CONFIGS / "experiment" / "sac_small_pendulum.yaml"), "--trainer.accelerator=cpu"])
    (directory,) = Path("mlruns/runs").iterdir()
    history = connect("mlruns").get_metric_history(directory.name, "eval/return")
    assert max(point.value for point in history[-3:]) > -300


@pytest.mark.slow
def test_sgmrl_learns_to_adapt_to_unseen_goals() -> None:
    """Measured on seeds 0, 1, 2: −27 to −30 after adaptation, −42 to −45 before; standing still earns −38."""
    run(["fit", "--config", str(CONFIGS / "experiment" / "quickstart.yaml"), "--trainer.accelerator=cpu"])
    (directory,) = Path("mlruns/runs").iterdir()
    client = connect("mlruns")
    before, after = (
        client.get_metric_history(directory.name, f"eval/return_after_{steps}_steps")[-1].value for steps in (0, 1)
    )
    assert after > -33
    assert after - before > 8
