"""An update is the same however its matrix products are computed, and wherever a gradient lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from meta_cases import random_rounds
from replay_cases import A, M, O, random_batch

from lit_metarl.algorithms import MAML, PEARL, SAC, SGMRL, TD3, TMAML, TRPOMAML, MetaPolicyGradient, ProMP
from lit_metarl.nn import (
    D2RLCritic,
    DeterministicMLP,
    EnsembleCriticMLP,
    GaussianMLP,
    HyperActor,
    HyperCritic,
    MetaLearned,
    ProductOfGaussians,
    ResNetFeatures,
    TanhGaussianMLP,
    layers,
)
from lit_metarl.types import TaskMinibatch, Trajectories, Transition

SA = HyperCritic(hidden=(8,), widths=(16, 32), blocks=1)
AS = HyperCritic(("action",), ("obs",), hidden=(8,), widths=(16, 32), blocks=1)
CRITICS = {
    "MLP": EnsembleCriticMLP((12, 12)),
    "SA-Hyper": SA,
    "AS-Hyper": AS,
    "Q-D2RL": D2RLCritic((12, 12)),
    "ResNet": ResNetFeatures(widths=(8, 16), blocks=1, hidden=(12,)),
}
RATES = {"actor_lr": 1e-2, "critic_lr": 1e-2}


def sac(critic: Any) -> SAC:
    return SAC(O, A, actor=TanhGaussianMLP([12, 12]), critic=critic, **RATES)


def pearl(actor: Any, critic: Any) -> PEARL:
    encoder = ProductOfGaussians(latent=2, hidden=(12, 12))
    return PEARL(O, A, actor=actor, critic=critic, value=critic, encoder=encoder, **RATES)


def hyper_pearl() -> PEARL:
    sizes: dict[str, Any] = {"hidden": (8,), "widths": (16, 32), "blocks": 1}
    return pearl(HyperActor(**sizes), HyperCritic(("obs",), ("action", "context"), **sizes))


CASES: dict[str, Callable[[], Any]] = {
    **{f"SAC, {name}": partial(sac, critic) for name, critic in CRITICS.items()},
    "TD3": lambda: TD3(O, A, actor=DeterministicMLP([12, 12]), critic=CRITICS["MLP"], **RATES),
    "PEARL": lambda: pearl(TanhGaussianMLP([12, 12]), CRITICS["MLP"]),
    "Hyper-PEARL": hyper_pearl,
    "MAML": lambda: MAML(O, A, policy=GaussianMLP((12, 12))),
    "SG-MRL": lambda: SGMRL(O, A, policy=GaussianMLP((12, 12))),
    "ProMP": lambda: ProMP(O, A, policy=GaussianMLP((12, 12))),
    "TRPO-MAML": lambda: TRPOMAML(O, A, policy=GaussianMLP((12, 12), "relu")),
    "TMAML": lambda: TMAML(O, A, policy=GaussianMLP((12, 12)), baseline=MetaLearned((12, 12))),
}


def tasks() -> TaskMinibatch:
    per_task, context = ([random_batch(size) for _ in range(3)] for size in (M, 5))
    stacked = (Transition(*(torch.stack(field) for field in zip(*each, strict=True))) for each in (per_task, context))
    return TaskMinibatch(*stacked, torch.zeros(3, 0))


@pytest.mark.skipif(layers.ONEDNN is None, reason="torch without oneDNN")
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_the_same_by_either_way_to_multiply(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    after, calls, onednn = [], [], layers.ONEDNN
    rounds: list[Trajectories] = []
    monkeypatch.setattr(layers, "ONEDNN", lambda *arguments: calls.append(arguments) or onednn(*arguments))
    for smallest in (10**12, 1):
        for constant in ("WORTHWHILE", "WORTHWHILE_FOR_ALL", "LARGE"):
            monkeypatch.setattr(layers, constant, smallest)
        torch.manual_seed(3)
        module = CASES[case]()
        optimizers = module.configure_optimizers()
        module.optimizer = lambda number, them=optimizers: them[number]
        torch.manual_seed(7)
        if isinstance(module, MetaPolicyGradient):
            rounds = rounds or random_rounds(module)
            module.outer.update(module.iteration(rounds))
            module.update_baseline(rounds)
        else:
            batch = tasks() if isinstance(module, PEARL) else random_batch(M)
            for _ in range(2):
                module.update(batch)
        after.append(module.state_dict())
        assert bool(calls) == (smallest == 1)
    torch.testing.assert_close(*after, rtol=1e-3, atol=1e-4)
