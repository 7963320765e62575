"""The kernel over training, of a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Metric
from report_cases import CHEETAH, add_run

from lit_metarl.reports.command import main
from lit_metarl.tracking import connect


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ntk") / "store"
    for name, arm, level in (("control", "", 4.0), ("treated", "", 12.0), ("sweep", "a", 4.0), ("sweep", "b", 12.0)):
        for seed in range(2):
            run_id = add_run(root, name, seed, 1.0, arm=arm, width=int(level))
            points = [
                Metric(metric, level + seed + step / 1000, step, step)
                for metric in ("ntk/ratio", "critic_gradient/above_quarter")
                for step in (0, 5000, 10_000)
            ]
            connect(str(root)).log_batch(run_id, metrics=points)
    add_run(root, "without", 0, 1.0)
    return root


def test_table_and_picture(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- rank:begin -->\n<!-- rank:end -->\n")
    arguments = ["study", "ntk", "--root", str(root), "--experiment", "control", "treated"]
    arguments += ["--at", "7000", "10000", "20000", "--figure", str(tmp_path / "figures")]
    assert main([*arguments, "--block", "rank", "--write", str(document)]) == 0
    printed = capsys.readouterr().out
    # At 7,000 the last measurement is that of 5,000 steps; nobody got to 20,000.
    assert f"| control | {CHEETAH} | 2 | 4.5 (4 to 5) | 9.5 (9 to 10) | 14.5 (14 to 15) | – |" in printed
    assert f"| treated | {CHEETAH} | 2 | 12.5 (12 to 13) | 17.5 (17 to 18) | 22.5 (22 to 23) | – |" in printed
    assert printed in document.read_text()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["dm_control_cheetah_run_ntk_ratio.png"]


def test_gradients_of_critics_are_shown_alike(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures"
    words = ["--root", str(root), "--experiment", "control", "treated", "--metric", "above_quarter"]
    words += ["--at", "10000", "--figure", str(figures)]
    assert main(["study", "critic_gradient_curves", *words]) == 0
    printed = capsys.readouterr().out
    assert f"| control | {CHEETAH} | 2 | 4.5 (4 to 5) | 14.5 (14 to 15) |" in printed
    assert "`critic_gradient/above_quarter` at the monitor's states by environment steps" in printed
    assert [path.name for path in figures.iterdir()] == ["dm_control_cheetah_run_critic_gradient_above_quarter.png"]


def test_arms_of_a_sweep_are_told_apart(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(root), "--experiment", "sweep"]
    assert main(["study", "ntk", *words, "--at", "10000", "--figure", str(tmp_path / "ntk")]) == 0
    printed = capsys.readouterr().out
    assert f"| a | {CHEETAH} | 2 | 4.5 (4 to 5) | 14.5 (14 to 15) |" in printed
    assert f"| b | {CHEETAH} | 2 | 12.5 (12 to 13) | 22.5 (22 to 23) |" in printed
    assert main(["report", *words]) == 0
    printed = capsys.readouterr().out
    assert "| experiment | arm |" in printed
    assert "| sweep | a | SAC |" in printed


def test_runs_without_the_monitor_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "ntk", "--root", str(root), "--experiment", "without"]) == 2
    assert "has ntk/ratio" in capsys.readouterr().err
