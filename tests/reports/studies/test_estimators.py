"""The table of inner surrogates: which derivatives are exact, on- and off-policy."""

from __future__ import annotations

from report_cases import cells

from lit_metarl.reports.command import main
from lit_metarl.reports.section import markers
from lit_metarl.reports.studies.estimators import ESTIMATORS


def test_table_of_estimators(capsys, tmp_path):
    begin, end = markers("estimators")
    file = tmp_path / "page.md"
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert main(["study", "estimators", "--horizon", "3", "--write", str(file)]) == 0
    table = capsys.readouterr().out
    assert file.read_text() == f"before\n{begin}\n\n{table}\n{end}\nafter\n"
    rows = {line[0]: line[1:] for line in map(cells, table.splitlines()) if len(line) == 9}
    biases = {name: [row[i] == "0" for i in (0, 2, 4, 6)] for name, row in rows.items() if name in ESTIMATORS}
    assert len(biases) == len(ESTIMATORS)
    everywhere = {"DiCE (step-wise IS)", "Loaded DiCE", "doubly robust", "TMAML", "TayPO-3"}  # 3 steps
    hessian = {"TayPO-2", "doubly robust, truncated at 1"}
    for name, exact in biases.items():
        expected = [True] * 4 if name in everywhere else [True, name in hessian, False, False]
        assert exact == expected, name
