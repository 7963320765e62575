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
