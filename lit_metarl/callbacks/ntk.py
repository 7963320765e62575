"""The tangent kernel of a critic during training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_metarl.algorithms import PEARL
from lit_metarl.algorithms.base import Algorithm
from lit_metarl.callbacks.monitor import Monitor
from lit_metarl.data.stepping import Stepper
from lit_metarl.diagnostics.kernels import exact_kernel
from lit_metarl.diagnostics.ntk import contraction_margins, effective_rank, ntk_ratio
from lit_metarl.envs.base import EnvFactory
from lit_metarl.types import require


class NTKMonitor(Monitor):
    """Logs the tangent kernel of ``module.critic`` on one fixed batch, before training and after epochs.

    The batch is what a random policy sees in an environment of its own with a seed of its own, so that it is the same
    throughout a run, after a resume, and in every run on that environment (Evmorfos & Petropulu 2024, Fig. 3). Metrics,
    means over the ensemble's members: ``ntk/ratio`` (mean diagonal over mean absolute off-diagonal element),
    ``ntk/diagonal``, ``ntk/effective_rank``, and the margins of Theorem 1, ``ntk/eq7_margin`` (with
    η = ``critic_lr``, so only indicative where Adam takes the steps) and ``ntk/eq8_margin``.

    Args:
        samples: M of the batch.
        every_n_epochs: epochs between two measurements.
        spacing: environment steps between two samples; neighbours in time are nearly the same input.
        seed: of the batch.
    """

    def __init__(self, samples: int = 128, every_n_epochs: int = 1, spacing: int = 7, seed: int = 0) -> None:
        require(samples >= 2, "NTKMonitor.samples", samples, "a kernel needs at least 2")
        require(spacing >= 1, "NTKMonitor.spacing", spacing, "it must be at least 1")
        require(seed >= 0, "NTKMonitor.seed", seed, "seeds are non-negative integers")
        super().__init__(every_n_epochs)
        self.samples = samples
        self.spacing = spacing
        self.seed = seed
        self._batch: tuple[Tensor, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the batch; refuse a module without a critic."""
        if stage != "fit":
            return
        name = type(pl_module).__name__
        require(hasattr(pl_module, "critic"), "NTKMonitor", name, "it has no critic to look at")
        remedy = "its critic is told a task besides, of which there is none to choose"
        require(not isinstance(pl_module, PEARL), "NTKMonitor", name, remedy)
        datamodule: Any = trainer.datamodule
        self._batch = random_inputs(datamodule.env_factory, self.samples, self.spacing, self.seed)

    def measure(self, trainer: Trainer, module: Any) -> None:
        """Log the kernel of the module's critic as it stands."""
        assert isinstance(module, Algorithm)
        assert self._batch is not None
        critic: Any = module.critic
        obs, action = (x.to(module.device) for x in self._batch)
        kernel = exact_kernel(critic, dict(critic.named_parameters()), obs, action)
        margins = contraction_margins(kernel, module.gamma, module.critic_lr)
        values = {
            "ratio": ntk_ratio(kernel),
            "diagonal": kernel.diagonal(dim1=-2, dim2=-1).mean(-1),
            "effective_rank": effective_rank(kernel),
            "eq7_margin": margins.step_size.mean,
            "eq8_margin": margins.dominance.mean,
        }
        module.log_points({f"ntk/{name}": float(value.mean()) for name, value in values.items()})


def random_inputs(factory: EnvFactory, samples: int, spacing: int, seed: int) -> tuple[Tensor, Tensor]:
    """Observations ``[M, O]`` and actions ``[M, A]`` of a uniformly random policy, every ``spacing``-th step."""
    env, generator = factory.make(1, seed), torch.Generator().manual_seed(seed)
    stepper, rows = Stepper(env, lambda index: "of the kernel's batch"), []
    obs = stepper.reset()
    for step in range(samples * spacing):
        action = env.spec.sizes.uniform_actions(obs, generator)
        if step % spacing == 0:
            rows.append((obs, action))
        stepper.step(action.numpy())
        obs = stepper.observe()
    env.close()
    return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
