"""``evaluate`` in one call: the episodes of ``lit-metarl test``, other environments, and what is refused."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import lit_metarl
from lit_metarl.__main__ import main
from lit_metarl.algorithms import SAC
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.suite import DMControl
from lit_metarl.evaluation import Evaluation, MetaEvaluation
from lit_metarl.nn import TanhGaussianMLP
from lit_metarl.tracking import connect
from lit_metarl.types import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
SAC_RUN = ["experiment/sac_small_pendulum.yaml", "overlay/smoke.yaml"]
META_RUN = ["experiment/quickstart.yaml", "overlay/smoke_meta.yaml"]
FLAGS = {"sac": ["--data.test_episodes=3"], "meta": ["--data.test_tasks=3"]}


def arguments(name: str) -> list[str]:
    files = SAC_RUN if name == "sac" else META_RUN
    return [*(f"--config={CONFIGS / file}" for file in files), *FLAGS[name], "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Root of a store with one run of each kind, by its name."""
    roots = {}
    for name in FLAGS:
        roots[name] = tmp_path_factory.mktemp(name) / "mlruns"
        flags = [f"--trainer.logger.root={roots[name]}", "--seed_everything=5", "--trainer.max_epochs=1"]
        assert main(["fit", *arguments(name), *flags]) == 0
    return roots


