"""Meta-batches and optimizers without simulator and training loop, for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision

from lit_metarl.algorithms import MetaPolicyGradient
from lit_metarl.algorithms.meta_policy_gradient import POLICY, below
from lit_metarl.types import Adaptation, MetaBatch, Params, Trajectories

Module = TypeVar("Module", bound=MetaPolicyGradient)


def unadapted(module: MetaPolicyGradient, tasks: int = 3) -> Adaptation:
    """What is known of ``tasks`` tasks without a context before any data."""
    return module.before_adaptation(torch.zeros(tasks, 0))


def initial_params(module: MetaPolicyGradient, tasks: int = 3) -> Params:
    """Parameters before adaptation, ``[B, ...]``."""
    return below(POLICY, unadapted(module, tasks))


def adapted_params(module: MetaPolicyGradient, trajectories: Trajectories) -> Params:
    """Parameters after adaptation to one round, ``[B, ...]``."""
    return below(POLICY, module.adapt(unadapted(module, len(trajectories.reward)), trajectories))


def batch_of(module: MetaPolicyGradient, rounds: list[Trajectories], env_steps: int = 0) -> MetaBatch:
    """The batch that a DataModule would make of ``rounds``."""
    adaptations = [unadapted(module, len(rounds[0].reward))]
    for trajectories in rounds[:-1]:
        adaptations.append(module.adapt(adaptations[-1], trajectories))
    return MetaBatch(tuple(rounds), tuple(adaptations), env_steps)


def random_rounds(
    module: MetaPolicyGradient, tasks: int = 3, steps: int = 1, full: bool = False, seed: int = 0
) -> list[Trajectories]:
    """``steps + 1`` rounds of 4 random trajectories of 2 to 5 steps (5 if ``full``), sampled as the collector does."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(module.parameters()).dtype
    adaptation, rounds = unadapted(module, tasks), []
    ends = torch.zeros(tasks, 4, module.sizes.obs, dtype=dtype), torch.zeros(tasks, 4, dtype=torch.bool)
    for step in range(steps + 1):
        lengths = torch.randint(2, 6, (tasks, 4, 1), generator=generator)
        mask = torch.ones(tasks, 4, 5, dtype=dtype) if full else (torch.arange(5) < lengths).to(dtype)
        obs = torch.randn(tasks, 4, 5, module.sizes.obs, generator=generator, dtype=dtype) * mask[..., None]
        reward = torch.randn(tasks, 4, 5, generator=generator, dtype=dtype) * mask
        action, log_prob = module.sample_actions(adaptation, obs, generator)
        alive = mask.view(*mask.shape, *[1] * (action.ndim - mask.ndim)).to(action.dtype)
        rounds.append(Trajectories(obs, action * alive, reward, log_prob * mask, mask, *ends, torch.zeros(tasks, 0)))
        if step < steps:
            adaptation = module.adapt(adaptation, rounds[-1])
    return rounds


def quiet_trainer(**kwargs) -> Trainer:
    """A Trainer on the CPU that writes and prints nothing."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(settings | kwargs))


@contextmanager
def cached_autocast() -> Iterator[None]:
    """Autocast that keeps its copies of the weights, torch's default, whatever this version of Lightning has."""
    with pytest.MonkeyPatch.context() as patch:
        cached = lambda self: torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=True)  # noqa: E731
        patch.setattr(MixedPrecision, "autocast_context_manager", cached)
        yield


def attach(module: Module) -> Module:
    """Give ``module`` its optimizers, as a Trainer does before it trains."""
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    module.trainer = trainer
    trainer.strategy.setup_optimizers(trainer)
    return module
