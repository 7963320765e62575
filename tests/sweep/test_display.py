"""What a sweep shows: lines, bars on a terminal, and the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sweep_cases import cells_of

from lit_metarl.sweep.display import Bars, Lines, display
from lit_metarl.sweep.estimate import Durations, in_words
from lit_metarl.sweep.state import CellState, State
from lit_metarl.sweep.workers import part_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "unknown"), (0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")],
)
def test_time_in_words(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words


def test_time_left_is_that_of_the_workers_and_of_the_longest_run() -> None:
    durations = Durations()
    assert durations.left([("a", 1.0)], 1) is None
    assert durations.left([], 1) == 0
    for seconds in (10, 20, 90):
        durations.add("a", seconds)
    assert durations.left([("a", 1.0), ("a", 0.5)], 1) == 30  # the median is 20
    assert durations.left([("a", 1.0), ("a", 0.5)], 2) == 20  # one run takes no less
    assert durations.typical("another") == 20
    durations.add("another", 5)
    assert durations.typical("another") == 5


def test_what_was_saved_need_not_be_trained_again() -> None:
    (cell,) = cells_of()
    assert cell.evaluations == 6
    assert part_left(cell, CellState(State.ABSENT, evaluations=3)) == 1.0
    assert part_left(cell, CellState(State.INTERRUPTED, "id", True, evaluations=3)) == 0.5
    endless = cells_of(overrides={"trainer.max_epochs": -1})[0]
    assert endless.evaluations is None
    assert part_left(endless, CellState(State.INTERRUPTED, "id", True, evaluations=3)) == 1.0


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display()
    assert type(shown) is Lines
    shown.say("maml seed 0: begins")
    shown.update(1, 2, "1/2 finished", {"maml seed 0": 0.5})
    shown.close()
    assert capsys.readouterr().out == "maml seed 0: begins\n"


def test_a_terminal_has_a_bar_for_all_and_one_for_each_run() -> None:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=100, color_system=None))
    bars.update(0, 2, "0/2 finished, time left: unknown", {"maml [x] seed 0": None, "sgmrl seed 0": 0.25})
    bars.say("maml [x] seed 0: finished")
    assert "maml [x] seed 0 " in screen.getvalue()
    bars.update(1, 2, "1/2 finished, time left: 7 min", {"sgmrl seed 0": 0.5})
    bars.close()
    text = screen.getvalue()
    assert "maml [x] seed 0: finished\n" in text  # not taken for markup
    last = text[text.rindex("maml [x] seed 0: finished") :]
    assert "1/2 finished, time left: 7 min" in last
    assert "all cells" in last
