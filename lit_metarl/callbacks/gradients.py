"""The quality of meta-gradients during training, and the sampling behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_metarl.algorithms import MetaPolicyGradient
from lit_metarl.algorithms.meta_policy_gradient import POLICY, above, below
from lit_metarl.callbacks.monitor import Monitor
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.resampling import Resampler
from lit_metarl.diagnostics.gradients import gradient_quality, variance_by_name
from lit_metarl.estimators import InnerSurrogate, LoadedDiCE
from lit_metarl.types import Params, Trajectories, require


class Samples(NamedTuple):
    """Estimates by the parameters' names, one for every resampled meta-batch."""

    gradient: Params  # [R, ...] of the meta-gradient
    product: Params  # [R, ...] of the inner Hessian times a fixed vector

    def flat(self) -> tuple[Tensor, Tensor]:
        """Both as ``[R, P]`` float64."""
        gradient, product = (torch.cat([value.double().flatten(1) for value in part.values()], dim=1) for part in self)
        return gradient, product


@dataclass(frozen=True)
class Resampling:
    """Sizes and seed of a measurement: the same tasks and the same data for every estimator.

    Attributes:
        tasks: B, the same in every meta-batch.
        resamples: R meta-batches that are drawn for every estimator.
        reference: Q meta-batches of the reference, from other streams.
        trajectories: N of the rounds before adaptation; None for the DataModule's.
        outer_trajectories: N of the last round; None for as many. Many of them leave the noise of the inner rounds
            alone, that of the Hessian.
        seed: of tasks, simulators and actions; independent of training's.
    """

    tasks: int = 10
    resamples: int = 20
    reference: int = 40
    trajectories: int | None = None
    outer_trajectories: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("tasks", "trajectories", "outer_trajectories"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"resampling.{key}", value, "it must be at least 1")
        for key in ("resamples", "reference"):
            require(getattr(self, key) >= 2, f"resampling.{key}", getattr(self, key), "a variance needs at least 2")
        require(self.seed >= 0, "resampling.seed", self.seed, "seeds are non-negative integers")

    def resampler(self, datamodule: TaskDataModule, stream: int) -> Resampler:
        """Draws of this measurement's tasks; each ``stream`` has data of its own."""
        inner = self.trajectories or datamodule.trajectories
        sizes = [inner] * datamodule.adaptation_steps + [self.outer_trajectories or inner]
        return Resampler(datamodule, self.tasks, sizes, self.seed, stream)


def sample_gradients(
    modules: Mapping[str, MetaPolicyGradient], resampler: Resampler, resamples: int, vector: Params
) -> dict[str, Samples]:
    """Estimates of every module on ``resamples`` meta-batches, which are the same for all of them.

    Args:
        modules: with the same parameters, on one device.
        resampler: draws the meta-batches.
        resamples: R.
        vector: by the policy's parameter names; multiplied by the Hessian of the first round's surrogate.
    """
    device = next(iter(modules.values())).device
    found: dict[str, list[tuple[Params, Params]]] = {name: [] for name in modules}
    for _ in range(resamples):
        for name, rounds in resampler.draw(modules, device).items():
            on_device = [Trajectories(*(x.to(device) for x in data)) for data in rounds]
            module = modules[name]
            found[name].append((module.meta_gradient(on_device), module.hessian_vector(on_device[0], vector)))
    return {name: Samples(*(_stack(part) for part in zip(*each, strict=True))) for name, each in found.items()}


def _stack(each: Sequence[Params]) -> Params:
    return {name: torch.stack([params[name] for params in each]) for name in each[0]}


def unit_gradient(module: MetaPolicyGradient, resampler: Resampler) -> Params:
    """A direction of length 1 for :func:`sample_gradients`: the meta-gradient of one draw, policy parameters only."""
    (rounds,) = resampler.draw({"": module}, module.device).values()
    on_device = [Trajectories(*(x.to(module.device) for x in data)) for data in rounds]
    vector = below(POLICY, module.meta_gradient(on_device))
    norm = torch.stack([value.norm() for value in vector.values()]).norm()
    return {name: value / norm for name, value in vector.items()}


