"""The bias of a baseline at the parameters of checkpoints, from a run of the command line to a table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from report_cases import trained

from lit_metarl.__main__ import main
from lit_metarl.callbacks.gradients import Resampling
from lit_metarl.reports.studies.baseline_bias import ROWS, UNBIASED, relative_variance, sample, with_baseline
from lit_metarl.reports.studies.gradient_quality import load_run


def test_rows_differ_in_the_last_round_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained(tmp_path / "store", "quickstart.yaml", "smoke_meta.yaml")
    capsys.readouterr()
    numbers = tmp_path / "numbers.json"
    words = [str(path), "--tasks", "2", "--resamples", "5", "--trajectories", "4", "6", "--json", str(numbers)]
    assert main(["study", "baseline_bias", *words]) == 0
    printed = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    assert len(found) == 2 * len(ROWS)
    for name, row in found.items():
        assert name.startswith(f"{path}, N = ")
        assert name.split(", ", 2)[2] in printed
        same = name.endswith(UNBIASED)
        assert (row["scale"][0] == pytest.approx(1.0, abs=1e-9)) == same
        assert (row["relative_bias2"][0] == pytest.approx(0.0, abs=1e-9)) == same

    # A row with the run's own settings is the run's own meta-gradient.
    own, datamodule, _ = load_run(path)
    resampler = Resampling(tasks=2, trajectories=4).resampler(datamodule, 0)
    (estimates,) = sample(own, {"own": own}, resampler, 3).values()
    again = Resampling(tasks=2, trajectories=4).resampler(datamodule, 0)
    for estimate in estimates:
        (rounds,) = again.draw({"": own}, own.device).values()
        expected = torch.cat([value.flatten() for value in own.meta_gradient(rounds).values()]).double()
        assert torch.equal(estimate, expected)
    resampler.close()
    again.close()

    # The run's λ is none of the rows': the truth among them would be biased.
    assert own.gae_lambda == 0.997
    assert {with_baseline(path, **settings).gae_lambda for settings in ROWS.values()} == {1.0}


@pytest.mark.parametrize("true", [1.0, 20.0, 100.0])
def test_the_variance_is_over_the_norm_without_the_noise_of_the_mean(true: float) -> None:
    torch.manual_seed(0)
    mean = torch.zeros(50, dtype=torch.float64)
    mean[0] = 1.0
    squares = []
    for _ in range(200):
        estimates = mean + (true / 50) ** 0.5 * torch.randn(100, 50, dtype=torch.float64)
        pairs = estimates @ estimates.mT
        square = (pairs.sum() - pairs.trace()) / (100 * 99)
        assert relative_variance(estimates) == pytest.approx(float(estimates.var(0).sum() / square), rel=1e-9)
        squares.append(1 / relative_variance(estimates))
    assert 1 / torch.tensor(squares).mean() == pytest.approx(true, rel=0.05)


def test_the_variance_of_what_is_nothing_but_noise_is_not_told() -> None:
    assert math.isnan(relative_variance(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.1, 0.0]], dtype=torch.float64)))
