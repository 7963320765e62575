"""The gradient monitor: estimators on the same data, exact numbers in a finite MDP, and training left alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from meta_cases import attach, quiet_trainer
from oracles import assert_same

from lit_metarl.algorithms import MAML, SAC, SGMRL, MetaPolicyGradient
from lit_metarl.algorithms.meta_policy_gradient import POLICY
from lit_metarl.callbacks import GradientMonitor
from lit_metarl.callbacks.gradients import Resampling, measure_quality, sample_gradients
from lit_metarl.data import ReplayDataModule, TrajectoryDataModule
from lit_metarl.diagnostics.gradients import gradient_quality
from lit_metarl.envs.base import BatchedEnv, Tasks
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.envs.tabular import TabularEnv
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.estimators import DiCE, LikelihoodRatio, LoadedDiCE
from lit_metarl.nn import GaussianMLP, NoBaseline
from lit_metarl.optim import LinearisedLeaveOneOut, NoCorrection
from lit_metarl.reports.studies.meta_gradient import HORIZON, MDP, SIZE, Enumeration, Estimator
from lit_metarl.types import ConfigError, Trajectories

SMALL = Resampling(tasks=2, resamples=3, reference=3)


@dataclass(frozen=True)
class OneMDP(TaskFamily):
    """The MDP of the exact study, the only task."""

    def make(self, num_envs: int, seed: int) -> BatchedEnv:
        return TabularEnv(MDP, num_envs, seed, HORIZON)

    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        return {"reward": np.broadcast_to(MDP.reward, (num_tasks, *MDP.reward.shape))}


def exact_product(module: MetaPolicyGradient, world: Enumeration, vector: torch.Tensor) -> torch.Tensor:
    """The inner Hessian's product of every inner batch as a task of its own, ``[C, P]``."""
    data, seen = world.iteration.trajectories[0], world.iteration.signals[0]
    params = {name.removeprefix(POLICY): p for name, p in world.module.meta_parameters().items()}
    each = {name: p.detach().expand(len(data.reward), *p.shape) for name, p in params.items()}
    (product,) = module.inner.hessian_vector(
        each, {name: vector.view(p.shape) for name, p in params.items()}, data, seen
    ).values()
    return product.flatten(1)


@pytest.mark.parametrize("surrogate", [LikelihoodRatio(), DiCE()], ids=lambda s: type(s).__name__)
def test_it_agrees_with_enumeration_in_a_finite_mdp(surrogate: Any) -> None:
    """Sampled through simulator, collector and ``meta_gradient``; exact by listing every inner and outer batch."""
    estimator = Estimator("", NoCorrection(), surrogate, NoBaseline(), outer=1)
    world = Enumeration(estimator.module(), SIZE)
    module = estimator.module().float()
    datamodule = TrajectoryDataModule(OneMDP(), num_tasks=1, trajectories=SIZE)
    resampling = Resampling(tasks=1, outer_trajectories=1, seed=1)
    resampler = resampling.resampler(datamodule, 0)
    direction = torch.tensor([0.5, -0.5, -0.5, 0.5])
    ((name, parameter),) = module.policy.named_parameters()
    samples = sample_gradients({"": module}, resampler, 200, {name: direction.view(parameter.shape)})[""]
    resampler.close()
    exact = world.gradients(), exact_product(world.module, world, direction.double())
    for measured, every in zip(samples.flat(), exact, strict=True):
        mean = world.probability @ every
        truth = mean + torch.tensor([0.1, -0.1, 0.1, 0.1])  # a bias to be found
        quality = gradient_quality(measured, truth[None])
        variance = float(world.probability @ (every - mean).square().sum(-1))
        assert quality.variance.low < variance < quality.variance.high
        assert quality.bias2.low < 0.04 < quality.bias2.high
        assert quality.variance.high - quality.variance.low < variance  # the interval says something
        cosines = torch.cosine_similarity(every, truth[None], dim=1)
        assert quality.cosine.low < float(world.probability @ cosines) < quality.cosine.high


def test_estimators_have_the_same_data_and_the_reference_has_other() -> None:
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=4), num_tasks=2, trajectories=3)
    module = MAML(2, 2, policy=GaussianMLP((4,)))
    modules = {"one": module, "two": module.with_surrogate(DiCE())}
    resampler, other = (SMALL.resampler(datamodule, stream) for stream in (0, 1))
    first, second = resampler.draw(modules, module.device), resampler.draw(modules, module.device)
    assert_same(first["one"][0]._asdict(), first["two"][0]._asdict())
    assert not torch.equal(first["one"][1].action, first["two"][1].action)  # adapted otherwise
    assert not torch.equal(first["one"][0].action, second["one"][0].action)
    assert not torch.equal(first["one"][0].action, other.draw(modules, module.device)["one"][0].action)
    # A draw is that of the streams, whoever else is measured.
    again = SMALL.resampler(datamodule, 0)
    again.draw({"one": module}, module.device)
    assert_same(again.draw({"one": module}, module.device)["one"][1]._asdict(), second["one"][1]._asdict())


