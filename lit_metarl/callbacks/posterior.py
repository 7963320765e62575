"""The posterior over z of a few tasks as a picture: how a learner that infers its task comes to know it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_metarl.algorithms import PEARL
from lit_metarl.data import TaskReplayDataModule
from lit_metarl.data.experience import cpu_generator
from lit_metarl.data.streams import Stream

if TYPE_CHECKING:
    from matplotlib.patches import Patch

TASKS = 6


class Inference(NamedTuple):
    """Posteriors of ``B`` test tasks in the course of exploration.

    Attributes:
        context: ``[B, D]``, what tells the tasks apart; the policy has not seen it.
        mean: ``[K + 1, B, Z]`` of z after 0 … K rounds.
        variance: likewise.
        episodes: of a round.
    """

    context: Tensor
    mean: Tensor
    variance: Tensor
    episodes: int


def infer(module: PEARL, datamodule: TaskReplayDataModule, tasks: int = TASKS) -> Inference:
    """The posteriors of ``tasks`` test tasks after 0 … K rounds of exploration, as an evaluation makes them."""
    simulator = datamodule.simulator_of(tasks, Stream.PREDICT_ENV)
    stream = np.random.default_rng(datamodule.stream_seed(Stream.PREDICT_TASKS))
    sampled = datamodule.env_factory.sample(tasks, stream, "test")
    simulator.set_tasks(sampled)
    generator = cpu_generator(datamodule.stream_seed(Stream.PREDICT_COLLECT))
    training = module.training
    module.eval()
    _, adaptations = datamodule.collect(simulator, datamodule.eval_adaptation_steps, generator)
    module.train(training)
    simulator.close()
    context = torch.from_numpy(np.asarray(datamodule.env_factory.context(sampled), dtype=np.float32))
    means, variances = zip(*(module.posterior(each) for each in adaptations), strict=True)
    return Inference(context, torch.stack(means).cpu(), torch.stack(variances).cpu(), datamodule.trajectories)


def plane_of(means: Tensor) -> Tensor:
    """The two orthonormal directions in which ``means [B, Z]`` differ most, ``[Z, 2]``; of one entry, itself and 0."""
    if means.shape[1] < 2:
        return torch.tensor([[1.0, 0.0]])
    directions = torch.linalg.svd(means - means.mean(0))[2]  # [Z, Z], principal ones first
    return directions[:2].T


def draw_posterior(found: Inference, path: Path) -> None:
    """The tasks, and the posterior of each after every round: an ellipse of one standard deviation around the mean.

    Of z the plane is shown in which the last posteriors' means differ most. A task has the same colour everywhere.
    """
    from matplotlib.figure import Figure

    count = len(found.mean)
    figure = Figure(figsize=(2.9 * (count + 1), 3.5), layout="constrained")
    first, *panels = figure.subplots(1, count + 1)
    colours = [f"C{task}" for task in range(len(found.context))]
    shown = torch.cat([found.context, torch.zeros(len(found.context), 1)], dim=1)[:, :2]
    first.scatter(*shown.T.tolist(), color=colours, marker="X", s=70)
    first.set(title="tasks, unknown to the policy", xlabel="context 1", aspect="equal")
    first.set_ylabel("context 2" if found.context.shape[1] > 1 else "")
    room = 0.15 * max(1.0, float(shown.abs().max())) + float(shown.abs().max())
    first.set(xlim=(-room, room), ylim=(-room, room))
    plane = plane_of(found.mean[-1])
    ends = (found.mean @ plane).abs() + found.variance.sqrt().amax(-1, keepdim=True)
    reach = 1.1 * max(1.5, float(ends.max()))
    for rounds, axis in enumerate(panels):
        axis.add_patch(_ellipse(found.mean[0, 0], found.variance[0, 0], plane, fill=False, color="gray", ls="--"))
        for task, colour in enumerate(colours):
            mean, variance = found.mean[rounds, task], found.variance[rounds, task]
            shade = "gray" if rounds == 0 else colour  # nothing tells tasks apart before any episode
            axis.add_patch(_ellipse(mean, variance, plane, color=shade, alpha=0.3 if rounds else 0.05))
            axis.plot(*(mean @ plane).tolist(), "o", color=shade, markersize=5)
        episodes = rounds * found.episodes
        axis.set(title=f"after {episodes} episode{'s' * (episodes > 1)}" if rounds else "before any episode")
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="z, direction 1")
    figure.suptitle("z as inferred of each task, ± one standard deviation (dashed: the prior)", fontsize="medium")
    panels[0].set_ylabel("z, direction 2")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _ellipse(mean: Tensor, variance: Tensor, plane: Tensor, **style: Any) -> Patch:
    """One standard deviation around ``mean [Z]``, seen in ``plane``."""
    from matplotlib.patches import Ellipse

    squares, directions = torch.linalg.eigh(plane.T @ variance.diag() @ plane)
    width, height = (2.0 * squares.clamp(min=0.0).sqrt()).tolist()
    angle = float(torch.rad2deg(torch.atan2(directions[1, 0], directions[0, 0])))
    x, y = (mean @ plane).tolist()
    return Ellipse((x, y), width, height, angle=angle, **style)
