"""Every command and every snippet of the documents is run, on the smoke overlay where it would take long."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lit_metarl.__main__ import main
from lit_metarl.cli import Resolver
from lit_metarl.config import load_config
from lit_metarl.envs.rendering import rendering_available
from lit_metarl.reports.command import parse
from lit_metarl.reports.section import split_at
from lit_metarl.sweep.cells import Cell, make_cells
from lit_metarl.sweep.recipe import load_recipe
from lit_metarl.sweep.state import State, look

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXT = README + "".join((ROOT / place / "README.md").read_text() for place in ("configs", "lit_metarl/envs"))
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
BASH = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines()))
YAML = re.findall(r"```yaml\n(title:.*?)```", TEXT, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
DOCUMENTS = [path for path in ROOT.rglob("*.md") if not {".venv", "mlruns"} & set(path.relative_to(ROOT).parts)]
SET_UP = [line for line in BASH if line.startswith("python3 -m venv")]


def smoke(line: str) -> list[str]:
    """The overlay that makes this command take seconds."""
    config = load_config(ROOT / words(line)[words(line).index("--config") + 1])
    meta = config["data"]["class_path"].endswith("TrajectoryDataModule")
    overlay = "smoke_meta.yaml" if meta else "smoke.yaml"
    return ["--config", f"configs/overlay/{overlay}", "--trainer.accelerator", "cpu"]


def words(line: str) -> list[str]:
    return shlex.split(line.removeprefix("PYTHONPATH=. "))


def is_sweep(line: str) -> bool:
    return words(line)[:2] == ["lit-metarl", "sweep"]


def is_training(line: str) -> bool:
    return words(line)[:1] == ["lit-metarl"] and words(line)[1] in ("fit", "test", "predict", "validate")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty folder with the configs in it, without results, which runs of seconds could not be compared with."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("*.csv"))
    (tmp_path / "mlruns").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pictures_and_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for markdown, html in re.findall(r'\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)|<img src="([^"]+)"', text):
        assert (path.parent / (markdown or html)).exists()
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_every_recipe_is_listed() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    recipes = {path.stem for path in (ROOT / "configs" / "sweep").glob("*.yaml")}
    assert {name for name in recipes if f"`{name}`" not in text and f"[{name}]" not in text} == set()


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 14_000
    assert README.count("\n") <= 220


def test_contributing_names_what_exists() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    code = "".join(path.read_text() for part in ("lit_metarl", "tests") for path in (ROOT / part).rglob("*.py"))
    words = re.findall(r"`([^`\n]+)`", text)
    paths = [word for word in words if re.fullmatch(r"\.?[\w-]+(/[\w.-]+)+", word)]
    names = [word for word in words if re.fullmatch(r"[A-Z]\w+(\.\w+)?|[a-z]+_[a-z]+|lit_metarl(\.\w+)+", word)]
    assert len(paths) > 20
    assert len(names) > 20
    assert all((ROOT / path).exists() for path in paths)
    for name in names:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", code), name


def test_set_up_is_two_commands_and_ci_runs_the_test_command() -> None:
    assert len(SET_UP) == 2
    command = SET_UP[1].rpartition(".venv/bin/")[2]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
    assert "pip install ." in SET_UP[0]


def test_every_training_command_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_env.py", "my_cart.py"):
        (checkout / name).write_text(next(code for code in PYTHON if f"# {name}" in code))
    monkeypatch.syspath_prepend(str(checkout))
    main_job = SET_UP[0].rpartition(".venv/bin/")[2]
    lines = [main_job, *(line for line in BASH if is_training(line))]
    assert len(lines) == 18
    for line in lines:
        command = words(line)[1:]
        if command[0] == "predict" and rendering_available():
            continue
        if "--print_config" in command:
            with pytest.raises(SystemExit, match="0"):
                main(command)
        else:
            more = ["--trainer.max_epochs", "3"] if "fit" in command and "last" in command else []
            assert main([*command, *smoke(line), *more]) == 0, line


def smoke_cells(path: Path) -> tuple[list[str], list[Cell]]:
    """The flags that make a recipe take seconds, and its cells then."""
    overlay = Path("configs/overlay/smoke_meta.yaml")
    more = ["--trainer.accelerator=cpu"]
    cells = make_cells(load_recipe(path), Resolver(), [load_config(overlay)], more, [0])
    return ["--config", str(overlay), *more, "--seeds=1"], cells


def test_every_sweep_command_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells are trained in this process, without the ten seconds of imports that each has in its own."""
    lines = [line for line in BASH if is_sweep(line)]
    assert len(lines) == 3
    for line in lines:
        flags, cells = smoke_cells(Path(words(line)[2]))
        for cell in cells:
            if look([cell])[cell.key].state is State.ABSENT:
                Path("cell.yaml").write_text(yaml.safe_dump(cell.config))
                assert main(["fit", "--config=cell.yaml"]) == 0
        capsys.readouterr()
        assert main([*words(line)[1:], *flags]) == 0, line
        assert f"{len(cells)} finished" in capsys.readouterr().out
    assert main(["report", "configs/sweep/navigation.yaml"]) == 0
    assert main(["report", "--html", "page.html"]) == 0
    assert Path("page.html").stat().st_size < 500_000