def test_outer_data_of_its_own_size_and_hidden_tasks() -> None:
    datamodule = TrajectoryDataModule(
        Navigation2D(max_episode_steps=4), num_tasks=2, trajectories=3, adaptation_steps=2
    )
    module = MAML(2, 2, policy=GaussianMLP((4,)))
    resampler = Resampling(tasks=4, outer_trajectories=11).resampler(datamodule, 0)
    (rounds,) = resampler.draw({"": module}, module.device).values()
    assert [data.reward.shape[:2] for data in rounds] == [(4, 3), (4, 3), (4, 11)]


def test_hessian_vector_is_the_derivative_of_the_inner_gradient() -> None:
    """Against central differences of the surrogate's gradient, task by task."""
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=4), num_tasks=2, trajectories=3)
    module = MAML(2, 2, policy=GaussianMLP((4,)), inner=LoadedDiCE()).double()
    resampler = Resampling(tasks=2).resampler(datamodule, 0)
    (rounds,) = resampler.draw({"": MAML(2, 2, policy=GaussianMLP((4,)))}, module.device).values()
    data = Trajectories(*(x.double() if x.is_floating_point() else x for x in rounds[0]))
    params = {name: p.detach() for name, p in module.policy.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    vector = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    signals = module.process(data, module.before_adaptation(data.context))

    def gradient(step: float) -> dict[str, torch.Tensor]:
        moved = {name: (p + step * vector[name]).expand(2, *p.shape) for name, p in params.items()}
        grown = module.inner.adapt(moved, dict.fromkeys(params, 1.0), data, signals)
        return {name: (grown[name] - moved[name]).mean(0) for name in params}

    up, down = gradient(1e-4), gradient(-1e-4)
    product = module.hessian_vector(data, vector)
    for name in params:
        torch.testing.assert_close(product[name], (up[name] - down[name]) / 2e-4, rtol=1e-5, atol=1e-6)


def train(monitor: GradientMonitor | None, folder: Path) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    seed_everything(0)
    settings = {"num_tasks": 2, "trajectories": 3, "epoch_iterations": 2, "eval_tasks": 2}
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=4), **settings)
    module = SGMRL(2, 2, policy=GaussianMLP((4,)), correction=LinearisedLeaveOneOut())
    points: list[tuple[int, dict[str, float]]] = []
    original = module.log_points
    module.log_points = lambda metrics: (points.append((module.env_steps, dict(metrics))), original(metrics))  # type: ignore[assignment]
    trainer = quiet_trainer(max_epochs=3, default_root_dir=folder, callbacks=[monitor] if monitor else [])
    trainer.fit(module, datamodule=datamodule)
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True), points


def test_training_is_bit_for_bit_what_it_is_without_the_monitor(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone, _ = train(None, tmp_path / "a")
    watched, points = train(GradientMonitor(2, SMALL, {"dice": DiCE()}), tmp_path / "b")
    for key in ("state_dict", "optimizer_states", "TrajectoryDataModule"):
        assert_same(watched[key], alone[key], key)
    curves = [(step, metrics) for step, metrics in points if "gradient/variance" in metrics]
    assert [step for step, _ in curves] == [0, 192]  # at the start, and after two epochs of 2 × 2 × 2 × 3 × 4 steps
    first, second = (metrics for _, metrics in curves)
    assert {"hessian_vector/bias2_low", "gradient/variance_of/log_std", "dice/gradient/mean_std"} <= first.keys()
    assert first["gradient/variance"] != second["gradient/variance"]
    assert first["gradient/variance"] != first["dice/gradient/variance"]
    each = [value for key, value in first.items() if key.startswith("gradient/variance_of/")]
    assert sum(each) == pytest.approx(first["gradient/variance"], rel=1e-5)


def test_another_surrogate_shares_parameters_and_precision() -> None:
    module = attach(MAML(2, 2, policy=GaussianMLP((4,))))
    other = module.with_surrogate(DiCE())
    assert other.trainer is module.trainer
    assert isinstance(other.inner.surrogate, DiCE)
    assert not isinstance(module.inner.surrogate, DiCE)
    with torch.no_grad():
        module.policy.log_std += 1.0
    assert torch.equal(other.policy.log_std, module.policy.log_std)


def test_a_measurement_is_repeatable() -> None:
    datamodule = TrajectoryDataModule(Navigation2D(max_episode_steps=4), num_tasks=2, trajectories=3)
    module = MAML(2, 2, policy=GaussianMLP((4,)))
    one, two = (measure_quality({"": module}, module, datamodule, SMALL) for _ in range(2))
    assert one.metrics("") == two.metrics("")


def test_what_has_no_meta_gradient_is_refused(tmp_path: Path) -> None:
    datamodule = ReplayDataModule(Gymnasium("Pendulum-v1"), batch_size=4, capacity=100, warmup_steps=5, epoch_steps=4)
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[GradientMonitor()])
    with pytest.raises(ConfigError, match=r"GradientMonitor = 'SAC' .* MetaPolicyGradient"):
        trainer.fit(SAC(3, 1), datamodule=datamodule)
    with pytest.raises(ConfigError, match=r"every_n_epochs = 0"):
        GradientMonitor(0)
    with pytest.raises(ConfigError, match=r"resampling\.reference = 1"):
        Resampling(reference=1)
    with pytest.raises(ConfigError, match=r"resampling\.outer_trajectories = 0"):
        Resampling(outer_trajectories=0)
    with pytest.raises(ConfigError, match=r"resampling\.seed = -1"):
        Resampling(seed=-1)
