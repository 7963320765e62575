"""The page's content: what of the runs goes into it, and how."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_cases import HOSTILE, STEPS, page, runs, value

from lit_metarl.callbacks.adaptation import per_task_csv
from lit_metarl.reports.html.data import MISSING, POINTS, chart_data, curve_of, label_of, pack, without_repeats
from lit_metarl.reports.html.sections import COLOURS, films, flat, settings_tables
from lit_metarl.reports.html.store import Details, task_returns
from lit_metarl.reports.tables.curves import RETURN
from lit_metarl.reports.tables.results import named
from lit_metarl.reports.tables.statistics import bootstrap_interval, interquartile_mean

BEFORE = "eval/return_after_0_steps"
HTML = Path(__file__).parents[3] / "lit_metarl/reports/html"


def unpack(packed: dict[str, Any]) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(packed["data"]), "<u2")
    return np.where(levels == 65535, np.nan, packed["low"] + levels * packed["step"])


def data_of(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_a_page_of_eight_arms_is_small_and_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path / "page.html")
    assert len(text.encode()) < 500_000
    links = re.findall(
        r"""(?:src|href|action)\s*=\s*["']([^"']*)""", text.partition("</style>")[2].partition("<script")[0]
    )
    assert links == ["https://github.com/leeoniya/uPlot"]
    assert "url(" not in text.partition("</style>")[0]
    assert "default-src 'none'" in text
    assert (HTML / "vendor/LICENSE").read_text() in text


def test_what_runs_are_called_is_text(tmp_path: Path) -> None:
    hostile = [
        replace(run, environment=HOSTILE, algorithm=HOSTILE, commit=HOSTILE, config=HOSTILE, status=HOSTILE,
                seed=f"{HOSTILE}{run.seed}", run_id=f"{HOSTILE}{run.run_id}", settings={HOSTILE: {"<!--": HOSTILE}})
        for run in runs(arms=2)
    ]  # fmt: skip
    text = page(tmp_path / "page.html", hostile)
    plain = page(tmp_path / "page.html", runs(arms=1)[:1])
    for part in ("<script", "</script", "<img", "<!--"):
        assert text.count(part) == plain.count(part)
    assert data_of(text)["panels"][0]["title"] == HOSTILE


def test_page_knows_as_many_colours_as_the_style_sheet() -> None:
    assert len(re.findall(r"--arm-\d+:", (HTML / "page.css").read_text())) == COLOURS
    script = (HTML / "page.js").read_text()
    assert f"COLOURS = {COLOURS};" in script
    assert f"MISSING = {MISSING};" in script


def test_packed_numbers_are_exact_to_a_part_of_their_range() -> None:
    values = np.array([-3.0, np.nan, 5.0, 0.123, np.inf])
    np.testing.assert_allclose(unpack(pack(values)), [-3, np.nan, 5, 0.123, np.nan], atol=8 / 65534)
    assert unpack(pack(np.full(3, 2.5))).tolist() == [2.5] * 3
    assert np.isnan(unpack(pack(np.full(2, np.nan)))).all()


def test_curve_has_the_statistics_of_its_seeds() -> None:
    seeds = runs(arms=2)[5:]
    curve = curve_of(seeds)
    returns = np.stack([run.returns for run in seeds])
    assert curve["steps"] == STEPS.tolist()
    np.testing.assert_allclose(unpack(curve["centre"]), interquartile_mean(returns, axis=0), atol=1e-4)
    np.testing.assert_allclose(unpack(curve["seeds"][3]), returns[3], atol=1e-4)
    np.testing.assert_allclose(unpack(curve["minutes"]), STEPS / 1000 * 2, atol=1e-2)
    low, high = bootstrap_interval(returns[:, 99])  # seeds are 0.1 apart, so means of three of them 0.033
    assert unpack(curve["low"])[99] == pytest.approx(low, abs=0.04)
    assert unpack(curve["high"])[99] == pytest.approx(high, abs=0.04)
    assert not curve["partial"]


