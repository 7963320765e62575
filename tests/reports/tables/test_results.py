"""The results table of a real store with known histories."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_cases import CHEETAH, WALKER, add_run, code_of

from lit_metarl.reports.command import main
from lit_metarl.reports.section import markers
from lit_metarl.reports.tables.curves import read_runs
from lit_metarl.reports.tables.results import by_group, make_rows
from lit_metarl.tracking import MLflowLogger, connect

SLOPES = [1.0, 2.0, 4.0, 30.0]  # return of seed i at a step: slope · step / 1000

BEGIN, END = markers("results")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "store"
    for seed, slope in enumerate(SLOPES):
        add_run(root, "small", seed, slope, commit=["abc1234", "def5678"][seed % 2])
    add_run(root, "small", 9, 1000.0, status="failed")
    for seed, slope in enumerate([5.0, 7.0]):
        add_run(root, "small", seed, slope, environment=WALKER, steps=range(5_000, 50_001, 5_000))
    add_run(root, "wide|er", 0, 6.0, width=1024, steps=range(5_000, 80_001, 5_000))
    add_run(root, "equal", 0, 6.0)
    add_run(root, "unfinished", 0, 1.0, status="failed")
    add_run(root, "unfinished", 1, 1.0, status="running")
    return root


def report(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    """Run the command; returns the lines of the printed table as column → cell."""
    assert main(["report", "--root", str(root), *arguments]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def error(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["report", "--root", str(root), *arguments]) == 2
    return capsys.readouterr().err


def test_row_of_four_seeds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cheetah, walker = report(root, capsys, "--experiment", "small")
    # evaluations in (90k, 100k]: 95k and 100k, mean 97.5 · slope: 97.5, 195, 390, 2925; IQM (195 + 390)/2
    assert cheetah["return"] == "292.5 (IQM)"
    assert cheetah["min–max"] == "97.5 to 2925"
    assert cheetah["95 % interval"] == "97.5 to 2925"  # of 4 draws 3 or 4 are the lowest with probability 13/256
    assert (cheetah["algorithm"], cheetah["environment"], cheetah["seeds"]) == ("SAC", CHEETAH, "4")
    assert cheetah["environment steps"] == "100,000"
    assert cheetah["published SAC"] == "116 (88–134; 3)"
    # all 20 evaluations up to 100k: mean step 52.5k, mean slope 37/4
    assert cheetah["ours, same window"] == f"{52.5 * 37 / 4:.4g}"
    assert cheetah["minutes"] == "1.7"  # 100 s
    assert cheetah["commit"] == "abc1234, def5678"
    # (45k, 50k]: one evaluation, 250 and 350; below four seeds the mean
    assert (walker["return"], walker["95 % interval"]) == ("300 (mean)", "250 to 350")
    assert (walker["environment steps"], walker["published SAC"], walker["ours, same window"]) == ("50,000", "–", "–")


def test_a_meta_learner_has_its_return_before_adaptation_beside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, before in enumerate([0.5, 1.5]):
        add_run(tmp_path, "meta", seed, 2.0, environment="points/corners", before=before)
    document = tmp_path / "notes.md"
    document.write_text("<!-- meta:begin -->\n<!-- meta:end -->\n")
    (row,) = report(tmp_path, capsys, "--write", str(document), "--block", "meta")
    assert (row["return"], row["before adaptation"]) == ("195 (mean)", "97.5")  # 97.5 · 2, and 97.5 · (0.5 + 1.5)/2
    assert "published SAC" not in row  # a column that is empty throughout
    assert "on tasks sampled for evaluation" in document.read_text()


def test_epochs_of_unequal_length_have_a_last_common_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    add_run(tmp_path, "uneven", 0, 2.0, steps=range(24_000, 96_001, 24_000))
    add_run(tmp_path, "uneven", 1, 2.0, steps=range(25_000, 100_001, 25_000))
    (row,) = report(tmp_path, capsys)
    assert (row["environment steps"], row["seeds"], row["return"]) == ("100,000", "2", "196 (mean)")


def test_equal_settings_share_a_hash(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = report(root, capsys)
    by_name = {row["experiment"]: row for row in rows if row["environment"] == CHEETAH}
    assert list(by_name) == ["equal", "small", "wide¦er"]
    assert by_name["equal"]["config"] == by_name["small"]["config"] != by_name["wide¦er"]["config"]
    assert len(by_name["small"]["config"]) == 8
    assert by_name["equal"]["95 % interval"] == "–"  # one seed


def test_an_option_of_a_later_version_leaves_the_hash_as_it_is(tmp_path: Path) -> None:
    older = {"class_path": "lit_metarl.algorithms.SAC", "init_args": {"gamma": 0.9}}
    newer = {"class_path": "lit_metarl.algorithms.SAC", "init_args": {"gamma": 0.9, "share_weights": False}}
    other = {"class_path": "lit_metarl.algorithms.SAC", "init_args": {"gamma": 0.9, "share_weights": True}}
    faster = {"class_path": "lit_metarl.algorithms.SAC", "init_args": {"gamma": 0.9, "cuda_graphs": True}}
    for seed, model in enumerate([older, newer, other, faster]):
        config = {
            "seed_everything": seed,
            "trainer": {"max_epochs": 3} | ({"benchmark": None} if seed else {}),
            "model": model,
        }
        connect(tmp_path).log_text(add_run(tmp_path, "e", seed, 1.0), yaml.safe_dump(config), "config/fit.yaml")
    hashes = {run.seed: run.config for run in read_runs(str(tmp_path))[0]}
    assert hashes["0"] == hashes["1"] == hashes["3"] != hashes["2"]


def test_at_given_steps(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--root", str(root), "--experiment", "equal", "wide|er", "--at", "5e4", "100000"]) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split(" | ")] for line in printed.splitlines() if line.startswith("| ")]
    assert [row[3] for row in rows[2:]] == ["50,000", "100,000", "50,000"]
    assert rows[2][4] == "300 (mean)"
    assert "Not evaluated shortly before 100,000 steps: wide|er (" in printed
    assert ") on dm_control/cheetah_run, seed 0." in printed


def test_a_run_that_ended_before_the_step_is_not_reported_at_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # last evaluation 80k, every 5k: the window (76.5k, 85k] holds one, but 85k itself is missing
    assert "no row" in error(root, capsys, "--experiment", "wide|er", "--at", "85000")
    assert report(root, capsys, "--experiment", "wide|er", "--at", "84000")[0]["return"] == "480 (mean)"


def test_json_holds_every_seed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(root, capsys, "--experiment", "small", "--json", str(tmp_path / "rows.json"))
    rows: list[dict[str, Any]] = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["returns"] == {str(seed): slope * 97.5 for seed, slope in enumerate(SLOPES)}
    assert rows[0]["published"] == {"mean": 116, "minimum": 88, "maximum": 134, "seeds": 3}
    assert rows[1]["interval"] == [250, 350]


def test_unfinished_runs_only_when_asked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error(root, capsys, "--experiment", "unfinished")
    assert "No finished run in unfinished" in message
    assert "1 FAILED" in message
    assert "1 RUNNING" in message
    (row,) = report(root, capsys, "--experiment", "unfinished", "--all")
    assert row["seeds"] == "2 (FAILED, RUNNING)"


def test_write_replaces_the_block_and_nothing_else(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"# title\n{BEGIN}\nold\n{END}\ntail\n")
    report(root, capsys, "--write", str(file))
    first = file.read_text()
    assert first.startswith(f"# title\n{BEGIN}\n")
    assert first.endswith(f"\n{END}\ntail\n")
    assert "| 292.5 (IQM) |" in first
    assert "old" not in first.split(END)[0].split()
    report(root, capsys, "--write", str(file))
    assert file.read_text() == first


def test_errors_say_what_there_is(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error(root, capsys, "--experiment", "smal")
    assert "No experiment 'smal'" in message
    assert "Known: Default, equal, small, unfinished, wide|er." in message
    assert "none at all" in error(root, capsys, "--experiment", "Default")
    assert "There is no store in" in error(tmp_path / "absent", capsys)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "file").touch()
    assert "Cannot write" in error(root, capsys, "--curves", str(tmp_path / "file"))
    assert code_of(["report", "--json", str(tmp_path / "absent" / "rows.json")]) == 2
    assert "rows.json cannot be written; name a file in a writable folder" in capsys.readouterr().err
    assert code_of(["report", "--at", "1.5"]) == 2


def test_later_points_count_and_runs_that_trained_nothing_do_not(tmp_path: Path) -> None:
    run_id = add_run(tmp_path, "e", 0, 1.0)
    client = connect(tmp_path)
    start = client.get_run(run_id).info.start_time
    client.log_metric(run_id, "eval/return", 500.0, timestamp=start + 86_400_000, step=100_000)  # `validate`, next day
    logger = MLflowLogger(str(tmp_path), "e")
    logger.log_metrics({"eval/return": 1.0}, step=1)
    logger.finalize()
    runs, left_out = read_runs(tmp_path)
    assert left_out == 1
    assert runs[0].mean_return(95_000, 100_000) == 500
    assert runs[0].minutes(100_000) == pytest.approx(100 / 60)

    # trained again: the newer run of the seed replaces it, so that no seed counts twice; a failed one does not
    add_run(tmp_path, "e", 0, 2.0)
    add_run(tmp_path, "e", 0, 3.0, status="failed")
    rows, _ = make_rows(by_group(read_runs(tmp_path, unfinished=True)[0]))
    assert rows[0].returns == {"0": 195.0}


def test_three_seeds_have_a_mean(root: Path) -> None:
    runs = [run for run in read_runs(root, ["small"])[0] if run.environment == CHEETAH and run.seed != "3"]
    (row,), _ = make_rows(by_group(runs))
    assert (row.statistic, row.score) == ("mean", pytest.approx(97.5 * 7 / 3))


def test_reading_says_nothing_by_the_way(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_runs(root)
    assert capsys.readouterr() == ("", "")  # MLflow would draw a progress bar for each artifact


def test_a_diverged_seed_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, slope in enumerate([1.0, 2.0, 3.0, float("nan")]):
        add_run(tmp_path, "e", seed, slope)
    (row,) = report(tmp_path, capsys, "--json", "rows.json")
    assert (row["return"], row["seeds"]) == ("nan (IQM)", "4")
    assert json.loads(Path("rows.json").read_text())["rows"][0]["score"] is None
