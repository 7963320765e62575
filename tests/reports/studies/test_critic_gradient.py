"""The study of critics' gradients, of real checkpoints and of the exact critic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_cases import cells, code_of

from lit_metarl import load_policy
from lit_metarl.cli import run
from lit_metarl.reports.command import main
from lit_metarl.reports.studies.critic_gradient import restore

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = ["--states", "2", "--actions", "4", "--horizon", "5", "--spread", "5"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, name = tmp_path_factory.mktemp("trained"), "td3_sa_hyper_half_cheetah"
    files = [f"--config={CONFIGS / 'experiment' / name}.yaml", f"--config={CONFIGS / 'overlay' / 'smoke.yaml'}"]
    run(["fit", *files, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", f"--trainer.logger.root={root}"])
    (path,) = root.glob("runs/*/last.ckpt")
    return path


def test_a_checkpoint_beside_the_exact_critic(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "critic_gradient", str(checkpoint), *TINY]) == 0
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0][:5] == ["critic", "environment", "steps", "horizon", "cosine"]
    exact, repeated, trained = lines[2:]
    assert exact[:4] == ["exact critic, 1 step", "points/linear_quadratic", "0", "5"]
    assert float(exact[4]) > 0.9
    assert repeated[0] == "exact critic, 3 steps"
    assert trained[0] == f"TD3, HyperEnsembleCritic, {checkpoint.parent.name[:8]}"
    assert trained[1:4] == ["mujoco/half_cheetah", "28", "5"]
    assert -1 <= float(trained[4]) <= 1


def test_several_horizons(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {}
    for horizons in (["3"], ["9"], ["3", "9"]):
        assert main(["study", "critic_gradient", str(checkpoint), *TINY, "--horizon", *horizons]) == 0
        printed = capsys.readouterr().out.splitlines()
        lines[*horizons] = [cells(line)[:-1] for line in printed if "| mujoco/half_cheetah" in line]  # but for seconds
    assert lines["3", "9"] == lines["3",] + lines["9",]
    assert lines["3",] != lines["9",]


def test_states_of_its_replay(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "critic_gradient", str(checkpoint), *TINY, "--source", "replay"]) == 0
    printed = capsys.readouterr().out
    assert "2 states of source `replay`" in printed
    assert "42.0 % and 23.0 % on points/linear_quadratic, 29.4 % and 2.6 % on mujoco/half_cheetah." in printed
    assert printed.count("| mujoco/half_cheetah") == 1
    *_, replay = restore(checkpoint)
    assert replay is not None
    assert replay.shape == (28, 17)
    assert len(replay.unique(dim=0)) == 28


def test_a_checkpoint_is_restored_whole(checkpoint: Path) -> None:
    _, module, factory, _ = restore(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert factory.make(1, 0).spec.name == "mujoco/half_cheetah"
    obs = torch.randn(5, 17)
    torch.testing.assert_close(torch.from_numpy(load_policy(checkpoint)(obs.numpy())), module.act(obs).detach())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("algorithms.TD3", "algorithms.ProMP", "is of TD3, which has no critic of actions; name one of SAC or TD3"),
        ("lit_metarl.algorithms.TD3", "mine.TD4", "is of TD3, which cannot be imported: No module named 'mine'."),
        ("\nmodel:", "\nmodule:", "holds no config; it was not written by `lit-metarl fit`."),
        ("policy_delay", "delay", "was written by another version of lit_metarl: "),
    ],
)
def test_other_checkpoints_are_refused_by_name(
    old: str, new: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["run"]["config"] = content["run"]["config"].replace(old, new)
    torch.save(content, tmp_path / "other.ckpt")
    assert code_of(["study", "critic_gradient", str(tmp_path / "other.ckpt"), *TINY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lit-metarl: error: ")
    assert message in line
