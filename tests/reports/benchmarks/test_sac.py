"""What the benchmark of SAC measures and what it refuses; never how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_cases import code_of

from lit_metarl.algorithms import SAC
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP
from lit_metarl.reports.benchmarks.naive_sac import PlainLoop, PlainSAC, plain_critic
from lit_metarl.reports.benchmarks.sac_timing import make_factory
from lit_metarl.reports.benchmarks.timing import PARTS
from lit_metarl.reports.command import main
from lit_metarl.reports.section import markers

TINY = ["benchmark", "--steps", "20", "--rounds", "1", "--hidden", "16", "--batch-size", "8", "--threads", "1"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # fewer than between two points of a curve
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # nothing is evaluated
]


def run(path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*TINY, "--accelerator", "cpu", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def test_whole_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    result = run(tmp_path / "b.json", "--sim-envs", "1", "3", "--num-envs", "2", "--updates-per-block", "3")
    assert torch.get_num_threads() == threads
    assert result.keys() == {"schema", "settings", "machine", "versions", "training", "simulator"}
    assert result["machine"]["threads"] == 1
    assert result["machine"]["cpus"] >= 1
    assert result["versions"]["version/torch"] == torch.__version__

    training = result["training"]
    assert tuple(training["shares_percent"]) == PARTS
    assert sum(training["shares_percent"].values()) == pytest.approx(100, abs=1)
    assert min(training["shares_percent"].values()) > 0
    assert training["shares_percent"]["updates"] > 20  # 30 updates of three networks against 10 steps
    assert training["updates_per_s"] == pytest.approx(1.5 * training["env_steps_per_s"])
    total_ms = sum(training["ms_per_env_step"].values())
    assert total_ms == pytest.approx(1e3 / training["env_steps_per_s_with_timers"], rel=0.01)

    assert training["plain_env_steps_per_s_of_rounds"] == []  # it steps one environment and updates once
    assert [row["num_envs"] for row in result["simulator"]] == [1, 3]
    assert all(row["threads"] == 1 and 0.5 < row["ratio"] < 5 for row in result["simulator"])
    output = capsys.readouterr().out
    assert all(part in output for part in PARTS)


@pytest.mark.parametrize("env", ["dm_control/cheetah/run", "gymnasium/Pendulum-v1"])
def test_other_simulators(env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "b.json", "--env", env)
    plain = result["training"]["plain_env_steps_per_s_of_rounds"]
    assert len(plain) == env.startswith("gymnasium")
    assert ("plain SAC" in capsys.readouterr().out) == bool(plain)
    assert result["simulator"] == []
    assert sum(result["training"]["shares_percent"].values()) == pytest.approx(100, abs=1)


def test_the_plain_loop_stores_what_it_saw_and_learns_from_it() -> None:
    sac = SAC(3, 1, TanhGaussianMLP([4]), EnsembleCriticMLP([4]))
    learner = PlainSAC(sac, [plain_critic(sac, member) for member in range(2)])
    loop = PlainLoop(learner, "Pendulum-v1", batch_size=8, capacity=250, warmup=190)
    before = [p.clone() for p in learner.actor.parameters()]
    loop.run(20)
    assert loop.stored == 210
    moved = [not torch.equal(old, p) for old, p in zip(before, learner.actor.parameters(), strict=True)]
    assert all(moved)
    obs, action, next_obs = loop.replay.values()
    follows = np.isclose(obs[1:210], next_obs[:209]).all(1)
    assert np.flatnonzero(~follows).tolist() == [199]  # the episode is truncated after 200 steps, not terminated
    assert not loop.terminated.any()
    assert -1 <= action.min() < -0.9  # of the simulator's bounds ± 2
    assert 0.9 < action.max() <= 1
    loop.run(60)
    assert loop.stored == 270
    assert np.allclose(loop.replay["next_obs"][19], loop.obs)  # the oldest are overwritten


def test_updates_only(tmp_path: Path) -> None:
    small = run(tmp_path / "a.json", "--updates-only", "--rounds", "3")
    assert small.keys() == {"schema", "settings", "machine", "versions", "updates"}
    assert len(small["updates"]["ms_per_update_of_rounds"]) == 3
    large = run(tmp_path / "b.json", "--updates-only", "--rounds", "3", "--hidden", "512", "--batch-size", "512")
    # Some 2000 times the arithmetic; a time that were not of the update would hardly change.
    assert large["updates"]["ms_per_update"] > 2 * small["updates"]["ms_per_update"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size: '0' is not an integer of at least 1"),
        (["--hidden", "64", "x"], "--hidden: 'x' is not an integer"),
        (["--rounds", "-1"], "--rounds"),
        (["--steps", "10", "--num-envs", "3"], "--steps: 10 is not a multiple of --num-envs 3"),
        (["--env", "half_cheetah"], "--env: 'half_cheetah' is none of mujoco/ROBOT"),
        (["--env", "mujoco/half_cheeta"], "unknown robot 'half_cheeta'"),
        (["--env", "dm_control/cheetah/fly"], "no task 'cheetah/fly'"),
        (["--env", "gymnasium/CartPole-v1"], "discrete actions"),
        (["--json", "no/such/folder/b.json"], "--json"),
        (["--frames", "3"], "--frames"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of([*TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_threads_reach_the_simulator() -> None:
    assert make_factory("mujoco/hopper", 3).threads == 3


def test_write_puts_the_printed_table_into_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin, end = markers("benchmark")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    run(tmp_path / "a.json", "--updates-only", "--write", str(readme))
    assert readme.read_text() == f"before\n{begin}\n\n```text\n{capsys.readouterr().out}```\n{end}\nafter\n"
    assert main([*TINY, "--updates-only", "--write", str(tmp_path / "nowhere.md")]) == 2
    assert "nowhere.md" in capsys.readouterr().err
