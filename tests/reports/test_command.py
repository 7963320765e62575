"""From the command line to a section: commands that there are, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_cases import code_of

import lit_metarl
from lit_metarl.reports.command import COMMANDS, main

SHORT = ["tabular", "--mdps", "1", "--states", "2", "--trajectories", "5", "--sizes", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "NAME"),
        ([], "NAME"),
        (["estimators", "--gamma", "2"], "--gamma"),
        (["estimators", "--actions", "1"], "--actions"),
        (["estimators", "--horizon", "9"], "fewer steps"),
        (["estimators", "--seed", "-1"], "--seed"),
        (["estimators", "--horizon", "2", "--write", "missing.md"], "missing.md"),
        (["gradient_samples"], "CHECKPOINT"),
        (["gradient_samples", "missing.ckpt"], "missing.ckpt: there is no such file"),
        (["gradient_samples", "missing.ckpt", "--truth", "100"], "--truth"),
        (["meta_gradient", "--gamma", "1"], "--gamma"),
        (["control_variates", "--mdps", "0"], "--mdps"),
        (["gradient_quality"], "CHECKPOINT"),
        (["gradient_quality", "missing.ckpt"], "missing.ckpt: there is no such file"),
        (["gradient_quality", "missing.ckpt", "--estimators", "unknown"], "unknown"),
        (["gradient_quality", "missing.ckpt", "--resamples", "1"], "--resamples"),
        (["updated_returns"], "CHECKPOINT"),
        (["updated_returns", "missing.ckpt"], "missing.ckpt: there is no such file"),
        (["updated_returns", "missing.ckpt", "--updates", "1"], "--updates"),
        (["tabular", "--epsilons", "0", "1"], "--epsilons"),
        (["tabular", "--epsilons", "x"], "--epsilons"),
        (["tabular", "--gamma", "1"], "--gamma"),
        (["tabular", "--concentration", "0"], "--concentration"),
        (["tabular", "--concentration", "nan"], "--concentration"),
        (["tabular", "--mdps", "0"], "--mdps"),
        ([*SHORT, "--write", "missing.md"], "missing.md"),
        (["critic_gradient", "missing.ckpt"], "missing.ckpt: there is no such file"),
        (["critic_gradient", "--actions", "2"], "actions = 2 cannot be used: a fit needs at least 3"),
        ([*SHORT, "--figure", "/dev/null/figures"], "/dev/null"),
    ],
)
def test_bad_options_exit_with_code_two_and_one_line(arguments, message, capsys):
    assert code_of(["study", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_study(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["study", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    studies = {name.split()[1]: command for name, command in COMMANDS.items() if name.startswith("study ")}
    files = (Path(lit_metarl.__file__).parent / "reports" / "studies").glob("*.py")
    assert studies.keys() == {file.stem for file in files if "\ndef parse(" in file.read_text()}
    assert all(name in text and study.description in text for name, study in studies.items())