def run_of(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def episodes_of(root: Path, name: str, artifact: str, *flags: str) -> list[dict[str, str]]:
    """Rows of the table that ``lit-metarl test`` stores of the run's best checkpoint."""
    run = run_of(root)
    flags = (f"--trainer.logger.root={root}", f"--ckpt_path={run / 'best.ckpt'}", *flags)
    assert main(["test", *arguments(name), *flags]) == 0
    with Path(connect(root).download_artifacts(run.name, artifact)).open() as file:
        return list(csv.DictReader(file))


def test_the_episodes_are_those_of_lit_metarl_test(trained: dict[str, Path]) -> None:
    run = run_of(trained["sac"])
    result = lit_metarl.evaluate(run.name, root=trained["sac"])
    rows = episodes_of(trained["sac"], "sac", "test/episodes.csv", "--seed_everything=5")
    assert [float(row["return"]) for row in rows] == result.returns.tolist()
    assert [int(row["length"]) for row in rows] == result.lengths.tolist() == [200] * 3
    assert result.mean == pytest.approx(np.mean(result.returns))
    assert str(result).startswith(f"gym/Pendulum-v1: return {result.mean:.1f} ± ")
    more = lit_metarl.evaluate(run / "best.ckpt", episodes=5)
    assert more.returns[:3].tolist() == result.returns.tolist()  # an episode does not depend on how many there are
    other = lit_metarl.evaluate(run / "best.ckpt", seed=6)
    assert not set(other.returns.tolist()) & set(result.returns.tolist())


def test_a_meta_learner_adapts_as_in_lit_metarl_test(trained: dict[str, Path]) -> None:
    run = run_of(trained["meta"])
    result = lit_metarl.evaluate(run / "best.ckpt", seed=7)
    assert isinstance(result, MetaEvaluation)
    assert result.returns["test"].shape == (2, 3, 5)
    rows = episodes_of(trained["meta"], "meta", "adaptation/test.csv", "--seed_everything=7")
    for split, returns in result.returns.items():
        means = [float(row["mean_return"]) for row in rows if row["split"] == split]
        assert means == torch.from_numpy(returns).mean(-1).T.flatten().tolist()
    assert str(result).endswith("after 0 … 1 adaptation steps, on 3 tasks")
    longer = lit_metarl.evaluate(run / "best.ckpt", Navigation2D(max_episode_steps=10), 3, 7, adaptation_steps=3)
    assert longer.returns["test"].shape == (4, 3, 5)
    assert longer.after(0) != longer.after(3) == longer.mean
    np.testing.assert_array_equal(longer.tasks["test"]["goal"], result.tasks["test"]["goal"])


class Count(gym.Env):
    """The reward of every step is the number that the seed of the reset chose; three steps."""

    max_episode_steps = 3
    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.number, self.steps = float(self.np_random.integers(1000)), 0
        return np.zeros(3, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(3, dtype=np.float32), self.number, False, self.steps == 3, {}


@pytest.mark.parametrize("env", [Count, Count(), lambda: gym.wrappers.TimeLimit(Count(), 9), f"{__name__}.Count"])
def test_other_environments(env: Any, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Count.__module__])
    checkpoint = run_of(trained["sac"]) / "last.ckpt"
    result = lit_metarl.evaluate(checkpoint, env, episodes=4, seed=1)
    assert isinstance(result, Evaluation)
    assert result.lengths.tolist() == [3] * 4
    assert (result.returns % 3 == 0).all()
    assert len(set(result.returns.tolist())) > 1
    again = lit_metarl.evaluate(checkpoint, env, episodes=4, seed=1)
    np.testing.assert_array_equal(again.returns, result.returns)
    assert again.returns.tolist() != lit_metarl.evaluate(checkpoint, env, episodes=4, seed=2).returns.tolist()


def test_an_environment_is_named_as_in_a_config(trained: dict[str, Path]) -> None:
    checkpoint = run_of(trained["sac"]) / "last.ckpt"
    named = {"class_path": "lit_metarl.envs.gym.Gymnasium", "init_args": {"env": "Pendulum-v1"}}
    returns = [lit_metarl.evaluate(checkpoint, env, 2).returns.tolist() for env in (None, named, "Pendulum-v1")]
    assert returns[0] == returns[1] == returns[2]


def test_a_checkpoint_of_a_trainer_of_ones_own(tmp_path: Path) -> None:
    module = SAC(3, 1, actor=TanhGaussianMLP((4,)))
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert len(lit_metarl.evaluate(tmp_path / "own.ckpt", Count, 2).returns) == 2
    with pytest.raises(ConfigError, match=r"does not say which environment it was trained in; name one"):
        lit_metarl.evaluate(tmp_path / "own.ckpt")


BAD: list[tuple[str, Callable[[], Any], dict[str, Any], str]] = [
    ("sac", lambda: "Pendulun-v1", {}, r"env = Gymnasium.* cannot be built: .*Did you mean Pendulum-v1"),
    (
        "sac",
        lambda: DMControl("cheetah/run"),
        {},
        r"it has 17 observations and 6 continuous actions, this is",
    ),
    ("sac", lambda: Gymnasium("CartPole-v1"), {}, r"it has 4 observations and 2 discrete actions"),
    ("sac", lambda: 3, {}, r"env = 3 is no environment: give"),
    ("sac", lambda: list, {}, r"it makes no gymnasium.Env, but a list"),
    ("sac", lambda: {"task": "cheetah/run"}, {}, r"write \{'class_path': …, 'init_args': \{…\}\}"),
    ("sac", lambda: {"class_path": "lit_metarl.envs.gym.Gym"}, {}, r"the class lit_metarl.envs.gym.Gym cannot be"),
    ("sac", lambda: None, {"episodes": 0}, r"episodes = 0 cannot be used"),
    ("sac", lambda: None, {"adaptation_steps": 1}, r"this policy was not trained to adapt; leave it out"),
    ("meta", lambda: Count, {}, r"evaluated on a TaskFamily; load_policy gives the policy before adaptation"),
    ("meta", lambda: None, {"adaptation_steps": -1}, r"data.eval_adaptation_steps = -1 cannot be used: 0 or more"),
]


@pytest.mark.parametrize(("name", "env", "changes", "message"), BAD)
def test_what_cannot_be_evaluated_is_refused(
    name: str, env: Callable[[], Any], changes: dict[str, Any], message: str, trained: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        lit_metarl.evaluate(run_of(trained[name]) / "last.ckpt", env(), **changes)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, lit_metarl; print(sorted({'torch', 'lightning', 'mlflow', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert lit_metarl.__all__ == ["evaluate", "load_policy"]
