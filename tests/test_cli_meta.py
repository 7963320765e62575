"""Meta-learning from the command line: fit, test, predict, validate, and one clear error for each kind of bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from test_cli import CONFIGS, error_of

from lit_metarl.__main__ import main
from lit_metarl.tracking import connect

SMOKE = [
    f"--config={CONFIGS / 'experiment' / 'quickstart.yaml'}",
    f"--config={CONFIGS / 'overlay' / 'smoke_meta.yaml'}",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two iterations, and the flags to go on with it."""
    root = tmp_path_factory.mktemp("trained")
    flags = [*SMOKE, f"--trainer.logger.root={root}"]
    assert main(["fit", *flags]) == 0
    (run,) = root.glob("runs/*")
    return run, flags


def artifacts(run: Path, folder: str) -> set[str]:
    return {artifact.path for artifact in connect(run.parents[1]).list_artifacts(run.name, folder)}


def test_fit_leaves_checkpoints_metrics_and_a_curve(trained: tuple[Path, list[str]]) -> None:
    run, _ = trained
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["algorithm"]["name"] == "SGMRL"
    record = connect(run.parents[1]).get_run(run.name)
    assert record.info.status == "FINISHED"
    assert {"train/objective", "train/return_before", "eval/return_after_0_steps", "eval/return_after_1_steps",
            "eval/return_random", "eval/out_of_distribution/return"} <= record.data.metrics.keys()  # fmt: skip
    assert {"adaptation/eval.png", "adaptation/eval.csv"} <= artifacts(run, "adaptation")


