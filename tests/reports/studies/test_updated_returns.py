"""Returns after one outer update: it is the update that training makes next, of every kind of outer update."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from itertools import islice
from pathlib import Path

import pytest
import torch
from report_cases import code_of
from test_cli import CONFIGS

from lit_metarl import evaluate
from lit_metarl.__main__ import main
from lit_metarl.reports.studies.updated_returns import updates

SHORT = ["--trainer.accelerator=cpu", "--data.epoch_iterations=1", "--data.eval_tasks=1", "--data.test_tasks=3"]


def fit(experiment: str, epochs: int, *more: str) -> Path:
    """The last checkpoint of a run of so many iterations."""
    files = [CONFIGS / "experiment" / f"{experiment}.yaml", CONFIGS / "overlay" / "smoke_meta.yaml"]
    words = [*(f"--config={file}" for file in files), *SHORT, f"--trainer.max_epochs={epochs}", *more]
    assert main(["fit", *words]) == 0
    (path,) = Path("mlruns").glob("runs/*/last.ckpt")
    return path


@pytest.mark.parametrize(
    "experiment",
    [
        "navigation_sgmrl",  # Adam
        pytest.param("half_cheetah_direction_promp", marks=pytest.mark.slow),  # Adam, five epochs on the same data
        "half_cheetah_velocity_hyper_maml",  # TRPO, and a policy that is told the task
    ],
)
def test_the_first_update_is_the_next_one_of_training(experiment: str) -> None:
    path = Path(shutil.copy(fit(experiment, 1), "first.ckpt"))
    after = [deepcopy(run.module.state_dict()) for run in islice(updates(path), 2)]
    resumed = torch.load(fit(experiment, 2, "--ckpt_path=last"), weights_only=True)["state_dict"]
    before = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(after[0][name], value) for name, value in resumed.items())
    assert any(not torch.equal(after[0][name], value) for name, value in before.items())
    assert any(not torch.equal(after[0][name], value) for name, value in after[1].items())


def test_the_study_of_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = fit("navigation_sgmrl", 2, "--trainer.callbacks+=lit_metarl.callbacks.KeepCheckpoints")
    files = ["--json", str(tmp_path / "numbers.json"), "--figure", str(tmp_path / "figure.png")]
    words = [str(last.with_name("epoch_1.ckpt")), str(last), "--updates", "3", *files]
    assert code_of(["study", "updated_returns", *words]) == 0
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert [len(each["updated"]) for each in found.values()] == [3, 3]
    printed = capsys.readouterr().out
    assert list(found) == words[:2]
    for path, each in found.items():
        assert f"| {each['label']} | {each['start'][0]:.2f} |" in printed
        assert each["start"] == pytest.approx([evaluate(path).after(k) for k in (0, 1)], rel=1e-5)
        assert len({tuple(row) for row in each["updated"]}) == 3  # another meta-batch each
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_an_update_that_changes_nothing_has_the_return_of_the_checkpoint(tmp_path: Path) -> None:
    """The evaluation set is fixed: a trust region that lets nothing through leaves all returns as they were."""
    settings = "--model.outer.max_kl=1e-30", "--model.outer.backtrack_steps=1"
    path = fit("half_cheetah_velocity_hyper_maml", 1, *settings)
    numbers = tmp_path / "numbers.json"
    words = [str(path), "--updates", "2", "--json", str(numbers), "--figure", str(tmp_path / "figure.png")]
    assert code_of(["study", "updated_returns", *words]) == 0
    (found,) = json.loads(numbers.read_text()).values()
    assert found["updated"] == [found["start"]] * 2
