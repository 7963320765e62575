"""The table of meta-gradients: which are unbiased, and which vary less."""

from __future__ import annotations

from report_cases import cells

from lit_metarl.reports.command import main
from lit_metarl.reports.section import markers
from lit_metarl.reports.studies.meta_gradient import ESTIMATORS


def test_table_of_meta_gradients(capsys, tmp_path):
    begin, end = markers("meta-gradient")
    file = tmp_path / "page.md"
    file.write_text(f"{begin}\nold\n{end}\n")
    assert main(["study", "meta_gradient", "--write", str(file)]) == 0
    table = capsys.readouterr().out
    assert file.read_text() == f"{begin}\n\n{table}\n{end}\n"
    rows = {line[0]: line[1:] for line in map(cells, table.splitlines()) if len(line) == 4}
    names = [estimator.name for estimator in ESTIMATORS]
    assert list(rows)[2:] == names
    # batches whose trajectories couple
    fitted = ("mean of the others: SG-MRL, `LeaveOneOut", "mean of all", "linear fit", "normalised")
    wrong = ("MAML", "E-MAML", "exact value: MAML", *fitted)
    wrong_in = ("`Linearised", "DiCE", "first order", "first round only")
    for name in names:
        biased = name.startswith(wrong) or any(part in name for part in wrong_in)
        assert (rows[name][0] != "0") == biased, name
    for group in ("", "two steps: ", "exact value: "):
        variances = [float(rows[f"{group}SG-MRL, `{c}`"][2]) for c in ("CrossTask", "LeaveOneOut")]
        assert variances[0] > variances[1]
