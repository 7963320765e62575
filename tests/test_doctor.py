from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_metarl.doctor import (
    FAIL,
    NOTE,
    OK,
    PACKAGES,
    Line,
    check_device,
    check_package,
    check_python,
    check_simulator,
    check_version,
    declared_requirements,
    install_command,
    main,
)
from lit_metarl.envs.locomotion import ROBOTS

NAMES = [
    "python",
    *PACKAGES,
    *(f"mujoco/{robot}" for robot in ROBOTS),
    "dm_control/cheetah/run",
    "gymnasium/Pendulum-v1",
    "rendering",
    "device",
    "mlflow store",
]


def lines_of(output: str) -> dict[str, tuple[str, str]]:
    """Status and text by name, read from the aligned columns."""
    rows = output.split("\n\n")[0].splitlines()
    return {row[6:34].strip(): (row[:6].strip(), row[34:]) for row in rows}


def test_a_training_run_would_work_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "store")]) == 0
    output = capsys.readouterr().out
    lines = lines_of(output)
    assert list(lines) == NAMES
    assert {status for status, _ in lines.values()} <= {OK, NOTE}
    assert all(" ms" in lines[name][1] for name in NAMES if name.startswith(("mujoco/", "dm_control/", "gymnasium/")))
    assert "bf16" in lines["device"][1]
    assert (tmp_path / "store" / "mlflow.db").is_file()
    assert output.endswith("Ready to train.\n")


@pytest.mark.parametrize("flag", [False, True])
def test_bf16_is_emulated_where_the_cpu_has_no_units_for_it(flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_bf16": flag})
    assert ("emulated, many times slower" in check_device().text) is not flag


def test_what_is_broken_is_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "file"
    root.write_text("not a folder")
    monkeypatch.setitem(sys.modules, "dm_control", None)  # import dm_control raises ModuleNotFoundError
    assert main(["--root", str(root)]) == 1
    output = capsys.readouterr().out
    lines = lines_of(output)
    failed = {name: text for name, (status, text) in lines.items() if status == FAIL}
    assert set(failed) == {"dm_control", "dm_control/cheetah/run", "mlflow store"}
    assert str(root) in failed["mlflow store"]
    assert "writable folder" in failed["mlflow store"]
    assert '"mujoco>=3.17,<4" "dm_control>=1.0.50,<2"' in failed["dm_control/cheetah/run"]
    assert output.endswith("3 checks failed: a training run would not work.\n")


def test_a_version_that_breaks_dm_control_is_refused() -> None:
    line = check_version("mujoco", "4.0.0", declared_requirements()["mujoco"])
    assert line is not None
    assert line.status == FAIL
    assert 'pip install "mujoco>=3.17,<4"' in line.text
    assert check_version("mujoco", "3.17.0", "mujoco>=3.17,<4") is None
    assert check_version("torch", "2.13.0+cpu", "torch>=2.11,<2.14") is None


def test_every_checked_package_is_declared() -> None:
    requirements = declared_requirements()
    assert set(PACKAGES) <= requirements.keys()
    assert "pytest" not in requirements  # optional
    assert install_command(["gymnasium"], requirements) == '`pip install "gymnasium[mujoco]>=1.4,<2"`'


def test_a_missing_package() -> None:
    line = check_package("no_such_package", {"no_such_package": "no_such_package>=2"})
    assert line == Line(FAIL, "no_such_package", 'not installed: `pip install "no_such_package>=2"`')


def test_an_old_python() -> None:
    assert check_python((3, 10, 12)).status == FAIL
    assert check_python((3, 11, 0)).status == OK


@pytest.mark.parametrize("error", [ImportError("libfoo.so is missing"), AttributeError("flex_vertedge")])
def test_a_broken_simulator_is_a_line_and_no_crash(error: Exception) -> None:
    def build() -> Callable[[], None]:
        raise error

    line = check_simulator("dm_control/cheetah/run", build, "`pip install x`")
    assert (line.status, line.name) == (FAIL, "dm_control/cheetah/run")
    assert str(error) in line.text
    assert "pip install x" in line.text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "locked"
    root.mkdir(mode=0o500)
    assert main(["--root", str(root)]) == 1
    assert lines_of(capsys.readouterr().out)["mlflow store"][0] == FAIL
