"""Curves: common steps, published numbers, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lit_metarl.reports.tables.curves import Run, common_curve, draw_curves, figure_of, published_scores

CHEETAH = "dm_control/cheetah_run"


def run(steps: list[float], returns: list[float], experiment: str = "e", environment: str = CHEETAH) -> Run:
    times = np.zeros(len(steps))
    arrays = np.array(steps, dtype=float), np.array(returns, dtype=float), times
    return Run(experiment, "SAC", environment, "0", "abc", "cafe", "FINISHED", 0, *arrays)


def test_published_scores() -> None:
    assert published_scores(CHEETAH)[100_000] == (116, 88, 134, 3)
    assert published_scores("dm_control/cartpole_swingup")[3_000_000] == (882, 882, 882, 1)
    assert 10_000_000 not in published_scores("dm_control/cartpole_swingup")
    assert list(published_scores(CHEETAH)) == [100_000, 250_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 10_000_000]
    assert published_scores("mujoco/cheetah_run") == published_scores("dm_control/absent") == {}


def test_every_published_row_is_plausible() -> None:
    from dm_control import suite

    tasks = ["_".join(names) for names in suite.ALL_TASKS]
    found = {task: published_scores(f"dm_control/{task}") for task in tasks}
    assert sum(map(bool, found.values())) == 27
    scores = [score for rows in found.values() for score in rows.values()]
    assert len(scores) == 27 * 7 - 1
    assert all(0 <= s.minimum <= s.mean <= s.maximum <= 1000 and 1 <= s.seeds <= 3 for s in scores)


def test_common_curve_by_hand() -> None:
    steps, returns = common_curve([run([10, 20, 30], [0, 10, 30]), run([20, 25, 40], [1, 2, 5])])
    np.testing.assert_allclose(steps, [20, 25, 30])  # from the last first evaluation to the first last one
    np.testing.assert_allclose(returns, [[10, 20, 30], [1, 2, 3]])  # 25: half-way 10 to 30; 30: a third of 2 to 5


def test_runs_that_do_not_overlap_have_no_common_curve() -> None:
    steps, returns = common_curve([run([1, 2], [0, 0]), run([3, 4], [0, 0])])
    assert steps.shape == (0,)
    assert returns.shape == (2, 0)


def test_line_band_and_published_points() -> None:
    runs = [run([50_000, 250_000], [0, 300]), run([50_000, 250_000], [20, 400])]
    axes = figure_of(CHEETAH, [("e, SAC", runs)], ["e"]).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[50_000, 10], [250_000, 350]])
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0, 400])
    points = axes.containers[0]
    np.testing.assert_allclose(points.lines[0].get_xydata(), [[100_000, 116], [250_000, 338]])  # 500k is not reached
    bars = points.lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [88, 134])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["e, SAC (n=2)", "SAC, published (mean of the last 100k steps)"]
    assert axes.get_xlabel() == "environment steps"


def test_an_experiment_keeps_its_colour() -> None:
    groups = [(name, [run([0, 1], [0, 1], name)]) for name in ("b", "c")]
    lines = figure_of("gym/x", groups, ["a", "b", "c"]).axes[0].lines
    assert [line.get_color() for line in lines] == ["C1", "C2"]


def test_many_curves_are_told_apart_and_not_hidden_by_their_legend() -> None:
    names = [f"arm {index}" for index in range(12)]
    few, more, many = (
        figure_of("gym/x", [(name, [run([0, 1], [0, 1], name)]) for name in names[:count]], names)
        for count in (6, 7, 12)
    )
    (axes,) = many.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 12
    for figure, below in ((few, False), (more, True), (many, True)):
        figure.draw_without_rendering()
        legend, curves = (part.get_window_extent() for part in (figure.axes[0].get_legend(), figure.axes[0]))
        assert (legend.y1 < curves.y0) == below
        assert -1 <= legend.y0 < legend.y1 <= figure.bbox.y1  # the layout is right to a pixel
    assert many.axes[0].get_position().height * many.bbox.height == pytest.approx(
        few.axes[0].get_position().height * few.bbox.height, rel=0.2
    )


@pytest.mark.parametrize("environments", [["gym/x"], [CHEETAH, "gym/x"]])
def test_one_picture_per_environment(environments: list[str], tmp_path: Path) -> None:
    groups = [("e, SAC", [run([0, 200_000], [0, 500], environment=name)]) for name in environments]
    figures = draw_curves(groups, tmp_path)
    assert [path.name for path in figures] == [f"{name.replace('/', '_')}.png" for name in environments]
    for path, figure in figures.items():
        figure.savefig(path, dpi=150)
        image = imread(path)
        assert image.shape[:2] == (600, 960)
        assert image[..., :3].std() > 0.01  # not blank


@pytest.mark.parametrize(
    ("metric", "heights", "scale"),
    [
        ("gradient/variance", [0.01, 2.0], "log"),
        ("gradient/variance", [0.03, 2.0], "linear"),
        ("gradient/cosine", [-0.5, 2.0], "linear"),
        ("gradient/cosine", [0.0, 2.0], "linear"),
        ("eval/return", [0.01, 2.0], "linear"),
    ],
)
def test_metrics_over_decades_have_a_logarithmic_axis(metric: str, heights: list[float], scale: str) -> None:
    groups = [("low, SAC", [run([1, 2], [heights[0], 1.0])]), ("high, SAC", [run([1, 2], [1.0, heights[1]])])]
    assert figure_of("suite/x", groups, ["e"], metric).axes[0].get_yscale() == scale
