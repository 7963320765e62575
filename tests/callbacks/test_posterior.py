"""What is inferred of a few tasks: the evidence of exploration as the module has it, and a picture of it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from test_configs import CONFIGS

from lit_metarl.algorithms import PEARL
from lit_metarl.callbacks.posterior import Inference, draw_posterior, infer, plane_of
from lit_metarl.cli import run
from lit_metarl.data import TaskReplayDataModule
from lit_metarl.envs.navigation import PointRobot
from lit_metarl.nn import EnsembleCriticMLP, ProductOfGaussians, TanhGaussianMLP
from lit_metarl.tracking import connect


def test_precision_grows_with_every_round_and_nothing_is_known_before() -> None:
    torch.manual_seed(0)
    encoder = ProductOfGaussians(latent=3, hidden=[8])
    module = PEARL(2, 2, actor=TanhGaussianMLP([8]), critic=EnsembleCriticMLP([8]), encoder=encoder)
    datamodule = TaskReplayDataModule(PointRobot(max_episode_steps=5), train_tasks=2, trajectories=2)
    datamodule.eval_adaptation_steps = 3
    datamodule.bind(module.train())
    found = infer(module, datamodule, tasks=4)
    assert module.training
    assert found.context.shape == (4, 2)
    assert found.episodes == 2
    assert found.mean.shape == (4, 4, 3)
    assert torch.equal(found.mean[0], torch.zeros(4, 3))
    assert torch.equal(found.variance[0], torch.ones(4, 3))
    precision = 1.0 / found.variance[1:]  # of what was seen; the prior is none of it
    assert (precision.diff(dim=0) > 0.0).all()
    assert len(set(found.mean[1, :, 0].tolist())) == 4  # another for every task
    assert torch.equal(infer(module, datamodule, tasks=4).mean, found.mean)


def test_plane_holds_the_directions_in_which_means_differ_most() -> None:
    means = torch.tensor([[5.0, 0.0, 1.0], [5.0, 3.0, -1.0], [5.0, -3.0, 0.0]])  # little in the last, none in the first
    plane = plane_of(means)
    assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-6)
    assert torch.allclose(plane[0], torch.zeros(2), atol=1e-6)
    assert plane[1, 0].abs() > 0.9
    assert plane_of(torch.ones(3, 1)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("latent", "context"), [(3, 2), (1, 1)])
def test_picture_has_a_panel_for_the_tasks_and_for_every_round(latent: int, context: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = Inference(torch.rand(4, context), torch.randn(3, 4, latent), torch.rand(3, 4, latent), 1)
    draw_posterior(found, tmp_path / "new" / "posterior.png")
    content = (tmp_path / "new" / "posterior.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width == pytest.approx(110 * 2.9 * 4, abs=1)
    assert height == pytest.approx(110 * 3.5, abs=1)
    assert len(content) > 8000


def test_a_run_that_infers_leaves_the_picture(tmp_path: Path) -> None:
    files = "experiment/quickstart_inference", "overlay/smoke_pearl"
    run(["fit", *(f"--config={CONFIGS / file}.yaml" for file in files), "--trainer.accelerator=cpu"])
    (directory,) = (tmp_path / "mlruns" / "runs").iterdir()
    stored = {each.path for each in connect("mlruns").list_artifacts(directory.name, "adaptation")}
    assert stored == {"adaptation/eval.csv", "adaptation/eval.png", "adaptation/posterior.png"}
