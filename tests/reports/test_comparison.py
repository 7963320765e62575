"""Two arms of a real store with known curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_cases import CHEETAH, WALKER, add_run

from lit_metarl.reports.comparison import main
from lit_metarl.reports.statistics import bootstrap_interval

CONTROL = {CHEETAH: [1.0, 2.0, 3.0], WALKER: [4.0, 5.0, 9.0]}
TREATED = {CHEETAH: [2.0, 4.0, 6.0], WALKER: [8.0, 10.0, 18.0]}  # twice the return at every step


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comparison") / "store"
    for name, arm in (("control", CONTROL), ("treated", TREATED)):
        for environment, slopes in arm.items():
            for seed, slope in enumerate(slopes):
                add_run(root, name, seed, slope, environment=environment)
    add_run(root, "mixed", 0, 1.0, width=32)
    add_run(root, "mixed", 1, 1.0, width=64)
    add_run(root, "elsewhere", 0, 1.0, environment="dm_control/fish_swim")
    return root


def table(text: str) -> dict[tuple[str, str], list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): row[2:] for row in rows[2:]}


def test_scores_ratios_and_their_intervals(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "treated", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    # At 100,000 steps the last tenth holds the evaluations at 95,000 and 100,000: 97.5 times the slope.
    control, treated, ratio, improvement = rows[CHEETAH, "final return"]
    assert control.startswith("195 (")
    assert treated.startswith("390 (")
    assert ratio.startswith("2.00 (")
    assert improvement == f"{7.5 / 9:.2f}"  # of 9 pairs 7 are won and one is a tie
    # The middle half of six scores: the lowest and the highest are dropped.
    pooled = 97.5 * np.array([1, 2, 3, 4, 5, 9.0])
    low, high = bootstrap_interval([97.5 * np.array(slopes) for slopes in CONTROL.values()])
    assert rows["all 2", "final return"][0] == f"{pooled[1:-1].mean():.4g} ({low:.4g} to {high:.4g})"
    # Straight lines from 5,000 to 100,000 steps have their mean height half-way.
    assert rows[WALKER, "area under the curve"][0].startswith(f"{52.5 * 6:.4g} (")
    spread = rows["all 2", "deviation of final return over seeds"]
    deviation = 97.5 * np.mean([np.std(slopes, ddof=1) for slopes in CONTROL.values()])
    assert spread[0] == f"{deviation:.4g}"
    assert spread[2] == "2.00"


def test_equal_arms_have_a_ratio_of_one_within_the_interval(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "control", "--root", str(root)]) == 0
    cell = table(capsys.readouterr().out)["all 2", "final return"][2]
    value, low, high = (float(word) for word in cell.replace("(", "").replace(")", "").replace("to", "").split())
    assert low < value == 1.0 < high


def test_steps_may_be_chosen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "treated", "--root", str(root), "--at", "50000", "--after", "20000"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows[CHEETAH, "final return"][0].startswith("100 (")  # 50,000 alone is in its last tenth
    assert rows[CHEETAH, "area under the curve"][0].startswith(f"{2 * 37.5:.4g} (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["control", "nothing"], "No experiment 'nothing'"),
        (["control", "elsewhere"], "have no environment in common"),
        (["control", "mixed"], "several configurations"),
        (["control", "treated", "--at", "200000"], "seed 0, 1, 2 was not evaluated shortly before 200,000 steps"),
        (["control", "treated", "--after", "99000"], "fewer than two evaluations between 99,000 and 100,000"),
    ],
)
def test_what_cannot_be_compared_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--root", str(root)]) == 2
    assert message in capsys.readouterr().err
