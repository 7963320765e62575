"""The study of meta-updates on a small critic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_cases import code_of

from lit_metarl.reports.command import main, parse
from lit_metarl.reports.studies.preconditioning import OBJECTIVES, study

SMALL = [
    "study",
    "preconditioning",
    "--task",
    "cartpole/swingup",
    "--hidden",
    "16",
    "16",
    "--batch-size",
    "32",
    "--transitions",
    "200",
]
SMALL += ["--samples", "20", "--updates", "30"]


def test_the_default_raises_the_ratio_and_exact_kernels_agree() -> None:
    _, args = parse([*SMALL[:-1], "60", "--objectives", "log_cosine", "--derivatives", "layerwise", "exact", "jvp"])
    before, (layerwise, exact, jvp) = study(args)
    assert all(outcome.seconds > 0 < outcome.sac_seconds for outcome in (layerwise, exact, jvp))
    assert layerwise.kernel.ratio > 1.05 * before.ratio
    assert layerwise.kernel.effective_rank > before.effective_rank
    assert layerwise.kernel == pytest.approx(exact.kernel, rel=1e-3)  # float32, 60 updates
    assert jvp.kernel.ratio != pytest.approx(exact.kernel.ratio, rel=1e-3)
    assert {outcome.updates for outcome in (layerwise, exact, jvp)} == {60}


def test_a_long_first_phase_leaves_the_critics_alive() -> None:
    _, args = parse([*SMALL[:-1], "1500", "--meta-lr", "0.1", "--objectives", "log_cosine", "log_ratio"])
    args.derivatives = ["layerwise"]
    before, (cosine, ratio) = study(args)
    assert cosine.kernel.ratio > 1.5 * before.ratio
    assert cosine.kernel.effective_rank > before.effective_rank
    assert cosine.kernel.median_diagonal > 0.5 * before.median_diagonal
    assert ratio.kernel.median_diagonal < 0.5 * ratio.kernel.diagonal  # a few samples have all of it


def test_a_kernel_that_is_not_finite_is_reported_as_such() -> None:
    _, args = parse([*SMALL, "--objectives", "eq10", "--derivatives", "layerwise", "--meta-lr", "100"])
    _, (outcome,) = study(args)
    assert outcome.updates < 30
    assert not math.isfinite(outcome.kernel.effective_rank) or outcome.kernel.diagonal > 1e6


def test_the_printed_objective_destroys_the_critic() -> None:
    _, args = parse([*SMALL, "--objectives", "eq14_printed", "--derivatives", "layerwise", "jvp", "--meta-lr", "1"])
    before, (outcome,) = study(args)  # it has no kernel to take layer by layer
    assert outcome.derivative == "jvp"
    assert outcome.updates < 30
    assert outcome.kernel.diagonal > 1e3 * before.diagonal


def test_the_table_has_every_objective_and_derivative(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- preconditioning:begin -->\n<!-- preconditioning:end -->\n")
    assert main([*SMALL[:-1], "2", "--write", str(document)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| `") == len(OBJECTIVES) * 4 - 2
    assert printed in document.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "cart/pole"], "dm_control has no task 'cart/pole'"),
        (["--batch-size", "1"], "--batch-size: '1' is not an integer of at least 2: a kernel"),
        (["--meta-lr", "-1"], "--meta-lr: it has to be positive"),
        (["--objectives", "ratio"], "invalid choice: 'ratio'"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["study", "preconditioning", *arguments]) == 2
    assert message in capsys.readouterr().err
