"""Sections: their text, and the block of a document that they replace."""

from __future__ import annotations

import json
import math

import pytest

from lit_metarl.reports.section import ReportError, Section, markdown_table, markers, percent, write_block

BEGIN, END = markers("results")


def test_a_table_escapes_its_separator() -> None:
    assert markdown_table(["a|b", "c"], [["1", "2"]]) == "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a", "b"], [], numbers=True).splitlines()[1] == "| --- | ---: |"


def test_text_and_markdown_of_a_section() -> None:
    assert Section("| a |", ["one", "two"]).text == Section("| a |", ["one", "two"]).markdown == "| a |\n\none\n\ntwo\n"
    assert Section("a  b", preformatted=True).markdown == "```text\na  b\n```"


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    found = json.loads(Section("", data={"rows": [{"x": math.nan, "y": (1.5, math.inf)}]}).json)
    assert found == {"rows": [{"x": None, "y": [1.5, None]}]}


def test_percent() -> None:
    assert [percent(x, 1e-10) for x in (1e-11, 2e-4, 0.123, 16.06)] == ["0", "0.02 %", "12 %", "1,606 %"]


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_write_without_the_markers_is_refused(text: str, tmp_path) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ReportError, match=f"{BEGIN} and {END}"):
        write_block(tmp_path / "README.md", "results", "table")
    assert (tmp_path / "README.md").read_text() == text
    with pytest.raises(ReportError, match=r"Cannot use .*absent\.md: No such file"):
        write_block(tmp_path / "absent.md", "results", "table")
