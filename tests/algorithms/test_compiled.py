"""Losses that torch.compile made programs of: the same updates, the same random numbers, bit-exact resume."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from replay_cases import A, M, O, quiet_trainer, random_batch

from lit_metarl.algorithms import SAC, TD3, ActorCritic
from lit_metarl.data import ReplayDataModule
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, HyperCritic, TanhGaussianMLP
from lit_metarl.types import ConfigError

# these fits have nothing to evaluate; torch's compiler uses what torch itself calls deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HYPER = HyperCritic(hidden=(8,), widths=(16, 32), blocks=1)
MODULES = {
    "SAC": partial(SAC, O, A, TanhGaussianMLP([6]), EnsembleCriticMLP([8])),
    "SAC-hyper": partial(SAC, O, A, TanhGaussianMLP([6]), HYPER),
    "SAC-hyper-shared": partial(SAC, O, A, TanhGaussianMLP([6]), HYPER, share_weights=True),
    "TD3": partial(TD3, O, A, DeterministicMLP([6]), EnsembleCriticMLP([8])),
    "TD3-hyper": partial(TD3, O, A, DeterministicMLP([6]), HYPER),
}
each = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
slow = pytest.mark.slow  # a compilation takes half a minute of a core


def made(make: Any, device: str = "cpu") -> Any:
    torch.manual_seed(3)
    module = make().to(device)
    optimizers = module.configure_optimizers()
    module.optimizer = lambda number: optimizers[number]
    return module


def compile_or_skip(module: ActorCritic) -> None:
    try:
        module.compile_objectives(module.device)
    except ConfigError as error:
        pytest.skip(str(error))


def assert_same_updates(plain: ActorCritic, compiled: ActorCritic, updates: int = 4) -> None:
    """Every update's gradients and scalars, from the same parameters, and the global stream afterwards."""
    for number in range(updates):
        compiled.load_state_dict(plain.state_dict())
        batch, found = random_batch(M), []
        for module in (plain, compiled):
            torch.manual_seed(number)
            scalars = module.update(type(batch)(*(field.to(module.device) for field in batch)))
            gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
            found.append(({n: v.clone() for n, v in scalars.items()}, gradients, torch.rand(1, device=module.device)))
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("make", [MODULES["SAC-hyper-shared"], MODULES["TD3"]], ids=["SAC-hyper-shared", "TD3"])
def test_a_loss_is_one_program_of_the_same_numbers(make: Any) -> None:
    """What dynamo captures, run operation by operation: nothing of a loss is left to Python, nor changed by it."""
    plain, captured = made(make), made(make)
    for name in ("critic_objective", "actor_objective"):
        setattr(captured, name, torch.compile(getattr(captured, name), backend="eager", fullgraph=True))
    assert_same_updates(plain, captured, updates=2)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), captured.parameters(), strict=True))


@slow
@each
def test_updates_are_those_of_the_plain_module(make: Any) -> None:
    plain, compiled = made(make), made(make)
    compile_or_skip(compiled)
    assert_same_updates(plain, compiled)


@slow
def test_gradients_under_bf16_are_those_of_the_plain_module_up_to_its_rounding() -> None:
    plain, compiled = made(MODULES["SAC-hyper"]), made(MODULES["SAC-hyper"])
    compile_or_skip(compiled)
    compiled.load_state_dict(plain.state_dict())
    batch = random_batch(M)
    for module in (plain, compiled):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(value.isfinite() for value in module.update(batch).values())
    ours, other = (
        torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (plain, compiled)
    )
    assert (ours - other).norm() < 0.05 * ours.norm()
    assert not torch.equal(ours, other)  # rounded where a fused program rounds, so it was one
    exact = made(MODULES["SAC-hyper"])
    torch.manual_seed(0)
    exact.update(batch)
    unrounded = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    assert (ours - unrounded).norm() > 1e-3 * unrounded.norm()  # so both were of bf16


@slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_cuda(make: Any) -> None:
    plain, compiled = made(make, "cuda"), made(make, "cuda")
    compiled.compile_objectives(torch.device("cuda"))
    assert_same_updates(plain, compiled, updates=12)  # beyond the first ones, which graphs are recorded of


@slow
def test_a_resumed_run_equals_a_straight_one(tmp_path: Path) -> None:
    def fit(epochs: int, start: Path | None = None) -> tuple[ActorCritic, Any]:
        data = ReplayDataModule(
            Gymnasium("Pendulum-v1"), batch_size=8, capacity=100, warmup_steps=10, epoch_steps=6, eval_episodes=1
        )
        torch.manual_seed(0)
        module = SAC(3, 1, TanhGaussianMLP([6]), HYPER, compiled=True)
        trainer = quiet_trainer(max_epochs=epochs)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        except ConfigError as error:
            pytest.skip(str(error))
        return module, trainer

    straight, _ = fit(4)
    _, trainer = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, tmp_path / "half.ckpt")
    assert resumed.updates == straight.updates == 24
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    script = (
        "import torch; from lit_metarl.algorithms import SAC; from lit_metarl.types import ConfigError\n"
        "try: SAC(3, 1).compile_objectives(torch.device('cpu'))\n"
        "except ConfigError as error: print(error)"
    )
    there = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | there, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("model.compiled = True cannot be used: torch.compile fails on this machine (")
    assert line.endswith("); install a C++ compiler, or leave it out.")
