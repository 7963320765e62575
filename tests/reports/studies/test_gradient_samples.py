"""Errors by number of trajectories: a checkpoint on a line, few draws, what must hold of any of them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from report_cases import code_of
from test_cli import CONFIGS

from lit_metarl.__main__ import main
from lit_metarl.algorithms import SGMRL
from lit_metarl.diagnostics.gradients import gradient_quality
from lit_metarl.nn import MetaLearned
from lit_metarl.reports.studies.gradient_quality import load_run
from lit_metarl.reports.studies.gradient_samples import (
    ESTIMATORS,
    LINEAR,
    Qualities,
    cell,
    draw,
    measure,
    practise,
    ranking,
    winners,
)

WORDS = ["--sizes", "4", "40", "--repeats", "8", "--truth", "3000", "--tasks", "2", "--practice", "3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("point") / "store"
    files = [f"--config={CONFIGS / 'experiment' / 'point_1d_tmaml.yaml'}", "--trainer.accelerator=cpu"]
    short = ["--trainer.max_epochs=1", "--data.epoch_iterations=2", "--data.eval_tasks=2", "--data.num_tasks=4"]
    assert main(["fit", *files, *short, f"--trainer.logger.root={store}"]) == 0
    (path,) = store.glob("runs/*/last.ckpt")
    return path


def test_the_study_of_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, figure = tmp_path / "numbers.json", tmp_path / "figure.png"
    files = ["--json", str(numbers), "--figure", str(figure)]
    assert code_of(["study", "gradient_samples", str(checkpoint), *WORDS, *files]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {name} |") == 2 for name in ESTIMATORS)
    assert "inner Hessian × vector, N = 4: " in printed
    assert figure.stat().st_size > 0
    found = json.loads(numbers.read_text())
    assert found.keys() == ESTIMATORS.keys()
    for name in ("log-likelihood", "LVC", "DiCE"):  # the others' tails are too heavy for eight draws
        few, many = (found[name][n]["product"]["variance"][0] for n in ("4", "40"))
        assert many < few / 2, name  # ten times the data
    # On-policy identities: the same estimates on the same data.
    for name in ("TayPO-2", "TMAML, linear"):
        for part in ("product", "gradient"):
            assert found[name]["40"][part]["variance"][0] == pytest.approx(
                found["Loaded DiCE"]["40"][part]["variance"][0], rel=1e-2
            )
    # The first of them has no product of scores, the last has all the noise of rewards.
    at = {name: found[name]["40"]["product"]["relative_variance"][0] for name in ESTIMATORS}
    assert at["log-likelihood"] < at["LVC"] < at["Loaded DiCE"] < at["DiCE"]


def test_all_have_the_parameters_of_the_checkpoint_and_advantages_as_they_are(checkpoint: Path) -> None:
    stored = load_run(checkpoint, {"normalise_advantages": False, "baseline": None})
    assert sum(p.numel() for p in stored.module.policy.parameters()) == 398
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[f"policy.{name}"]) for name, value in stored.module.policy.named_parameters())
    assert not stored.module.normalise_advantages
    assert LINEAR.held_out


def test_the_truth_is_of_whole_meta_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["study", "gradient_samples", "gone.ckpt", "--truth", "3500"]) == 2
    assert "argument --truth: it has to be a multiple of 1000" in capsys.readouterr().err


def test_ranking_in_words() -> None:
    assert ranking({"a": 2.0, "b": 1.0, "c": 2.01, "d": 9.0}) == "b < a = c < d"


def test_errors_beside_a_reference_of_nothing_but_noise_are_not_ranked() -> None:
    torch.manual_seed(0)
    noise = torch.tensor([[1.0, 0.0], [-1.0, 0.2], [0.1, -0.2]])  # the mean is smaller than its error
    known, unknown = (
        {name: gradient_quality(torch.randn(9, 2), truth) for name in "ab"} for truth in (noise + 9, noise)
    )
    found = {name: {5: {"product": unknown[name], "gradient": known[name]}} for name in "ab"}
    assert cell(unknown["a"]) == "–"
    assert cell(known["a"]).count(" + ") == 1
    product, gradient = winners(found, [5]).split("; ")
    assert product.endswith("N = 5: none, as the reference is nothing but noise (more --truth)")
    assert re.search(r"N = 5: [ab] [<=] [ab]\.$", gradient)
    assert len(draw(found, [5]).axes) == 8


def test_a_baseline_that_learns_has_practised_on_other_tasks(checkpoint: Path) -> None:
    stored = load_run(checkpoint, {"baseline": None})
    torch.manual_seed(0)
    stored.module.baseline = MetaLearned((8,), lr=0.02).build(stored.module.sizes)
    policy = {name: value.clone() for name, value in stored.module.policy.named_parameters()}
    before = {name: value.clone() for name, value in stored.module.baseline.named_parameters()}
    practise(stored, 2, seed=0)
    assert all(not torch.equal(value, before[name]) for name, value in stored.module.baseline.named_parameters())
    assert all(torch.equal(value, policy[name]) for name, value in stored.module.policy.named_parameters())


def errors(checkpoint: Path, *names: str) -> Qualities:
    """Of a small measurement."""
    sizes = {"sizes": [4], "repeats": 3, "truth": 3000, "tasks": 1, "practice": 1, "seed": 0}
    return measure(argparse.Namespace(checkpoint=checkpoint, estimators=list(names), **sizes))


def test_estimators_asked_for_alone_are_what_they_are_among_others(checkpoint: Path) -> None:
    assert errors(checkpoint, "LVC")["LVC"] == errors(checkpoint, "DiCE", "LVC")["LVC"]


def test_the_score_term_and_the_advantages_of_a_run_are_no_part_of_it(checkpoint: Path, tmp_path: Path) -> None:
    saved, other = torch.load(checkpoint, weights_only=True), tmp_path / "sgmrl.ckpt"
    config = saved["run"]["config"].replace("algorithms.TMAML", "algorithms.SGMRL")
    saved["run"]["config"] = config.replace("gae_lambda: 1.0", "gae_lambda: 0.5")
    torch.save(saved, other)
    assert type(load_run(other).module) is SGMRL
    assert load_run(other).module.gae_lambda == 0.5
    assert errors(other, "LVC") == errors(checkpoint, "LVC")