def test_a_seed_that_is_not_so_far_ends_the_mean_but_not_the_others() -> None:
    whole, other = runs(arms=1, seeds=2)
    short = replace(other, steps=other.steps[:50], returns=other.returns[:50], times=other.times[:50])
    curve = curve_of([whole, short])
    assert curve["partial"]
    assert np.isfinite(unpack(curve["centre"])).tolist() == [True] * 50 + [False] * 150
    assert np.isfinite(unpack(curve["seeds"][0])).all()
    assert np.isfinite(unpack(curve["seeds"][1])).sum() == 50


def test_seeds_evaluated_at_different_steps_keep_the_curve_short() -> None:
    seeds = [replace(run, steps=run.steps + 7 * index) for index, run in enumerate(runs(arms=1))]
    curve = curve_of(seeds)
    assert len(curve["steps"]) == POINTS
    assert (curve["steps"][0], curve["steps"][-1]) == (1000, 200_028)
    middle = curve["steps"][200]
    assert unpack(curve["seeds"][1])[200] == pytest.approx(value(0, 1, middle), abs=0.01)


def test_names_are_as_short_as_tells_arms_apart() -> None:
    first = runs(arms=1)[0]
    sweep = [replace(first, experiment="navigation", arm=arm, run_id=arm) for arm in ("maml", "sgmrl")]
    by_hand = [replace(first, experiment=name, run_id=name) for name in ("first", "second")]
    mixed = [replace(sweep[0], experiment="corners", run_id="other"), *sweep]
    twice = [replace(sweep[0], run_id=config, config=config) for config in ("aaaa", "bbbb")]

    robots = [
        replace(first, arm=f"{arm} data.env.robot={robot}", environment=robot, run_id=arm + robot)
        for arm in ("mlp", "hyper")
        for robot in ("ant", "hopper")
    ]
    ranges = [
        replace(first, arm=f"pearl data.env.velocity_range=[0.0, {top}]", run_id=str(top), config=str(top))
        for top in (2.5, 3.0)
    ]

    def names(given: list[Any]) -> list[str]:
        return [run.experiment for run in named({RETURN: given})[RETURN]]

    assert names(sweep) == ["maml", "sgmrl"]
    assert names(by_hand) == ["first", "second"]
    assert names(mixed) == ["corners, maml", "navigation, maml", "navigation, sgmrl"]
    assert names(sweep[:1]) == ["maml"]
    assert names(twice) == ["maml, aaaa", "maml, bbbb"]
    assert names(robots) == ["mlp", "mlp", "hyper", "hyper"]
    assert names(ranges) == [run.arm for run in ranges]


def test_metrics_are_named_in_words_and_repeats_left_out() -> None:
    assert label_of("eval/return") == "return"
    assert label_of(BEFORE) == "return before adaptation"
    assert label_of("eval/out_of_distribution/return_after_2_steps") == "out of distribution: return after 2 steps"
    assert label_of("train/critic_loss") == "train: critic loss"
    after = runs(arms=1)
    before = [replace(run, returns=run.returns - 1) for run in after]
    metrics = {RETURN: after, BEFORE: before, "eval/return_after_1_steps": after}
    assert list(without_repeats(metrics)) == [RETURN, BEFORE]


def test_adaptation_is_of_every_task_where_it_is_stored() -> None:
    after = runs(arms=1, seeds=2)
    before = [replace(run, returns=run.returns - 4) for run in after]
    metrics = {RETURN: after, BEFORE: before}
    tasks = [np.array([[0.0, 2.0], [4.0, 6.0]]), np.array([[1.0, 3.0], [7.0, 9.0]])]
    details = {run.run_id: Details({"test": table}, {"test": -9.0}) for run, table in zip(after, tasks, strict=True)}
    (panel,) = chart_data(metrics, details)["adaptation"]
    assert panel["random"] == -9
    (curve,) = panel["curves"]
    assert (curve["low"], curve["centre"], curve["high"]) == ([1, 5], [1.5, 6.5], [2, 8])
    assert curve["tasks"] == [[0, 4], [2, 6], [1, 7], [3, 9]]

    (panel,) = chart_data(metrics, {})["adaptation"]  # else of the metrics, whose last tenth counts
    final = [run.mean_return(180_000, 200_000) for run in after]
    (curve,) = panel["curves"]
    assert curve["centre"] == pytest.approx([np.mean(final) - 4, np.mean(final)], rel=1e-4)
    assert len(curve["tasks"]) == 2
    assert chart_data({RETURN: after}, {})["adaptation"] == []


