"""Losses whose gradients a GPU replays as CUDA graphs: the same numbers, bit-exact resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from replay_cases import A, Batches, M, O, quiet_trainer, random_batch

from lit_metarl.algorithms import SAC, TD3, ActorCritic
from lit_metarl.algorithms.cuda_graphs import EAGER
from lit_metarl.data import ReplayDataModule
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, HyperCritic, TanhGaussianMLP
from lit_metarl.types import ConfigError, Transition

# these fits have nothing to evaluate
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HYPER = HyperCritic(hidden=(8,), widths=(16, 32), blocks=1)
MODULES = {
    "SAC": partial(SAC, O, A, TanhGaussianMLP([6]), EnsembleCriticMLP([8])),
    "SAC-hyper": partial(SAC, O, A, TanhGaussianMLP([6]), HYPER),
    "SAC-hyper-shared": partial(SAC, O, A, TanhGaussianMLP([6]), HYPER, share_weights=True),
    "TD3": partial(TD3, O, A, DeterministicMLP([6]), EnsembleCriticMLP([8])),
    "TD3-hyper-shared": partial(TD3, O, A, DeterministicMLP([6]), HYPER, share_weights=True),
}


def made(make: Any, **settings: Any) -> Any:
    torch.manual_seed(3)
    module = make(**settings).to("cuda")
    optimizers = module.configure_optimizers()
    module.optimizer = lambda number: optimizers[number]
    return module


def on_cuda(batch: Transition) -> Transition:
    return Transition(*(field.cuda() for field in batch))


def trained(module: ActorCritic, batches: list[Transition]) -> list[Any]:
    """Scalars of every update, and the parameters, targets and a random number afterwards."""
    torch.cuda.manual_seed(0)
    scalars = [{name: value.clone() for name, value in module.update(batch).items()} for batch in batches]
    return [scalars, dict(module.state_dict()), torch.rand(3, device="cuda")]


@needs_cuda
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_cuda_graphs_compute_the_same_numbers(make: Any, bf16: bool) -> None:
    batches = [on_cuda(random_batch(M)) for _ in range(3 * EAGER)]
    batches[-2] = on_cuda(random_batch(M + 1))  # computed without a graph
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
        plain, graphed = (trained(made(make, cuda_graphs=graphs), batches) for graphs in (False, True))
    torch.testing.assert_close(graphed, plain, atol=0.0, rtol=0.0)


@needs_cuda
def test_every_objective_is_captured_on_cuda() -> None:
    module = made(MODULES["TD3"], cuda_graphs=True)
    trained(module, [on_cuda(random_batch(M)) for _ in range(2 * EAGER + 2)])
    assert module._graphs.keys() == {"critic_objective", "actor_objective"}
    assert all(graphed._graph is not None for graphed in module._graphs.values())


@needs_cuda
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_resumed_run_on_cuda_equals_a_straight_one(tmp_path: Path, cuda_graphs: bool) -> None:
    def fit(epochs: int, start: Path | None = None) -> tuple[ActorCritic, Any]:
        data = ReplayDataModule(
            Gymnasium("Pendulum-v1"), batch_size=8, capacity=100, warmup_steps=10, epoch_steps=6, eval_episodes=1
        )
        torch.manual_seed(0)
        module = SAC(3, 1, TanhGaussianMLP([6]), HYPER, cuda_graphs=cuda_graphs)
        trainer = quiet_trainer(max_epochs=epochs, accelerator="cuda")
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        return module, trainer

    straight, _ = fit(4)
    _, trainer = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, tmp_path / "half.ckpt")
    assert resumed.updates == straight.updates == 24
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_without_a_gpu_the_key_is_named() -> None:
    module = SAC(O, A, TanhGaussianMLP([6]), EnsembleCriticMLP([8]), cuda_graphs=True)
    message = r"model\.cuda_graphs = True .* on cpu; leave it out, or see trainer\.accelerator"
    with pytest.raises(ConfigError, match=message):
        quiet_trainer().fit(module, Batches([random_batch(3, M)]))
    module.setup("test")  # of the trainer's device: a GPU's run can be evaluated anywhere
