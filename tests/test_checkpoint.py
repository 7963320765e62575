"""Checkpoint files away from their store, damaged, and on a full disk."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import SMOKE, runs
from test_resume import assert_same

from lit_metarl.__main__ import main
from lit_metarl.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from lit_metarl.tracking import connect


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run of one epoch was trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *SMOKE, "--trainer.max_epochs=1"]) == 0
    return folder


@pytest.fixture
def checkpoint(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """``last.ckpt`` of that run, in a copy of its folder that is now the working directory."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return runs()[0].resolve() / "last.ckpt"


def other_store(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (Path.cwd() / "machine").mkdir()
    monkeypatch.chdir("machine")
    shutil.copy(checkpoint, "policy.ckpt")
    return ["--ckpt_path=policy.ckpt"]


def deleted_run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    connect("mlruns").delete_run(checkpoint.parent.name)
    return [f"--ckpt_path={checkpoint}"]


def no_run_wanted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return [f"--ckpt_path={checkpoint}", "--trainer.logger.run_id=null"]


@pytest.mark.parametrize("away", [other_store, deleted_run, no_run_wanted])
def test_fit_goes_on_in_a_new_run_and_says_so(
    away: Callable[..., list[str]],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags, old = away(checkpoint, monkeypatch), checkpoint.parent.name
    assert main(["fit", *SMOKE, *flags]) == 0
    assert f"the checkpoint's run {old} is not gone on with: training continues in a new run" in caplog.text
    (run,) = [path for path in runs() if path.name != old]
    client = connect("mlruns")
    assert client.get_run(run.name).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.name, "eval/return")] == [36]
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("away", [other_store, deleted_run])
def test_test_needs_no_run(
    away: Callable[..., list[str]],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = away(checkpoint, monkeypatch)
    before = sorted(Path("mlruns/runs").glob("*"))
    assert main(["test", *SMOKE, *flags]) == 0
    assert "test/return" in capsys.readouterr().out
    assert sorted(Path("mlruns/runs").glob("*")) == before


def test_no_flipped_bit_gets_in(checkpoint: Path, tmp_path: Path) -> None:
    """Each of 400 flips is refused by name, or hits padding that holds nothing."""
    whole, original = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    damaged, messages = tmp_path / "damaged.ckpt", []
    for position in np.random.default_rng(0).integers(8 * len(whole), size=400).tolist():
        content = bytearray(whole)
        content[position // 8] ^= 1 << (position % 8)
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(content)
        try:
            found = read_checkpoint(damaged)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert_same(original, found)
    assert len(messages) > 300
    assert all(str(damaged) in message for message in messages)
    assert sum(" is damaged: entry archive/" in message for message in messages) > 0.8 * len(messages)


def test_a_damaged_checkpoint_names_the_intact_one(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, content = checkpoint.with_name("best.ckpt"), bytearray(checkpoint.read_bytes())
    checkpoint.unlink()  # it is one file with best.ckpt
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert main(["fit", *SMOKE, f"--ckpt_path={checkpoint}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"ckpt_path = {checkpoint} is damaged: entry " in line
    assert line.endswith(f"{best} is intact: resume from it.")


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"algorithm": {}}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # Python ignores SIGXFSZ: writing fails
    try:
        with pytest.raises(CheckpointError, match=r"last.ckpt cannot be written: .*Free space there") as caught:
            write_checkpoint({"algorithm": {"weights": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0123456789abcdef0123456789abcdef", "no run with this id has a checkpoint in"),
        ("mlruns", "is a folder; name a checkpoint in it"),
        ("absent.ckpt", "there is no such file"),
    ],
)
def test_what_names_no_checkpoint_gets_a_message_of_its_own(
    name: str, message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SMOKE, f"--ckpt_path={name}"]) == 2
    assert f"ckpt_path = {name}" in (error := capsys.readouterr().err)
    assert message in error
