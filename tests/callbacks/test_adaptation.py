"""What meta-evaluation leaves behind, from returns made by hand."""

from __future__ import annotations

import csv
import io
import struct
from pathlib import Path

import pytest
import torch
from rich.table import Table

from lit_metarl.callbacks.adaptation import draw_adaptation_curve, per_task_csv, table
from lit_metarl.types import MetaEpisodes

# [K + 1, B, N]: means over trajectories 1, 2, 6 before and 4, 10, 10 after one step
EPISODES = MetaEpisodes(
    returns={
        "test": torch.tensor([[[0.0, 2.0], [1.0, 3.0], [6.0, 6.0]], [[3.0, 5.0], [9.0, 11.0], [10.0, 10.0]]]),
        "out_of_distribution": torch.tensor([[[-1.0, -2.0]], [[-0.5, -0.5]]]),
    },
    tasks={
        "test": {"goal": torch.tensor([[0.5, -0.25], [0.0, 1.0], [2.0, 2.0]]), "mass": torch.tensor([1.0, 2.0, 4.0])},
        "out_of_distribution": {"goal": torch.tensor([[8.0, 8.0]]), "mass": torch.tensor([16.0])},
    },
    random={"test": torch.tensor([[-4.0, -6.0], [-1.0, -1.0], [-3.0, -3.0]])},
    frames={},
)
ONE_TASK = MetaEpisodes({"test": torch.zeros(3, 1, 2)}, {"test": {"goal": torch.zeros(1)}}, {}, {})


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_table_shows_means_over_tasks_with_their_standard_errors() -> None:
    result = table(EPISODES)
    assert [column.header for column in result.columns] == ["tasks", "random actions", "after 0 steps", "after 1 steps"]
    # std of (1, 2, 6) is √7, of (4, 10, 10) √12; over √3
    assert cells(result) == [
        ["test", "-3.00", "3.00 ± 1.53", "8.00 ± 2.00"],
        ["out of distribution", "", "-1.50", "-0.50"],
    ]
    assert cells(table(ONE_TASK)) == [["test", "", "0.00", "0.00", "0.00"]]


def test_csv_has_a_line_for_every_task_and_number_of_steps() -> None:
    rows = list(csv.reader(io.StringIO(per_task_csv(EPISODES))))
    assert rows == [
        ["split", "task", "parameters", "adaptation_steps", "mean_return"],
        ["test", "0", "{'goal': [0.5, -0.25], 'mass': 1.0}", "0", "1.0"],
        ["test", "0", "{'goal': [0.5, -0.25], 'mass': 1.0}", "1", "4.0"],
        ["test", "1", "{'goal': [0.0, 1.0], 'mass': 2.0}", "0", "2.0"],
        ["test", "1", "{'goal': [0.0, 1.0], 'mass': 2.0}", "1", "10.0"],
        ["test", "2", "{'goal': [2.0, 2.0], 'mass': 4.0}", "0", "6.0"],
        ["test", "2", "{'goal': [2.0, 2.0], 'mass': 4.0}", "1", "10.0"],
        ["out_of_distribution", "0", "{'goal': [8.0, 8.0], 'mass': 16.0}", "0", "-1.5"],
        ["out_of_distribution", "0", "{'goal': [8.0, 8.0], 'mass': 16.0}", "1", "-0.5"],
    ]


@pytest.mark.parametrize(("episodes", "panels"), [(EPISODES, 2), (ONE_TASK, 1)])
def test_curve_is_a_picture_with_a_panel_per_split(episodes: MetaEpisodes, panels: int, tmp_path: Path) -> None:
    path = tmp_path / "new_folder" / "curve.png"
    draw_adaptation_curve(episodes, path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (495 * panels, 396)
    assert len(content) > 8000
