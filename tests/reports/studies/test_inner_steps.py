"""Lengths of adaptation steps: those of the runs of a recipe, and the step found has the length asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from report_cases import code_of
from test_cli import CONFIGS

from lit_metarl.__main__ import main
from lit_metarl.cli import Resolver
from lit_metarl.config import load_config
from lit_metarl.reports.studies.inner_steps import begin
from lit_metarl.tracking import connect

HYPER = CONFIGS / "experiment" / "half_cheetah_velocity_hyper_maml.yaml"
SMOKE = {
    "trainer.accelerator": "cpu",
    "data.num_tasks": 2,
    "data.trajectories": 2,
    "data.env.max_episode_steps": 10,
    "data.epoch_iterations": 1,
    "data.eval_tasks": 1,
    "trainer.max_epochs": 1,
}


def recipe(**arms: dict[str, object]) -> str:
    experiments = {name: {"config": [str(HYPER)], "overrides": settings} for name, settings in arms.items()}
    text = yaml.safe_dump({"title": "Steps.", "experiments": experiments, "seeds": 2, "overrides": SMOKE})
    Path("steps.yaml").write_text(text)
    return "steps.yaml"


def study(path: str, *more: str) -> dict[str, dict[str, dict[str, float]]]:
    assert code_of(["study", "inner_steps", path, "--json", "numbers.json", *more]) == 0
    return json.loads(Path("numbers.json").read_text())


def test_the_step_found_has_the_length_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    first = study(recipe(released={}, ten={"model.inner_lr": 5e-4}), "--kl", "0.02")
    released, ten = first["released"]["0"], first["ten"]["0"]
    assert (released["inner_lr"], ten["inner_lr"]) == (5e-5, 5e-4)
    assert ten["kl"] == pytest.approx(100 * released["kl"], rel=0.05)  # of second order in the step
    assert ten["matched"] == released["matched"]
    assert first["released"]["1"]["kl"] != released["kl"]
    printed = capsys.readouterr().out
    assert "| `released` | mujoco/half_cheetah_velocity_hyperl | 5e-05 |" in printed
    assert f"{released['matched']:.2g}" in printed
    again = study(recipe(matched={"model.inner_lr": released["matched"]}))
    assert again["matched"]["0"]["kl"] == pytest.approx(0.02, rel=0.01)


def test_the_first_round_is_that_of_the_run() -> None:
    flags = [f"--{key}={value}" for key, value in SMOKE.items()]
    assert main(["fit", "--config", str(HYPER), *flags, "--seed_everything=3"]) == 0
    config = Resolver()(load_config(HYPER), [*flags, "--seed_everything=3"])
    _, first, _ = begin("here", config)
    (folder,) = Path("mlruns/runs").iterdir()
    logged = connect("mlruns").get_metric_history(folder.name, "train/return_before")
    assert [point.value for point in logged] == [pytest.approx(float(first.returns.mean()), rel=1e-6)]


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"data.adaptation_steps": 0}, [], "data.adaptation_steps 0"),
        ({}, ["--kl", "0"], "not a positive number of nats"),
        ({"model": "lit_metarl.algorithms.SAC"}, [], "this measures MetaPolicyGradient"),
    ],
)
def test_bad_input_is_named(
    changes: dict[str, object], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["study", "inner_steps", recipe(only=changes), *more]) == 2
    assert message in capsys.readouterr().err