@dataclass(frozen=True)
class Measurement:
    """Estimates of every estimator, and of the reference that they are compared with.

    Attributes:
        estimators: by name.
        reference: of an estimator that is unbiased for the Hessian.
    """

    estimators: dict[str, Samples] = field(default_factory=dict)
    reference: Samples = field(default_factory=lambda: Samples({}, {}))

    def metrics(self, name: str) -> dict[str, float]:
        """The quality of one estimator's meta-gradient and Hessian-vector product, as finite scalars to log."""
        parts = zip(("gradient", "hessian_vector"), self.estimators[name].flat(), self.reference.flat(), strict=True)
        found: dict[str, float] = {}
        for part, samples, truth in parts:
            for key, interval in gradient_quality(samples, truth)._asdict().items():
                low, high = {f"{part}/{key}_low": interval.low}, {f"{part}/{key}_high": interval.high}
                found |= {f"{part}/{key}": interval.value} | low | high
        each = variance_by_name(self.estimators[name].gradient)
        found |= above("gradient/variance_of/", {key.removeprefix(POLICY): each[key] for key in each})
        return {key: value for key, value in found.items() if math.isfinite(value)}


def measure_quality(
    modules: Mapping[str, MetaPolicyGradient],
    reference: MetaPolicyGradient,
    datamodule: TaskDataModule,
    resampling: Resampling,
) -> Measurement:
    """Estimates of ``modules`` and of ``reference``, all at the same parameters and on the same tasks."""
    others, own = resampling.resampler(datamodule, 1), resampling.resampler(datamodule, 0)
    vector = unit_gradient(reference, others)
    truth = sample_gradients({"": reference}, others, resampling.reference, vector)[""]
    estimators = sample_gradients(modules, own, resampling.resamples, vector)
    others.close()
    own.close()
    return Measurement(estimators, truth)


class GradientMonitor(Monitor):
    """Logs bias and variance of the meta-gradient at the parameters as they stand, before training and after epochs.

    Meta-batches of fixed tasks are drawn again and again in simulators and from streams of the monitor's own, the same
    in every measurement: training is bit for bit the same with and without it (Liu et al. 2019, Fig. 2). A measurement
    costs R iterations for each estimator and Q for the reference; the first process makes it. Metrics, ``gradient/…``
    for the meta-gradient and ``hessian_vector/…`` for the product of the inner Hessian and one fixed vector: the fields
    of :class:`~lit_metarl.diagnostics.gradients.GradientQuality`, each with ``_low`` and ``_high``, and
    ``gradient/variance_of/<parameter>``; of other estimators below ``<name>/``.

    The reference is the module with the Loaded DiCE surrogate, whose Hessian is unbiased up to what baseline and
    normalisation do to the advantages. What another surrogate estimates that is not the same shows as bias: without
    ``model.discounted`` and ``model.gae_lambda`` 1 surrogates of rewards (DiCE, TMAML) have weights γ^t and whole
    returns, those of advantages have not; and DiCE, without a baseline, adapts to other policies.

    Args:
        every_n_epochs: epochs between two measurements.
        resampling: sizes and seed.
        estimators: surrogates to measure beside the module's own, by name, on the same data.
        reference: surrogate of the reference.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        resampling: Resampling = Resampling(),
        estimators: dict[str, InnerSurrogate] | None = None,
        reference: InnerSurrogate = LoadedDiCE(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(every_n_epochs)
        self.resampling = resampling
        self.estimators = estimators or {}
        self.reference = reference

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has no meta-gradient."""
        remedy = "it measures MetaPolicyGradient and its kin"
        require(isinstance(pl_module, MetaPolicyGradient), "GradientMonitor", type(pl_module).__name__, remedy)

    def measure(self, trainer: Trainer, module: Any) -> None:
        """Log bias and variance of the module's meta-gradient."""
        if not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule
        others = {f"{name}/": module.with_surrogate(surrogate) for name, surrogate in self.estimators.items()}
        reference = module.with_surrogate(self.reference)
        measured = measure_quality({"": module} | others, reference, datamodule, self.resampling)
        module.log_points(
            {k: v for name in measured.estimators for k, v in above(name, measured.metrics(name)).items()}
        )
