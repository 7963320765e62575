"""Pages of a store and of a recipe's record, by the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_cases import CHEETAH, WALKER, add_run, code_of
from sweep_cases import PENDULUM, write_recipe

from lit_metarl.reports.command import main
from lit_metarl.reports.html.sources import recipe_page
from lit_metarl.reports.tables.arms import names_of
from lit_metarl.reports.tables.curves import RETURN
from lit_metarl.reports.tables.record import Evaluation
from lit_metarl.sweep.recipe import load_recipe
from lit_metarl.tracking import connect

OUT = "eval/out_of_distribution/return"
META = {"eval/return_after_1_steps": 3.0, OUT: 0.5, f"{OUT}_after_0_steps": 0.25, "eval/return_random": -1.0}
CSV = (
    "split,task,parameters,adaptation_steps,mean_return\n"
    "test,0,\"{'goal': [0.5, 1.0]}\",0,1.0\ntest,0,\"{'goal': [0.5, 1.0]}\",1,4.0\n"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages") / "store"
    for seed in range(2):
        add_run(root, "swing", seed, 3.0, arm="maml", environment="points/a", before=1.0, more=META)
    first = connect(root).search_runs([connect(root).get_experiment_by_name("swing").experiment_id])[-1]
    connect(root).log_text(first.info.run_id, CSV, "adaptation/eval.csv")
    film = root / "after_1_steps.mp4"
    film.write_bytes(b"film")
    connect(root).log_artifact(first.info.run_id, str(film), "predict")
    more = META | {"eval/return_after_1_steps": 2.0}
    add_run(root, "swing", 0, 2.0, arm="sgmrl", environment="points/a", width=32, before=1.0, more=more)
    add_run(root, "swing", 1, 2.0, arm="sgmrl", environment="points/a", width=32, status="running", before=1.0)
    for environment in (CHEETAH, WALKER):
        add_run(root, "plain", 0, 2.0, environment=environment)
    return root


def data_of(page: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_page_of_a_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("page.html")
    words = ["--root", str(root), "--experiment", "swing", "--all", "--html", str(page), "--metrics", "train/return"]
    assert main(["report", *words]) == 0
    assert "page.html" in capsys.readouterr().err
    data, text = data_of(page), page.read_text(encoding="utf-8")
    assert data["arms"] == ["maml", "sgmrl"]
    # the return after the last step is the return; what random actions earn is a line in the other chart
    names = ["eval/return", OUT, f"{OUT}_after_0_steps", "eval/return_after_0_steps", "train/return"]
    assert [metric["name"] for metric in data["metrics"]] == names
    (panel,) = data["panels"]
    curves = panel["curves"]["eval/return"]
    assert [(curve["arm"], len(curve["seeds"])) for curve in curves] == [(0, 2), (1, 2)]
    assert curves[0]["steps"] == list(range(5_000, 100_001, 5_000))
    test, out = data["adaptation"]
    assert (test["title"], out["title"]) == ("Test tasks", "Out of distribution tasks")
    assert test["random"] == pytest.approx(-100)
    assert test["curves"][0]["centre"] == [1, 4]  # of the table that a run stored
    assert out["curves"][0]["centre"] == pytest.approx([0.25 * 97.5, 0.5 * 97.5])  # the last tenth of 100,000 steps
    assert "2 (running)" in text
    assert "model.width" in text.partition("What all arms share")[0]
    assert "data:video/mp4;base64,ZmlsbQ==" in text


def test_page_of_a_store_with_several_environments(root: Path) -> None:
    assert main(["report", "--root", str(root), "--experiment", "plain", "--html", "page.html"]) == 0
    data = data_of(Path("page.html"))
    assert [panel["title"] for panel in data["panels"]] == [CHEETAH, WALKER]
    assert data["arms"] == ["SAC"]
    assert data["panels"][0]["marks"]["eval/return"]["x"] == [100_000]  # published
    assert data["adaptation"] == []


def test_page_of_a_recipe_is_the_same_without_the_store(root: Path) -> None:
    experiments = {"maml": {"config": [PENDULUM]}, "sgmrl": {"config": [PENDULUM], "overrides": {"model.gamma": 0.5}}}
    published = {"maml": {"value": 123.25, "source": "a paper, Table 1"}}
    recipe = write_recipe(experiments=experiments, seeds=2, published=published)
    assert main(["report", str(recipe), "--root", str(root), "--html", "with.html"]) == 0
    shutil.rmtree("gone", ignore_errors=True)
    assert main(["report", str(recipe), "--root", "gone", "--html", "without.html"]) == 0
    assert not Path("gone").exists()
    stored, recorded = data_of(Path("with.html")), data_of(Path("without.html"))
    assert stored["panels"] == recorded["panels"]
    assert stored["arms"] == ["maml", "sgmrl"]
    assert [len(curve["seeds"]) for curve in stored["panels"][0]["curves"]["eval/return"]] == [2, 1]
    assert stored["adaptation"][0]["curves"][0]["centre"] == [1, 4]
    assert recorded["adaptation"][0]["curves"][0]["centre"] == pytest.approx([97.5, 3 * 97.5])
    assert [curve["published"] for curve in recorded["panels"][0]["curves"]["eval/return"]] == [123.25, None]
    text = Path("without.html").read_text(encoding="utf-8")
    assert "<code>model.gamma</code>" in text.partition("What all arms share")[0]
    for words in ("123.2", "Published: a paper, Table 1", ">292.5<", "<code>sgmrl</code> seed 1."):
        assert words in text


def test_page_of_arms_on_several_environments() -> None:
    slopes = {"control": [1.0, 2.0, 3.0], "fast": [2.0, 4.0, 6.0]}
    recipe = write_recipe(experiments={arm: {"config": [PENDULUM]} for arm in slopes}, seeds=3)
    rows = [
        Evaluation(arm, str(seed), RETURN, step, slope * step, step / 1000, f"{arm}{seed}{task}", "key", "abc1234",
                   "c0ffee00", "SAC", f"suite/{task}")
        for arm, each in slopes.items() for task in ("a", "b") for seed, slope in enumerate(each)
        for step in (90, 95, 100)
    ]  # fmt: skip
    names = names_of(rows, load_recipe(recipe).labels())
    assert list(names) == list(slopes)
    text = recipe_page(load_recipe(recipe), rows, "gone", Path("page.html"))
    tables = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table) for table in text.split("<table")[1:]]
    assert "All environments, in units of the mean of control" in text
    together = [re.sub("<.*?>", "", cell) for cell in tables[1]]
    assert together[:5] == ["arm", "return", "95 % interval", "seeds on one scale", "seeds"]
    # of each environment the mean of control is the unit; of its six scores ½ ½ 1 1 3/2 3/2 the outer two do not count
    assert together[5:7] == ["control", "1.000"]
    assert together[10:12] == ["fast", "2.000"]
    headline = re.search(r'class="headline">(.*?)</p>', text)
    assert headline
    assert headline[1].startswith("<code>fast</code> has the highest return on all 2 environments")
    improvement = [re.sub("<.*?>", "", cell) for cell in tables[3]]
    assert improvement[:3] == ["arm", "control", "fast"]
    # of nine pairs with (1, 2, 3) each, 2 ties with 2 and beats 1; 4 and 6 beat all
    assert improvement[6] == "fast"
    assert improvement[7].startswith("0.83 (")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "train/nothing", "--html", "page.html"], "no run has train/nothing"),
        (["--html", "missing/page.html"], "--html"),
        (["recipe.yaml", "--metrics", "train/return"], "--metrics cannot be used with a recipe"),
    ],
)
def test_what_cannot_be_a_page(root: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["report", "--root", str(root), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("page.html").exists()
