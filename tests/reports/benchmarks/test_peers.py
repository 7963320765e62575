"""The benchmark beside stable-baselines3, where that is installed: equal work is timed, never how fast."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from lit_metarl.reports.benchmarks.peers import peer
from lit_metarl.reports.command import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # fewer than between two points of a curve
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # nothing is evaluated
]
installed = find_spec("stable_baselines3") is not None


@pytest.mark.skipif(installed, reason="stable-baselines3 is installed")
def test_without_the_peer_one_line_says_how_to_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "peers"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "lit-metarl: error: stable-baselines3 is not installed; pip install stable-baselines3 to compare with it."
    )


@pytest.mark.skipif(not installed, reason="needs stable-baselines3")
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "peers.json"
    assert main(["benchmark", "peers", "--steps", "2", "--rounds", "3", "--threads", "1", "--json", str(file)]) == 0
    rows, output = json.loads(file.read_text())["peers"], capsys.readouterr().out
    assert list(rows) == ["SAC", "TD3"]
    for name, row in rows.items():
        assert len(row["seconds"]) == len(row["peer_seconds"]) == 3
        (line,) = (line for line in output.splitlines() if line.startswith(name))
        ratios = sorted(b / a for a, b in zip(row["seconds"], row["peer_seconds"], strict=True))
        assert line.endswith(f"{ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f})")


@pytest.mark.skipif(not installed, reason="needs stable-baselines3")
@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_the_peer_makes_one_update_a_step(algorithm: str) -> None:
    learn = peer(algorithm)
    learn(1003)
    model = learn(5)
    assert model.num_timesteps == 1008
    assert model._n_updates == 8
