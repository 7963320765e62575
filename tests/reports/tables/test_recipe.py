"""The page of a recipe: numbers by hand, the same from the record alone, and what cannot be reported."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from report_cases import CHEETAH, WALKER, add_run, cells, code_of
from sweep_cases import PENDULUM, write_recipe

from lit_metarl.reports.command import main
from lit_metarl.reports.tables.arms import arms_of, headline, names_of, relative
from lit_metarl.reports.tables.recipe import section_of
from lit_metarl.reports.tables.record import Evaluation, read_store, record_of, record_text
from lit_metarl.sweep.recipe import Label, load_recipe

EXPERIMENT = {"config": [PENDULUM]}
TASKS = {"cheetah/run": CHEETAH, "walker/walk": WALKER}
SLOPES = {  # of the return per 1,000 steps; the last tenth of 100,000 steps holds 97.5 times it
    ("control", "cheetah/run"): [1.0, 2.0, 3.0],
    ("control", "walker/walk"): [4.0, 5.0, 9.0],
    ("fast", "cheetah/run"): [2.0, 4.0, 6.0],
    ("fast", "walker/walk"): [8.0, 10.0, 18.0],
}


def swing(**changes: Any) -> Path:
    return write_recipe(experiments={"control": EXPERIMENT, "fast": EXPERIMENT}, seeds=3, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipe") / "store"
    for (arm, task), slopes in SLOPES.items():
        for seed, slope in enumerate(slopes):
            add_run(root, "swing", seed, slope, arm=f"{arm} data.env.task={task}", environment=TASKS[task])
    more = {"eval/return_after_1_steps": 2.0, "eval/return_after_2_steps": 3.0, "eval/out_of_distribution/return": 0.5}
    more |= {
        "eval/out_of_distribution/return_after_0_steps": 0.25,
        "eval/out_of_distribution/return_after_1_steps": 0.5,
        "gradient/cosine": 0.01,
    }
    for seed in range(4):
        add_run(root, "meta", seed, 3.0 + seed, arm="maml", environment="points/a", before=1.0, more=more)
    add_run(root, "meta", 0, 2.0, arm="renamed", environment="points/a", commit="def5678")
    add_run(root, "begun", 0, 1.0, arm="sac", status="failed")
    return root


def report(root: Path, recipe: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    """What is printed, and the page."""
    assert main(["report", str(recipe), "--root", str(root), *more]) == 0
    return capsys.readouterr().out, recipe.with_suffix(".md").read_text()


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a text, each a list of lines, column → cell."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[cells(line) for line in block.splitlines()] for block in blocks]
    return [[dict(zip(lines[0], line, strict=True)) for line in lines[2:]] for lines in rows]


def test_arms_on_several_environments(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, page = report(root, swing(grid={"data.env.task": list(TASKS)}), capsys, "--json", "rows.json")
    rows, matrix, seeds = tables(page)
    assert tables(printed) == [rows, matrix]
    assert seeds[0] == {
        "arm": "`control`",
        "environment": CHEETAH,
        "seed 0": "97.5",
        "seed 1": "195",
        "seed 2": "292.5",
    }
    places = [(row["arm"], row["environment"]) for row in rows]
    assert places == [
        ("`control`", CHEETAH),
        ("`fast`", CHEETAH),
        ("`control`", WALKER),
        ("`fast`", WALKER),
        ("`control`", "all, relative to the first arm"),
        ("`fast`", "all, relative to the first arm"),
    ]
    first = rows[0]
    assert first["return (95 % interval)"] == "195 (97.5 to 292.5)"  # the bootstrap of three seeds is their range
    assert (first["seeds"], first["environment steps"], first["minutes"]) == ("3", "100,000", "1.7")
    assert first["commit"] == "abc1234"
    assert re.fullmatch(r"[0-9a-f]{8}", first["config"])
    assert first["published SAC"] == "116 (88–134; 3) at 100,000"
    assert first["ours, same steps"] == "105"  # all evaluations: mean step 52.5 thousand, mean slope 2
    # In units of the control's means, 2 and 6, scores are 0.5 1 1.5 and 0.67 0.83 1.5; of six, two are dropped.
    assert rows[4]["return (95 % interval)"].startswith("1 (")
    assert rows[5]["return (95 % interval)"].startswith("2 (")
    assert matrix[1]["`control`"].startswith("0.86 (")  # 7.5 of 9 pairs on one, 8 on the other
    assert matrix[0]["`fast`"].startswith("0.14 (")
    assert page.startswith(
        "# SAC on a pendulum.\n\n**`fast` has the highest return on all 2 environments, in units of the mean of "
        "`control`: 2 ("
    )
    assert "next is `control` with 1 (" in page
    assert "which it beats with a probability of 0.86 (0.61 to 1.00).**" in page
    assert "lit-metarl sweep swing.yaml\nlit-metarl report swing.yaml\n" in page
    assert "![learning curves](.figures/swing.png)" in page
    assert "![performance profiles](.figures/swing_profile.png)" in page
    data = json.loads(Path("rows.json").read_text())["rows"]
    assert data[0]["returns"] == {"0": 97.5, "1": 195.0, "2": 292.5}


def test_profiles_are_of_the_arms_in_their_colours(root: Path) -> None:
    recipe = load_recipe(swing(grid={"data.env.task": list(TASKS)}))
    figures = section_of(recipe, read_store(root, "swing")).figures
    (axes,) = next(figure for path, figure in figures.items() if path.name == "swing_profile.png").axes
    curves = {line.get_label(): line for line in axes.lines}
    assert [(name, line.get_color()) for name, line in curves.items()] == [("control", "C0"), ("fast", "C1")]
    # Of the control's units, runs have 0.5 1 1.5 and 0.67 0.83 1.5; the other arm's have twice that.
    for name, shares in {"control": (1.0, 0.5, 0.0), "fast": (1.0, 1.0, 0.5)}.items():
        levels, share = curves[name].get_data()
        assert [share[levels <= level][-1] for level in (0.1, 0.9, 1.9)] == pytest.approx(shares)
    assert len(axes.collections) == 2  # the bands


def test_an_arm_that_lacks_a_seed_is_not_compared_on_all_environments(root: Path) -> None:
    rows = read_store(root, "swing")
    third = [row._replace(arm=f"{row.arm[:4]}est{row.arm[4:]}", run=f"{row.run}0") for row in rows if row.arm[0] == "f"]
    rows += [row._replace(value=2 * row.value) for row in third if (int(row.seed), row.environment) != (2, WALKER)]
    labels = {row.arm: Label(*row.arm.split(" ")) for row in rows}
    arms = arms_of(rows, names_of(rows, labels))
    assert list(relative(arms)) == ["control", "fast"]
    assert headline(arms).startswith(f"`fastest` has the highest return on {CHEETAH} after 100,000 steps: ")


def test_a_diverged_run_is_named_and_not_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = "control data.env.task=walker/walk"
    rows = read_store(root, "swing")
    (first, *_), kept = ([row for row in rows if ((row.arm, row.seed) == (arm, "1")) is own] for own in (True, False))
    recipe = swing(grid={"data.env.task": list(TASKS)}, metrics=["gradient/cosine"])
    record_of(recipe).write_text(record_text([*kept, first._replace(metric="diverged", step=40_000, value=1.0)]))
    printed, page = report(Path("gone"), recipe, capsys)
    for text in (printed, page):
        assert f"Diverged, so without a return, and not counted: `{arm}` seed 1 after 40,000 steps." in text
        assert "Not finished" not in text
    (table, *_) = tables(page)
    assert [line["seeds"] for line in table[:4]] == ["3", "3", "2, 1 more diverged", "3"]
    sentence = rf"next is `control` with {6.5 * 97.5:.4g} \(.*\) without 1 run that diverged, which it beats"
    assert re.search(sentence, page.splitlines()[2])
    for words in (["report", "--root", "gone", "--html", "page.html"], ["compare", "control", "fast"]):
        assert main([words[0], str(recipe), *words[1:]]) == 0
        assert f"`{arm}` seed 1 after 40,000 steps" in capsys.readouterr().out
    assert "without 1 run that diverged" in Path("page.html").read_text()
    lost = {(row.arm, row.seed): row._replace(metric="diverged", step=1) for row in rows if row.arm.startswith("fast")}
    record_of(recipe).write_text(record_text([*(row for row in rows if row.arm.startswith("control")), *lost.values()]))
    assert main(["compare", str(recipe), "control", "fast"]) == 2
    assert "swing.csv has no eval/return of 'fast'. Diverged, so without a return" in capsys.readouterr().err
    record_of(recipe).write_text(record_text(lost.values()))
    assert main(["report", str(recipe), "--root", "gone"]) == 2
    assert "No run has finished. Diverged, so without a return" in capsys.readouterr().err


def test_everything_is_made_of_the_record_when_the_store_is_gone(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "store")
    recipe = swing(grid={"data.env.task": list(TASKS)})
    files = [record_of(recipe), recipe.with_suffix(".md"), Path(".figures/swing.png")]
    report(tmp_path / "store", recipe, capsys)
    before = [file.read_bytes() for file in files]
    for file in files[1:]:
        file.unlink()
    shutil.rmtree(tmp_path / "store")
    report(tmp_path / "store", recipe, capsys)
    assert [file.read_bytes() for file in files] == before
    assert not (tmp_path / "store").exists()


def test_a_meta_learner_before_and_after_adaptation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = {"maml": {"value": 600, "source": "Table 1"}}
    recipe = write_recipe(
        "meta.yaml", experiments={"maml": EXPERIMENT}, seeds=6, published=published, note="Seeds differ."
    )
    printed, page = report(root, recipe, capsys)
    maml, renamed = tables(page)[0]
    assert list(maml)[:7] == [
        "arm",
        "before adaptation",
        "after 1 step",
        "return (95 % interval)",
        "out of distribution before adaptation",
        "out of distribution",
        "published",
    ]
    assert list(maml.values())[1:3] == ["97.5", "195"]
    assert maml["return (95 % interval)"].startswith(f"{97.5 * 4.5:.4g} (")
    assert list(maml.values())[4:7] == ["24.38", "48.75", "600"]
    assert list(renamed.values())[1:7] == ["–", "–", "195", "–", "–", "–"]  # one seed has no interval
    assert tables(page)[2][0]["seed 1"] == "390 (from 97.5)"  # 4 × 97.5
    assert "\n\nSeeds differ.\n\n| arm |" in page
    assert "Published: Table 1 (`maml`)." in page
    assert "Not finished, so not counted: `maml` seed 4, 5." in page
    assert "Not in the recipe any more: renamed." in page
    assert "**`maml` has the highest return on points/a after 100,000 steps: " in page
    assert "beats with a probability of 1.00; one seed tells little.**" in page
    # Trained again: the printed text says it, the page is of the record alone.
    rows = [Evaluation("maml", "0", "eval/return", 100_000, 1.0, 1.0, "9" * 32, "k", "c", "f", "MAML", "points/a")]
    record_of(recipe).write_text(record_text(rows))
    printed, again = report(root, recipe, capsys)
    assert f"Replaced: run {'9' * 32} of maml seed 0 by " in printed
    assert again == page


def test_what_a_recipe_names_besides_returns_is_recorded_and_drawn(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments = {"maml": EXPERIMENT}
    recipe = write_recipe("meta.yaml", experiments=experiments, metrics=["gradient/cosine", "gradient/sine"])
    _, page = report(root, recipe, capsys)
    assert tables(page)[0][0]["`gradient/cosine`"] == "0.975"
    assert "![gradient/cosine](.figures/meta_gradient_cosine.png)" in page
    assert Path(".figures/meta_gradient_cosine.png").stat().st_size > 10_000
    assert "Logged by no run: `gradient/sine`." in page
    assert not Path(".figures/meta_gradient_sine.png").exists()
    assert report(Path("gone"), recipe, capsys)[1] == page
    assert "gradient/cosine" not in report(root, write_recipe("meta.yaml", experiments=experiments), capsys)[1]


def test_a_metric_is_related_to_the_return_over_and_within_arms(capsys: pytest.CaptureFixture[str]) -> None:
    """By its mean, which neither the first point nor the last one has the order of; of runs that have both."""
    experiments = dict.fromkeys("abc", EXPERIMENT)
    recipe = write_recipe("led.yaml", experiments=experiments, seeds=4, metrics=["led/cosine"])
    runs = {  # points of the metric at 10 and 20, and the return
        "a0": ([0.125], 30.0),  # it was measured late
        "a1": ([1.25, -0.75], 20.0),
        "a2": ([-1.0, 1.75], 10.0),
        "a3": ([], 99.0),
        "b0": ([0.0, 1.25], 60.0),
        "b1": ([1.75, -0.25], 50.0),
        "b2": ([0.5, 1.25], 40.0),
        "c0": ([-9.0, -9.0], 99.0),  # an arm of one seed tells nothing
    }
    rows = [
        Evaluation(name[0], name[1], metric, step, value, 1.0, name, "k", "c", "f", "SAC", "gym/x")
        for name, (cosines, height) in runs.items()
        for metric, values in (("led/cosine", cosines), ("eval/return", [height, height]))
        for step, value in zip((10, 20)[-len(values) :], values, strict=bool(values))
    ]
    record_of(recipe).write_text(record_text(rows))
    printed, page = report(Path("gone"), recipe, capsys)
    (line,) = tables(page)[2]  # results, improvements, this, seeds
    assert line in tables(printed)[2]
    assert (line["metric"], line["arms"], line["runs"]) == ("`led/cosine`", "2", "6")
    # Ranks 1 2 3 4 5 6 and 3 2 1 6 5 4: 1 - 6·16/(6·35). In each arm the opposite order: of 6 · 6 orders 2 are as far.
    assert line["correlation"] == "0.54 (0.54 to 0.80)"  # of a seed drawn thrice an arm has no order left
    assert re.fullmatch(r"-1\.00 \(p 0\.0[56]\)", line["within arms"])


def test_a_metric_without_steps_in_common_costs_no_page(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe("apart.yaml", experiments={"a": EXPERIMENT, "b": EXPERIMENT}, metrics=["ntk/ratio"])
    measured = [(arm, "eval/return", step) for arm in "ab" for step in (10, 20)] + [("a", "ntk/ratio", 10)]
    rows = [
        Evaluation(arm, "0", metric, step, 1.0, 1.0, arm, "k", "c", "f", "SAC", "gym/x")
        for arm, metric, step in [*measured, ("b", "ntk/ratio", 20)]
    ]
    record_of(recipe).write_text(record_text(rows))
    assert "`ntk/ratio`" not in report(Path("gone"), recipe, capsys)[1].partition("![")[0]


def test_a_metric_measured_before_training_alone_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe("once.yaml", experiments={"a": EXPERIMENT, "b": EXPERIMENT}, metrics=["led/cosine"])
    points = [("eval/return", 10, 1.0), ("eval/return", 20, 1.0), ("led/cosine", 0, 0.25)]
    rows = [
        Evaluation(arm, "0", metric, step, value, 1.0, arm, "k", "c", "f", "SAC", "gym/x")
        for arm in "ab"
        for metric, step, value in points
    ]
    record_of(recipe).write_text(record_text(rows))
    assert [row["`led/cosine`"] for row in tables(report(Path("gone"), recipe, capsys)[1])[0]] == ["0.25", "0.25"]


def test_an_arm_for_each_task(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{arm} data.env.task={task}" for arm, task in (("control", "cheetah/run"), ("fast", "walker/walk"))]
    rows = [
        Evaluation(name, seed, "eval/return", s, s / 10, 1.0, f"{name}{seed}", "k", "c", "f", "SAC", environment)
        for name, environment in zip(names, TASKS.values(), strict=True)
        for seed in ("0", "1")
        for s in (95, 100)
    ]
    recipe = write_recipe("tasks.yaml", experiments=dict.fromkeys(names, EXPERIMENT), seeds=2)
    record_of(recipe).write_text(record_text(rows))
    _, page = report(root, recipe, capsys)
    assert len(tables(page)) == 2
    assert f"**`{names[0]}` reaches 9.75 (9.75 to 9.75) on {CHEETAH} after 100 steps, 2 seeds. `{names[1]}`" in page


def test_one_arm_on_several_tasks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Evaluation(
            f"sac data.env.task={task}", "0", "eval/return", s, value, 1.0, task, "k", "c", "f", "SAC", TASKS[task]
        )
        for task, value in (("walker/walk", 2.0), ("cheetah/run", 1.0))
        for s in (95, 100)
    ]
    recipe = write_recipe("tasks.yaml", grid={"data.env.task": list(TASKS)})
    record_of(recipe).write_text(record_text(rows))
    _, page = report(root, recipe, capsys)
    assert f"**`sac` reaches 1 on {CHEETAH}, 2 on {WALKER} after 100 steps, 1 seed.**" in page
    assert "Probability of improvement" not in page


def test_arms_are_compared_where_the_shortest_ends(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Evaluation(arm, seed, "eval/return", s, s + int(seed), 1.0, f"{arm}{seed}", "k", "c", "f", "SAC", "gym/x")
        for arm, end in (("long", 300), ("short", 100))
        for seed in ("0", "1")
        for s in range(10, end + 1, 10)
    ]
    rows = [row._replace(config="g") if (row.arm, row.seed) == ("short", "1") else row for row in rows]
    arms = {"short": EXPERIMENT, "long": EXPERIMENT, "never": EXPERIMENT}
    recipe = write_recipe("lengths.yaml", experiments=arms, seeds=2)
    record_of(recipe).write_text(record_text(rows))
    _, page = report(root, recipe, capsys)
    found = tables(page)[0]
    assert [row["arm"] for row in found] == ["`short`", "`long`"]
    assert {row["environment steps"] for row in found} == {"100"}
    assert "with a probability of 0.50 (0.00 to 1.00); these seeds do not tell the two apart.**" in page
    assert found[1]["return (95 % interval)"] == "100.5 (100 to 101)"
    assert "Trained for longer: `long` 290.5 (290 to 291) on gym/x after 300 steps." in page  # of 280, 290 and 300
    assert "Seeds of one arm differ in more than the seed, see their configs: `short` on gym/x." in page
    assert found[0]["config"] == "f, g"
    assert "Not finished, so not counted: `never`." in page


@pytest.mark.parametrize(
    ("seeds", "ending"),
    [
        (2, "1.00 (1.00 to 1.00); these seeds are too few: those of equal arms come apart with a probability of 33 %."),
        (3, "1.00 (1.00 to 1.00); these seeds are too few: those of equal arms come apart with a probability of 10 %."),
        (4, "1.00 (1.00 to 1.00)."),  # 2 of 70 orders
    ],
)
def test_the_headline_is_sure_of_no_order_that_chance_makes(seeds: int, ending: str) -> None:
    rows = [
        Evaluation(arm, str(seed), "eval/return", s, value + seed, 1.0, f"{arm}{seed}", "k", "c", "f", "SAC", "gym/x")
        for arm, value in (("good", 100), ("bad", 0))
        for seed in range(seeds)
        for s in (50, 100)
    ]
    sentence = headline(arms_of(rows, {"good": Label("good"), "bad": Label("bad")}))
    assert sentence.endswith(f"which it beats with a probability of {ending}")
    ranks = [sorted(each) for each in combinations(range(2 * seeds), seeds)]  # of one arm, equally likely
    apart = sum(each in (list(range(seeds)), list(range(seeds, 2 * seeds))) for each in ranks) / len(ranks)
    assert (f"probability of {100 * apart:.0f} %." in ending) == (apart > 0.05)


def test_environments_of_one_name_are_told_apart_by_their_settings(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Evaluation(
            f"{arm} data.env.g={g}", seed, "eval/return", s, g, 1.0, f"{arm}{g}{seed}", "k", "c", "f", "SAC", env
        )
        for arm in ("sac", "td3")
        for g, env in ((1, "gym/x"), (2, "gym/x"), (3, "gym/y"))
        for seed in ("0", "1")
        for s in (95, 100)
    ]
    experiments = {"sac": EXPERIMENT, "td3": EXPERIMENT}
    recipe = write_recipe("alone.yaml", experiments=experiments, grid={"data.env.g": [1, 2, 3]}, seeds=2)
    record_of(recipe).write_text(record_text(rows))
    _, page = report(root, recipe, capsys)
    found, matrix, *_ = tables(page)
    own = [(row["arm"], row["environment"]) for row in found if not row["environment"].startswith("all")]
    places = ["gym/x g=1", "gym/x g=2", "gym/y"]
    assert own == [(name, place) for place in places for name in ("`sac`", "`td3`")]
    assert list(matrix[0]) == ["arm", "`sac`", "`td3`"]  # who is better is asked within an environment
    assert "on all 3 environments" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.yaml"], "config file gone.yaml cannot be read: No such file"),
        (["begun.yaml"], "1 FAILED. See --all. Nor is there a record, begun.csv. Train: lit-metarl sweep begun.yaml"),
        (["fresh.yaml"], "No experiment 'fresh' in "),
        (["fresh.yaml", "--root", "nowhere"], "There is no store in nowhere: nowhere/mlflow.db is missing."),
        (["damaged.yaml"], "damaged.csv, line 2: it has 1 fields, not 12. Delete the line, or restore the file"),
        (["apart.yaml"], "The runs on gym/x have no steps in common: delete the shortest from the csv."),
        (["begun.yaml", "--all", "--at", "5"], "--at, --all cannot be used with a recipe"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for name in ("begun", "fresh", "damaged", "apart"):
        write_recipe(f"{name}.yaml")
    Path("damaged.csv").write_text(record_text([]) + "half\n")
    rows = [("0", 10), ("0", 20), ("1", 30), ("1", 40)]
    Path("apart.csv").write_text(
        record_text(
            Evaluation("sac", seed, "eval/return", step, 1.0, 1.0, seed, "k", "c", "f", "SAC", "gym/x")
            for seed, step in rows
        )
    )
    assert code_of(["report", "--root", str(root), *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_the_best_arms_of_several_recipes_are_read_from_their_records(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"data.env.task": list(TASKS)}
    first = swing(grid=grid)
    second = write_recipe("other.yaml", experiments={"control": EXPERIMENT}, seeds=3, grid=grid)
    report(root, first, capsys)
    assert main(["report", str(first), str(second)]) == 2
    assert f"{second} has no record yet" in capsys.readouterr().err
    control = [line for line in record_of(first).read_text().splitlines() if not line.startswith("fast")]
    record_of(second).write_text("\n".join(control) + "\n")
    assert main(["report", str(first), str(second), "--root", "nowhere"]) == 0
    (lines,) = tables(capsys.readouterr().out)
    assert [(line["next"].split()[0], line["best arm"], line["seeds"]) for line in lines] == [
        ("`control`", "`fast`", "3"),
        ("`control`", "`fast`", "3"),
        ("–", "`control`", "3"),
        ("–", "`control`", "3"),
    ]
    assert lines[0]["results"] == f"[{first.stem}]({first.with_suffix('.md')})"
    assert lines[0]["return (95 % interval)"].startswith(f"{97.5 * 4:.4g} (")
    assert main(["report", str(first), str(second), "--json", "x.json"]) == 2
    assert "--json cannot be used with several recipes" in capsys.readouterr().err
