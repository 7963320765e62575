"""The command line as a user meets it: sub-commands, resume by name, and one clear error for each kind of bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lit_metarl
from lit_metarl.__main__ import main
from lit_metarl.checkpoint import CheckpointError
from lit_metarl.cli import Resolver
from lit_metarl.config import load_config
from lit_metarl.envs.rendering import rendering_available
from lit_metarl.tracking import connect
from lit_metarl.types import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
PENDULUM = [f"--config={CONFIGS / 'experiment' / 'sac_small_pendulum.yaml'}"]
SMOKE = [*PENDULUM, f"--config={CONFIGS / 'overlay' / 'smoke.yaml'}", "--trainer.accelerator=cpu"]


def runs() -> list[Path]:
    return sorted(Path("mlruns/runs").iterdir())


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What follows ``lit-metarl: error:`` in the one line that ``arguments`` lead to."""
    try:
        found = main(arguments)
    except SystemExit as stopped:  # the parser's own way out
        found = stopped.code
    assert found == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-metarl: error: ")]
    return line.removeprefix("lit-metarl: error: ")


def test_fit_resume_validate_test_and_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMOKE, "--trainer.max_epochs=1"]) == 0
    assert main(["fit", *SMOKE, "--ckpt_path=last"]) == 0
    (run,) = runs()  # resumed in the same run
    client = connect("mlruns")
    info = client.get_run(run.name)
    assert info.info.status == "FINISHED"
    assert info.data.tags["algorithm"] == "SAC"
    assert info.data.tags["environment"] == "gym/Pendulum-v1"
    assert info.data.tags["resumed/trainer.max_epochs"] == "1 -> 2"
    assert {"git_commit", "seed", "version/torch"} <= info.data.tags.keys()
    assert "config/fit.yaml" in [a.path for a in client.list_artifacts(run.name, "config")]
    assert [m.step for m in client.get_metric_history(run.name, "eval/return")] == [28, 36]  # environment steps

    assert main(["validate", *SMOKE, "--ckpt_path=last"]) == 0
    assert len(client.get_metric_history(run.name, "eval/return")) == 2  # the training curve is left alone
    assert main(["test", *SMOKE, f"--ckpt_path={run.name}"]) == 0
    assert "test/return" in capsys.readouterr().out
    assert "test/return" in client.get_run(run.name).data.metrics
    table = Path(client.download_artifacts(run.name, "test/episodes.csv")).read_text().splitlines()
    assert table[0] == "episode,return,length"
    assert table[1].endswith(",200")
    assert len(runs()) == 1

    policy = lit_metarl.load_policy(run.name)
    weights = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    obs = np.array([[0.1, -0.2, 0.3], [1.0, 0.0, 2.0]])
    x = torch.tensor(obs, dtype=torch.float32)
    hidden = torch.relu(x @ weights["actor.trunk.0.weight"].T + weights["actor.trunk.0.bias"])
    hidden = torch.relu(hidden @ weights["actor.trunk.2.weight"].T + weights["actor.trunk.2.bias"])
    mean = (hidden @ weights["actor.trunk.4.weight"].T + weights["actor.trunk.4.bias"])[:, :1]
    np.testing.assert_allclose(policy(obs), torch.tanh(mean).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lit_metarl.load_policy(run / "best.ckpt")(obs[0]), policy(obs)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"takes observations \[3\]"):
        policy(np.zeros(4))


def test_a_resolved_config_is_complete_and_stays_what_it_is() -> None:
    resolve, given = Resolver(), load_config(CONFIGS / "experiment" / "sac_small_pendulum.yaml")
    config = resolve(given, ["--model.gamma=0.98", "--seed_everything=3"])
    assert config["model"]["init_args"]["gamma"] == 0.98
    assert config["trainer"]["callbacks"][0]["init_args"] == {"every_n_batches": 0, "monitor": "eval/return"}
    assert config["seed_everything"] == 3
    assert "seed" not in config["data"]["init_args"]  # which is linked
    assert resolve(config) == config
    with pytest.raises(ConfigError, match=r"trainer.max_steps = 5 cannot be used"):
        resolve(config, ["--trainer.max_steps=5"])