@pytest.mark.slow
def test_the_sweep_of_the_readme_trains_in_processes(checkout: Path) -> None:
    line = next(line for line in BASH if is_sweep(line) and "--dry_run" not in line)
    flags, cells = smoke_cells(Path(words(line)[2]))
    assert main([*words(line)[1:], *flags]) == 0
    assert {state.state for state in look(cells).values()} == {State.FINISHED}


def test_the_recipe_of_the_readme_is_one(checkout: Path) -> None:
    (text,) = YAML
    recipe = Path("inner_lr.yaml")
    recipe.write_text(text.replace("../experiment", "configs/experiment"))
    assert len(make_cells(load_recipe(recipe), Resolver())) == 2 * 2 * 3


def test_the_notebook_snippet(checkout: Path) -> None:
    code = next(code for code in PYTHON if "load_policy" in code)
    for long, short in (
        ("epoch_steps=5000", "epoch_steps=20, warmup_steps=300, eval_episodes=1"),
        ("max_epochs=12", 'max_epochs=1, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False'),
        ("episodes=10", "episodes=2"),
    ):
        assert long in code
        code = code.replace(long, short)
    scope = {"obs": np.zeros((2, 5), dtype=np.float32)}
    exec(code, scope)
    assert scope["action"].shape == (2, 1)


def test_all_other_commands_are_known() -> None:
    rest = [line for line in BASH if line not in SET_UP and not is_training(line) and not is_sweep(line)]
    assert rest == [
        "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db",
        "lit-metarl report --html page.html",
        "lit-metarl report configs/sweep/navigation.yaml",
    ]


def test_commands_write_into_a_block_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = "".join(path.read_text() for path in DOCUMENTS)
    commands = re.findall(r"`(?:\w+=\w+ )?lit-metarl\s([^`]*\s--write\s[^`]*)`", text)
    assert len(commands) > 20
    for command in commands:
        _, arguments = parse(shlex.split(re.sub("<[^>]*>", "x", command)))
        split_at(arguments.write, arguments.block)


def test_doctor(checkout: Path) -> None:
    assert main(["doctor"]) == 0


def test_mlflow_serves_the_store(checkout: Path) -> None:
    from lit_metarl.tracking import connect

    connect("mlruns")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = next(line for line in BASH if line.startswith("mlflow ui"))
    command = [sys.executable, "-m", *shlex.split(line), "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert wait_for(f"http://127.0.0.1:{port}/health") == b"OK"
    finally:
        import os
        import signal

        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_for(url: str, seconds: float = 90.0) -> bytes:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


def test_torch_is_of_the_tested_range() -> None:
    assert (2, 11) <= tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)
