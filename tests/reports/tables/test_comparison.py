"""Two arms of a real store with known curves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric
from report_cases import CHEETAH, WALKER, add_run, code_of
from sweep_cases import PENDULUM, write_recipe

from lit_metarl.reports.command import main
from lit_metarl.reports.tables.record import Evaluation, record_of, record_text
from lit_metarl.reports.tables.statistics import bootstrap_interval
from lit_metarl.tracking import connect

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
    add_run(root, "mixed2", 0, 1.0)
    for environment, slopes in CONTROL.items():
        for seed, slope in enumerate(slopes):
            add_run(root, "again", seed, slope, environment=environment)
    for seed, slope in enumerate(CONTROL[CHEETAH]):  # the same curves, evaluated between the others' evaluations
        add_run(root, "shifted", seed, slope, steps=range(1_000, 101_001, 5_000))
    for environment, seeds in ((CHEETAH, (0, 1, 2)), (WALKER, (0, 1))):
        for seed in seeds:
            add_run(root, "fewer", seed, CONTROL[environment][seed], environment=environment)
    for seed in range(2):
        add_run(root, "nothing learned", seed, 0.0)
    for seed, status in ((0, "success"), (1, "failed"), (2, "failed"), (2, "success")):
        add_run(root, "diverging", seed, 1.0, status=status)
    add_run(root, "failed", 0, 1.0, status="failed")
    add_run(root, "elsewhere", 0, 1.0, environment="dm_control/fish_swim")
    return root


def table(text: str) -> dict[tuple[str, str], list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): row[2:] for row in rows[2:]}


def test_scores_ratios_and_their_intervals(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "treated", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    # At 100,000 steps the last tenth holds the evaluations at 95,000 and 100,000: 97.5 times the slope.
    control, treated, ratio, improvement = rows[CHEETAH, "final return"]
    assert control.startswith("195 (")
    assert treated.startswith("390 (")
    assert ratio.startswith("2.00 (")
    assert improvement == f"{7.5 / 9:.2f}"  # of 9 pairs 7 are won and one is a tie
    # In units of the control's means, 2 and 6; of six scores the lowest and the highest are dropped.
    relative = [np.array([1, 2, 3]) / 2, np.array([4, 5, 9]) / 6]
    pooled = np.sort(np.concatenate(relative))
    low, high = bootstrap_interval(relative)
    assert rows["all 2, relative", "final return"][0] == f"{pooled[1:-1].mean():.4g} ({low:.4g} to {high:.4g})"
    assert rows["all 2, relative", "final return"][2].startswith("2.00 (")
    # Straight lines from 5,000 to 100,000 steps have their mean height half-way.
    assert rows[WALKER, "area under the curve"][0].startswith(f"{52.5 * 6:.4g} (")
    spread = rows[WALKER, "deviation of final return over seeds"]
    assert spread[0].startswith(f"{97.5 * np.std([4, 5, 9], ddof=1):.4g} (0 to ")  # resamples of one seed alone
    assert spread[2:] == ["2.00", "–"]
    spread = rows["all 2, relative", "deviation of final return over seeds"]
    assert spread[0].startswith(f"{np.mean([np.std(scores, ddof=1) for scores in relative]):.4g} (")
    assert spread[2] == "2.00"


def test_steps_to_where_the_first_arm_ends(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure = "steps to the first arm's final return"
    assert main(["compare", "control", "treated", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    # Straight lines: the control is where it ends after 97,500 steps, twice its slope half as soon. Its seeds' slopes
    # are 1 to 3 and the others' 2 to 6, so that the ratio of resamples is from 1/6 to 3/2.
    assert rows[CHEETAH, measure][:2] == ["97,500", "48,750"]
    value, low, high = (float(word) for word in re.findall(r"[\d.]+", rows[CHEETAH, measure][2]))
    assert 1 / 6 <= low < value == 0.5 < high <= 3 / 2
    assert rows[CHEETAH, measure][3] == "–"
    assert main(["compare", "treated", "control", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    assert rows[CHEETAH, measure][:2] == ["97,500", "never"]
    assert re.fullmatch(r"never \([\d.]+ to never\)", rows[CHEETAH, measure][2])


def test_equal_arms_have_a_ratio_of_one_within_the_interval(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "again", "--root", str(root)]) == 0
    cell = table(capsys.readouterr().out)["all 2, relative", "final return"][2]
    value, low, high = (float(word) for word in cell.replace("(", "").replace(")", "").replace("to", "").split())
    assert low < value == 1.0 < high


def test_steps_may_be_chosen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "treated", "--root", str(root), "--at", "50000", "--after", "20000"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows[CHEETAH, "final return"][0].startswith("100 (")  # 50,000 alone is in its last tenth
    assert rows[CHEETAH, "area under the curve"][0].startswith(f"{2 * 35:.4g} (")


def test_other_evaluation_steps_make_no_difference(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "shifted", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    for measure in ("final return", "area under the curve"):
        control, shifted, ratio, improvement = rows[CHEETAH, measure]
        assert control == shifted
        assert ratio.startswith("1.00 (")
        assert improvement == "0.50"


def test_all_seeds_count_also_those_of_one_arm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "fewer", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    rows = table(printed)
    walker = rows[WALKER, "final return"]
    assert walker[0].startswith(f"{97.5 * 6:.4g} (")  # of the seeds 0 to 2
    assert walker[1].startswith(f"{97.5 * 4.5:.4g} (")  # of the seeds 0 and 1
    assert walker[2].startswith("0.75 (")
    assert walker[3] == f"{2 / 6:.2f}"  # 4 ties with 4, 5 beats 4 and ties with 5
    assert "all of either arm count: " in printed
    assert f"{CHEETAH} 0, 1, 2; {WALKER} 0, 1, 2 against 0, 1." in printed
    assert "No line for all environments" in printed
    assert ("all 2, relative", "final return") not in rows


def test_environments_of_one_arm_are_left_out_and_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "shifted", "--root", str(root)]) == 0
    assert f"Left out, as only one arm has it: {WALKER}." in capsys.readouterr().out


def test_any_metric_can_be_compared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, slope in (("low", 1.0), ("high", 3.0)):
        add_run(root, name, 0, 9.0, more={"eval/out_of_distribution/return": slope})
    words = ["compare", "low", "high", "--metric", "eval/out_of_distribution/return", "--root", str(root)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert table(printed)[CHEETAH, "final eval/out_of_distribution/return"] == ["97.5", "292.5", "3.00", "1.00"]
    assert "Curves of `eval/out_of_distribution/return` on" in printed


def test_what_training_logs_between_evaluations_can_be_compared_of_meta_learners(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, slope in (("slow", 1.0), ("fast", 3.0)):
        points = [Metric("train/entropy", slope * step / 1000, step, step) for step in range(1_000, 100_001, 1_000)]
        connect(root).log_batch(add_run(root, name, 0, 9.0, before=1.0), metrics=points)
    assert main(["compare", "slow", "fast", "--metric", "train/entropy", "--root", str(root)]) == 0
    assert table(capsys.readouterr().out)[CHEETAH, "final train/entropy"] == ["95.5", "286.5", "3.00", "1.00"]


@pytest.fixture
def recipe() -> Path:
    """A recipe with a record: two arms with a seed more of one, and a third whose seeds differ in settings."""
    arm = {"config": [PENDULUM]}
    path = write_recipe(experiments={"a": arm, "b": arm, "mixed": arm}, grid={"data.env.task": ["x", "y"]})
    rows = [
        Evaluation(f"{arm} data.env.task={task}", str(seed), metric, step, value * step, 1.0, f"{arm}{task}{seed}", "k",
                   "c", f"{seed if arm == 'mixed' else 0}", "SAC", f"suite/{task}")
        for arm, seeds, value in (("a", 2, 1.0), ("b", 3, 2.0), ("mixed", 2, 1.0))
        for task in "xy"
        for seed in range(seeds)
        for metric in ("eval/return", "eval/return_after_0_steps")[: 1 if arm == "mixed" else 2]
        for step in (5, 95, 105)
    ]  # fmt: skip
    record_of(path).write_text(record_text(rows))
    return path


def test_arms_of_a_record_are_compared_without_a_store(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for metric in ("eval/return", "eval/return_after_0_steps"):
        assert main(["compare", str(recipe), "a", "b", "--metric", metric]) == 0
        printed = capsys.readouterr().out
        rows = table(printed)
        name = "final return" if metric == "eval/return" else f"final {metric}"
        assert rows["suite/x", name] == ["100 (100 to 100)", "200 (200 to 200)", "2.00 (2.00 to 2.00)", "1.00"]
        assert rows["all 2, relative", name][2].startswith("2.00 (")  # 2 and 3 seeds, but on either environment
        assert "suite/x 0, 1 against 0, 1, 2; suite/y 0, 1 against 0, 1, 2." in printed
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swing.yaml", "a", "a"], "a would be compared with itself: name two."),
        (["swing.yaml", "a", "c"], "swing.csv has no arm 'c'; it has 'a', 'b', 'mixed'."),
        (["swing.yaml", "a", "mixed"], "mixed has runs of several configurations on suite/x (0, 1)"),
        (["swing.yaml", "a", "b", "--metric", "eval/x"], "swing.csv has no eval/x; it has eval/return, eval/return_a"),
        (["swing.yaml", "a", "mixed", "--metric", "eval/return_after_0_steps"], "_after_0_steps of 'mixed'."),
        (["bare.yaml", "a", "b"], "There is no record, bare.csv: make it with `lit-metarl report bare.yaml`."),
        (["gone.yaml", "a", "b"], "config file gone.yaml cannot be read"),
        (["swing.yaml"], "name two experiments, or a recipe and two of its arms"),
    ],
)
def test_what_of_a_record_cannot_be_compared_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write_recipe("bare.yaml")
    assert code_of(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_scores_of_zero_have_no_ratio_and_one_seed_no_interval(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nothing learned", "control", "--root", str(root)]) == 0
    rows = table(capsys.readouterr().out)
    assert rows[CHEETAH, "final return"][2] == "–"
    assert rows[CHEETAH, "deviation of final return over seeds"][2] == "–"
    assert main(["compare", "control", "nothing learned", "--root", str(root)]) == 0
    assert table(capsys.readouterr().out)[CHEETAH, "final return"][2] == "0.00 (0.00 to 0.00)"  # the worst there is
    assert main(["compare", "shifted", "mixed2", "--root", str(root)]) == 0
    # At 91, 95, 96 and 100 thousand steps; three seeds and one.
    assert table(capsys.readouterr().out)[CHEETAH, "final return"] == ["191 (95.5 to 286.5)", "95.5", "0.50", "0.17"]


def test_seeds_that_never_finished_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "control", "diverging", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"Not finished: diverging on {CHEETAH}, seed 1 (FAILED)." in printed
    assert "seed 2 (" not in printed  # failed once, finished then


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["control", "control"], "control would be compared with itself: name two."),
        (["control", "nothing"], "No experiment 'nothing'"),
        (["control", "elsewhere"], "The arms have no environment in common."),
        (["control", "mixed"], "several configurations"),
        (["control", "failed"], f"No finished run in failed. Not finished: failed on {CHEETAH}, seed 0 (FAILED)."),
        (["control", "treated", "--at", "200000"], "seed 0, 1, 2 was not evaluated shortly before 200,000 steps"),
        (["control", "treated", "--after", "99000"], "there is no curve of all seeds from 99,000 to 100,000 steps"),
    ],
)
def test_what_cannot_be_compared_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compare", *arguments, "--root", str(root)]) == 2
    assert message in capsys.readouterr().err
