"""Meta-gradients at the parameters of checkpoints, from a run of the command line to a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from report_cases import trained

from lit_metarl.__main__ import main
from lit_metarl.algorithms import SGMRL
from lit_metarl.callbacks.gradients import Resampling, measure_quality
from lit_metarl.estimators import LoadedDiCE
from lit_metarl.reports.studies.gradient_quality import load_run

SIZES = ["--tasks", "2", "--resamples", "3", "--reference", "3", "--trajectories", "4"]


def test_a_checkpoint_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained(tmp_path / "store", "quickstart.yaml", "smoke_meta.yaml")
    capsys.readouterr()
    numbers = tmp_path / "numbers.json"
    words = ["study", "gradient_quality", str(path), *SIZES, "--estimators", "own", "dice", "--json", str(numbers)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "| own, SGMRL |" in printed
    assert "| dice |" in printed
    (found,) = json.loads(numbers.read_text()).values()
    stored = load_run(path)
    assert isinstance(stored.module, SGMRL)
    for name, value in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(stored.module.state_dict()[name], value)
    resampling = Resampling(tasks=2, resamples=3, reference=3, trajectories=4)
    expected = measure_quality(
        {"own": stored.module}, stored.module.with_surrogate(LoadedDiCE()), stored.datamodule, resampling
    )
    assert found["own"] == pytest.approx(expected.metrics("own"), rel=1e-5)
    assert found["own"]["gradient/variance"] != found["dice"]["gradient/variance"]


def test_a_run_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained(tmp_path / "store", "sac_small_pendulum.yaml", "smoke.yaml")
    assert main(["study", "gradient_quality", str(path), *SIZES]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "is of a run with another data" in message
    assert "ReplayDataModule" in message