@pytest.mark.parametrize("last", [False, True], ids=["record", "store"])  # whether return_after_K_steps is there, too
def test_the_line_of_an_arm_ends_after_its_own_adaptation_steps(last: bool) -> None:
    after = runs(arms=3, seeds=2)  # of 0, 1 and 3 steps
    steps = {"config0": 0, "config1": 1, "config2": 3}
    metrics = {RETURN: after} | {
        f"eval/return_after_{k}_steps": [
            replace(run, returns=run.returns - (steps[run.config] - k)) for run in after if k < steps[run.config] + last
        ]
        for k in range(3 + last)
    }
    (panel,) = chart_data(metrics, {})["adaptation"]
    assert panel["steps"] == [0, 1, 2, 3]
    final = [np.mean([run.mean_return(180_000, 200_000) for run in after[2 * arm : 2 * arm + 2]]) for arm in range(3)]
    for curve, number, end in zip(panel["curves"], steps.values(), final, strict=True):
        assert curve["centre"] == pytest.approx([end - number + k for k in range(number + 1)], rel=1e-4)
    del metrics["eval/return_after_1_steps"]  # what is after two steps is not drawn after one
    (panel,) = chart_data(metrics, {})["adaptation"]
    assert [curve["arm"] for curve in panel["curves"]] == [0, 1]
    assert chart_data({RETURN: after[:2], BEFORE: after[2:]}, {})["adaptation"] == []  # no run adapts


def test_a_diverged_seed_is_shown_as_missing(tmp_path: Path) -> None:
    good, bad = runs(arms=1, seeds=2)
    bad = replace(bad, returns=np.where(STEPS > 100_000, np.nan, bad.returns))
    text = page(tmp_path / "page.html", [good, bad])
    (curve,) = data_of(text)["panels"][0]["curves"][RETURN]
    assert np.isfinite(unpack(curve["centre"])).tolist() == [True] * 100 + [False] * 100
    assert ">nan<" in text
    assert '"nan"' not in text  # no place in a picture, nor a key to sort by


def test_task_returns_reads_what_the_callback_writes() -> None:
    import torch

    from lit_metarl.types import MetaEpisodes

    returns = torch.tensor([[[0.0, 2.0], [1.0, 3.0]], [[3.0, 5.0], [9.0, 11.0]]])
    goals = {"goal": torch.zeros(2, 2)}
    episodes = MetaEpisodes({"test": returns, "far": returns + 1}, {"test": goals, "far": goals}, {}, {})
    found = task_returns(per_task_csv(episodes))
    assert {split: table.tolist() for split, table in found.items()} == {
        "test": [[1, 2], [4, 10]],
        "far": [[2, 3], [5, 11]],
    }


def test_settings_that_differ_stand_apart_from_those_that_do_not() -> None:
    given = runs(arms=2, seeds=1)
    assert flat(given[1].settings) == {"model": "lit_metarl.algorithms.MAML", "model.inner_lr": 0.1}
    differing, shared = settings_tables(given).split("<details>")
    assert "model.inner_lr" in differing
    assert "<code>0.1</code>" in differing
    assert ">MAML</code>" in shared
    assert "MAML" not in differing
    assert settings_tables([replace(run, settings={}) for run in given]) == ""
    assert "There is one arm" in settings_tables(given[:1])


def test_films_are_embedded_while_there_is_room_then_linked(tmp_path: Path) -> None:
    small, large = tmp_path / "small.mp4", tmp_path / "run" / "after <1>.mp4"
    large.parent.mkdir()
    small.write_bytes(b"x" * 100)
    large.write_bytes(b"y" * 5000)
    given = runs(arms=1, seeds=2)
    details = {run.run_id: Details(films={"before": small, "after": large}) for run in given}
    text = films(given, details, tmp_path / "pages" / "page.html", budget=1000)
    assert text.count("<figure>") == 2  # of one seed
    assert base64.b64encode(b"x" * 100).decode() in text
    assert 'href="../run/after%20%3C1%3E.mp4"' in text
    assert films(given, {}, tmp_path / "page.html", 1000) == ""