def test_predict_films_an_episode() -> None:
    if reason := rendering_available():
        pytest.skip(reason)
    robot = [f"--config={CONFIGS / 'experiment' / 'sac_small_half_cheetah.yaml'}", *SMOKE[1:],
             "--data.env.max_episode_steps=20", "--data.video_size=[64,48]"]  # fmt: skip
    assert main(["fit", *robot]) == 0
    assert main(["predict", *robot, "--ckpt_path=best"]) == 0
    (run,) = runs()
    assert (run / "episode.mp4").stat().st_size > 500
    assert [a.path for a in connect("mlruns").list_artifacts(run.name, "predict")] == ["predict/episode.mp4"]


def test_looking_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *SMOKE]) == 2
    assert "test needs a policy: --ckpt_path last" in capsys.readouterr().err


def test_last_is_of_the_same_environment() -> None:
    assert main(["fit", *SMOKE, "--trainer.max_epochs=1"]) == 0
    other = "--data.env.env=MountainCarContinuous-v0"
    assert main(["fit", *SMOKE, "--trainer.max_epochs=1", other]) == 0
    assert main(["fit", *SMOKE, "--ckpt_path=last"]) == 0
    assert len(runs()) == 2


def test_a_refused_resume_leaves_the_run_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMOKE]) == 0
    (run,) = runs()
    client = connect("mlruns")
    before = client.get_run(run.name)
    config = Path(client.download_artifacts(run.name, "config/fit.yaml")).read_text()
    other = "--data.env.env=MountainCarContinuous-v0"
    assert main(["fit", *SMOKE, f"--ckpt_path={run.name}", other]) == 2
    assert main(["fit", *SMOKE, f"--ckpt_path={run.name}", "--trainer.max_epochs=1"]) == 2
    assert "the checkpoint has trained 2 epochs already; raise it to go on" in capsys.readouterr().err
    after = client.get_run(run.name)
    assert after.info.status == "FINISHED"
    assert after.data.tags == before.data.tags
    assert Path(client.download_artifacts(run.name, "config/fit.yaml")).read_text() == config


def test_a_complete_run_that_was_killed_at_its_end_is_completed_by_resuming(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["fit", *SMOKE]) == 0
    (run,) = runs()
    client = connect("mlruns")
    client.update_run(run.name, status="RUNNING")  # as SIGKILL after the last save leaves it
    before = client.get_metric_history(run.name, "eval/return")
    assert main(["fit", *SMOKE, "--ckpt_path=last"]) == 0
    assert client.get_run(run.name).info.status == "FINISHED"
    assert client.get_metric_history(run.name, "eval/return") == before
    assert "the run is complete: 2 of 2 epochs; raise trainer.max_epochs to go on" in caplog.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a short run."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["fit", *SMOKE, f"--trainer.logger.root={folder}"]) == 0
    (path,) = folder.glob("runs/*/last.ckpt")
    return path


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        ("truncate", [], "it is truncated or no checkpoint"),
        ("foreign", [], "was not written by lit_metarl"),
        ("rename", [], "it is a checkpoint of PEARL, this run trains SAC"),
        (None, ["--data.env.env=MountainCarContinuous-v0"], "the networks or the environment differ"),
        (None, ["--model.actor.hidden=[7]"], "the networks or the environment differ from the checkpoint's"),
        (None, ["--data.capacity=3000"], "set data.init_args.capacity to the checkpoint's value"),
        (None, ["--data.num_envs=2"], "data.num_envs = 2 cannot be used: the checkpoint's simulators are 1"),
        ("env", [], "checkpoint environment = 'gym/Other-v0' cannot be used"),
    ],
)
def test_unfit_checkpoints_are_refused(
    damage: str | None, flags: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("damaged.ckpt")
    content = finished.read_bytes()
    checkpoint = torch.load(finished, weights_only=True)
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        if damage == "rename":
            checkpoint["algorithm"]["name"] = "PEARL"
        if damage == "env":
            checkpoint["ReplayDataModule"]["env"] = "gym/Other-v0"
        checkpoint["run"]["run_id"] = None
        torch.save(checkpoint, path)
    assert main(["fit", *SMOKE, f"--ckpt_path={path}", "--trainer.max_epochs=3", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error


def test_a_policy_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint file nor the id of a run"):
        lit_metarl.load_policy("nowhere")