def test_test_prints_a_table_and_stores_every_task(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, flags = trained
    assert main(["test", *flags, "--ckpt_path=last"]) == 0
    printed = capsys.readouterr().out
    for word in ("random actions", "after 0 steps", "after 1 steps", "out of distribution"):
        assert word in printed
    assert {"adaptation/test.png", "adaptation/test.csv"} <= artifacts(run, "adaptation")
    client = connect(run.parents[1])
    lines = Path(client.download_artifacts(run.name, "adaptation/test.csv")).read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 2  # splits × tasks × numbers of steps
    returns = [
        float(line.rpartition(",")[2]) for line in lines if line.startswith("test,") and line.split(",")[-2] == "1"
    ]
    metric = client.get_run(run.name).data.metrics["test/return"]
    assert metric == pytest.approx(sum(returns) / 2, rel=1e-5)
    assert -25 < metric < 0  # 20 steps of distances below 1.2


def test_predict_films_before_and_after_adaptation(trained: tuple[Path, list[str]]) -> None:
    run, flags = trained
    assert main(["predict", *flags, "--ckpt_path=last", "--data.video_size=[64,48]"]) == 0
    for name in ("after_0_steps.mp4", "after_1_steps.mp4"):
        assert (run / name).stat().st_size > 500
        assert f"predict/{name}" in artifacts(run, "predict")


def test_pearl_is_tested_and_filmed_with_the_prior_and_the_posterior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = CONFIGS / "experiment" / "quickstart_inference.yaml", CONFIGS / "overlay" / "smoke_pearl.yaml"
    flags = [*(f"--config={file}" for file in files), "--trainer.accelerator=cpu", f"--trainer.logger.root={tmp_path}"]
    assert main(["fit", *flags]) == 0
    (run,) = tmp_path.glob("runs/*")
    assert main(["test", *flags, "--ckpt_path=last"]) == 0
    assert {"after 0 steps", "after 1 steps"} == set(re.findall(r"after \d steps", capsys.readouterr().out))
    assert main(["predict", *flags, "--ckpt_path=last", "--data.video_size=[64,48]"]) == 0
    for steps in range(2):  # z from the prior, and from a round of exploration
        assert (run / f"after_{steps}_steps.mp4").stat().st_size > 500


def test_validate_leaves_the_training_curve_alone(trained: tuple[Path, list[str]]) -> None:
    run, flags = trained
    client = connect(run.parents[1])
    before = client.get_metric_history(run.name, "eval/return")
    assert len(before) == 2
    assert main(["validate", *flags, "--ckpt_path=best", "--data.eval_adaptation_steps=3"]) == 0
    assert client.get_metric_history(run.name, "eval/return") == before
    assert "validate/return_after_3_steps" in client.get_run(run.name).data.metrics


def test_resume_needs_the_same_numbers_of_tasks(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, flags = trained
    resume = ["fit", *flags, f"--ckpt_path={run.name}", "--trainer.max_epochs=3"]
    assert main([*resume, "--data.num_tasks=3"]) == 2
    assert "data.num_tasks, data.trajectories = [3, 5] cannot be used" in capsys.readouterr().err
    assert main([*resume, "--model=MAML"]) == 2
    assert "it is a checkpoint of SGMRL, this run trains MAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.num_tasks=0"], "data.num_tasks = 0 cannot be used: it must be at least 1."),
        (["--data.trajectories=0"], "data.trajectories = 0 cannot be used"),
        (["--data.adaptation_steps=-1"], "data.adaptation_steps = -1 cannot be used"),
        (["--data.action_scale=0"], "data.action_scale = 0.0 cannot be used"),
        (["--data.env=lit_metarl.envs.navigation.Nowhere"], "Nowhere"),
        (["--data.env=lit_metarl.envs.gym.Gymnasium"], "Gymnasium"),
        (["--data.env.distance=manhattan"], "distance"),
        (["--data.env.max_episode_steps=0"], "max_episode_steps (0) must be at least 1"),
        (["--model.inner_lr=-1"], "model.inner_lr = -1.0 cannot be used"),
        (["--model.gamma=2"], "model.gamma = 2.0 cannot be used"),
        (["--model.adapted_parameters=nothing"], "model.adapted_parameters = 'nothing' cannot be used"),
        (["--model.outer=lit_metarl.optim.VPG", "--model.outer.lr=0"], "outer.lr = 0.0 cannot be used"),
        (["--model.policy=lit_metarl.nn.CategoricalMLP"], "use GaussianMLP"),
        (["--model.correction=lit_metarl.optim.CrossTask",
          "--data.num_tasks=1"], "data.num_tasks = 1 cannot be used: a credit across tasks needs at least two tasks"),
        (["--model.correction=lit_metarl.optim.EMAMLCorrection", "--data.num_tasks=1"],
         "data.num_tasks = 1 cannot be used: a credit across tasks needs"),
        (["--model=SAC"], "model = 'SAC' cannot be used: TrajectoryDataModule feeds meta-learners, such as MAML"),
        (["--trainer.precision=16-mixed"], "trainer.precision = '16-mixed' cannot be used"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_clear_error(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(["fit", *SMOKE, "--trainer.logger=false", *flags], capsys)


def test_last_is_found_where_the_environment_has_a_range(caplog: pytest.LogCaptureFixture) -> None:
    """A tuple in the config is a list in its yaml; and it is said if a newer run has no checkpoint."""
    flags = [
        f"--config={CONFIGS / 'experiment' / 'half_cheetah_velocity_sgmrl.yaml'}",
        f"--config={CONFIGS / 'overlay' / 'smoke_meta.yaml'}",
        "--trainer.accelerator=cpu",
        "--data.env.velocity_range=[0,2]",
        "--data.env.max_episode_steps=5",
    ]
    assert main(["fit", *flags, "--trainer.max_epochs=1"]) == 0
    (first,) = Path("mlruns/runs").iterdir()
    assert main(["fit", *flags, "--trainer.max_epochs=1"]) == 0
    (newer,) = (path for path in Path("mlruns/runs").iterdir() if path != first)
    (newer / "last.ckpt").unlink()
    assert main(["fit", *flags, "--ckpt_path=last"]) == 0
    assert torch.load(first / "last.ckpt", weights_only=True)["epoch"] == 1
    assert f"newer runs have no last.ckpt: {newer.name}; it is taken from {first.name}" in caplog.text
