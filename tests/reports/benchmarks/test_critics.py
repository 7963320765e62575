"""The benchmark of critics: the plain implementation computes the same update; never how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from replay_cases import A, M, O, random_batch

from lit_metarl.algorithms import SAC
from lit_metarl.config import load_config
from lit_metarl.nn import CriticFactory, EnsembleCriticMLP, HyperCritic, TanhGaussianMLP
from lit_metarl.reports.benchmarks.critics import NAMES, factories
from lit_metarl.reports.benchmarks.naive_hyper import naive_critic
from lit_metarl.reports.benchmarks.naive_sac import PlainSAC, plain_critic
from lit_metarl.reports.command import main

CONFIGS = Path(__file__).parents[3] / "configs" / "critic"


@pytest.mark.parametrize(
    ("critic", "one"),
    [(HyperCritic(hidden=(8, 7), widths=(5, 9), blocks=2), naive_critic), (EnsembleCriticMLP([8, 7]), plain_critic)],
    ids=["hypernetwork", "MLP"],
)
def test_the_plain_implementation_computes_the_same_updates(critic: CriticFactory, one: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    sac = SAC(O, A, TanhGaussianMLP([6]), critic, polyak=0.1)
    optimizers = sac.configure_optimizers()
    sac.optimizers = lambda: optimizers
    plain, batches = PlainSAC(sac, [one(sac, member) for member in range(2)]), [random_batch(M) for _ in range(3)]
    for learner in (sac, plain):
        torch.manual_seed(1)
        for batch in batches:
            learner.update(batch)
    close = {"atol": 1e-6, "rtol": 1e-5}
    for own, other in zip(sac.actor.parameters(), plain.actor.parameters(), strict=True):
        torch.testing.assert_close(own, other, **close)
    for networks in (plain.critics, plain.targets):
        for member, network in enumerate(networks):
            if networks is plain.targets:
                sac.critic.load_state_dict(sac.target_critic.state_dict())
            for own, other in zip(one(sac, member).parameters(), network.parameters(), strict=True):
                torch.testing.assert_close(own, other, **close)


@pytest.mark.parametrize("size", ["published", "small"])
def test_critics_are_those_of_the_configs(size: str) -> None:
    for name, factory in factories(size).items():
        file = CONFIGS / f"{name}_small.yaml"
        if size == "published" or not file.exists():
            file = CONFIGS / f"{name}.yaml"
        written = load_config(file)["model"]["init_args"]["critic"]
        assert written["class_path"] == f"lit_metarl.nn.{type(factory).__name__}"
        assert written["init_args"] == {key: getattr(factory, key) for key in written["init_args"]}


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "critics.json"
    words = ["benchmark", "critics", "--critics", "q_d2rl", "sa_hyper", "--batch-size", "8", "--rounds", "2"]
    assert main([*words, "--threads", "1", "--json", str(file)]) == 0
    output, rows = capsys.readouterr().out, json.loads(file.read_text())["critics"]
    assert list(rows) == ["mlp_standard", "q_d2rl", "sa_hyper", "sa_hyper, shared weights",
                          "sa_hyper, plain implementation"]  # fmt: skip
    assert rows["q_d2rl"]["parameters"] == 221_441
    assert all(len(row["seconds"]) == 2 for row in rows.values())
    assert all(name in output for name in rows)
    assert "sa_hyper to its plain implementation" in output
    reference, small = rows["mlp_standard"]["seconds"], ("sa_hyper", "sa_hyper, shared weights")
    ratios = {name: sum(a / b for a, b in zip(rows[name]["seconds"], reference, strict=True)) / 2 for name in small}
    slowest = max(small, key=lambda name: ratios[name])
    verdict = "reached" if ratios[slowest] <= 8 else "missed"
    assert f"slowest of the small ones: {ratios[slowest]:.2f} ({slowest}); goal ≤ 8: {verdict}" in output
    assert set(factories("small")) == set(NAMES)
