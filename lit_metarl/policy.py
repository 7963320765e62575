"""A trained policy for use elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lit_metarl.checkpoint import CheckpointError, read_checkpoint
from lit_metarl.nn.conditioning import condition, told_call
from lit_metarl.nn.recipe import from_recipe
from lit_metarl.types import ConfigError, Sizes


class TrainedPolicy:
    """Callable from observations to actions.

    Continuous actions lie in [-1, 1], the simulator's full range (map them to its own bounds); discrete ones are
    indices. A meta-learned policy is the one before adaptation; PEARL's is told z as ``context``, without the encoder
    that would infer it.

    Args:
        actor: network whose distribution has a ``mode_action``, as those of :class:`~lit_metarl.nn.ActorFactory` and
            :class:`~lit_metarl.nn.PolicyFactory`.
        sizes: of observations, actions and context.
        action_scale: a continuous action is ``clip(action_scale · action, −1, 1)``, as in training.
        built_by: the factory that built ``actor``, for the representation.
    """

    def __init__(self, actor: nn.Module, sizes: Sizes, action_scale: float = 1.0, built_by: object = None) -> None:
        self.actor = actor.eval()
        self.sizes = sizes
        self.action_scale = action_scale
        self.built_by = built_by

    def __repr__(self) -> str:
        sizes = self.sizes
        context = f" and a context of {sizes.context}" if sizes.context else ""
        actions = f"{sizes.action} actions in [-1, 1]" if sizes.num_actions is None else f"one of {sizes.num_actions}"
        return f"TrainedPolicy({self.built_by or self.actor}: {sizes.obs} observations{context} → {actions})"

    @torch.no_grad()
    def __call__(self, obs: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """Deterministic action ``[A]`` or ``[E, A]`` float32 (int64 ``[]`` or ``[E]``) for ``[O]`` or ``[E, O]``.

        Args:
            obs: observations.
            context: ``[C]`` of the task, for a policy that was trained with one.

        Raises:
            ValueError: the last axis of ``obs`` is not O, or ``context`` is not ``[C]``.
        """
        batch = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        size = self.sizes.obs
        if batch.ndim not in (1, 2) or batch.shape[-1] != size:
            raise ValueError(f"this policy takes observations [{size}] or [E, {size}], not {list(batch.shape)}.")
        task = torch.as_tensor(np.asarray([] if context is None else context), dtype=torch.float32)
        if task.shape != (self.sizes.context,):
            raise ValueError(f"this policy takes a context [{self.sizes.context}], not {list(task.shape)}.")
        params = dict(self.actor.named_parameters())
        action = told_call(self.actor, params, batch, condition(self.actor, params, task)).mode_action
        return (action.mul(self.action_scale).clamp(-1.0, 1.0) if action.is_floating_point() else action).numpy()


def load_policy(path_or_run: str | Path, root: str | Path = "mlruns", checkpoint: str = "best") -> TrainedPolicy:
    """Load the policy of a checkpoint file, or of a run by its id.

    Args:
        path_or_run: a ``.ckpt`` file or an MLflow run id.
        root: folder of the store that a run id is looked up in.
        checkpoint: which checkpoint of a run, ``best`` or ``last``; ``last`` where there is no ``best``.

    Raises:
        CheckpointError: no such file or run, or a file that this package did not write.
        ConfigError: the class that built the policy cannot be imported.
    """
    path = find_checkpoint(path_or_run, root, checkpoint)
    return policy_of(read_checkpoint(path), path)


def find_checkpoint(path_or_run: str | Path, root: str | Path = "mlruns", checkpoint: str = "best") -> Path:
    """Path of a checkpoint file that is named by itself or by its run, see :func:`load_policy`.

    Raises:
        CheckpointError: no such file or run.
    """
    path = Path(path_or_run).expanduser()
    run_dir = Path(root).expanduser() / "runs" / str(path_or_run)
    if not path.is_file() and run_dir.is_dir():
        path = next((p for p in (run_dir / f"{checkpoint}.ckpt", run_dir / "last.ckpt") if p.is_file()), run_dir)
    if not path.is_file():
        raise CheckpointError(f"{path_or_run}: neither a checkpoint file nor the id of a run in {root}.")
    return path


def policy_of(saved: Mapping[str, Any], path: Path) -> TrainedPolicy:
    """The policy in ``saved``, the content of the checkpoint at ``path``.

    Raises:
        CheckpointError: another version of this package wrote it.
        ConfigError: the class that built the policy cannot be imported.
    """
    recipe = saved["algorithm"]["policy"]
    if "sizes" not in recipe:
        raise CheckpointError(f"{path} was written by another version of lit_metarl: load it with that one.")
    try:
        factory = from_recipe(recipe)
    except ConfigError as error:
        raise ConfigError(f"the policy of {path} cannot be built: {error}") from error
    sizes = Sizes(**recipe["sizes"])
    actor = factory.build(sizes)
    actor.load_state_dict(recipe["state_dict"])
    return TrainedPolicy(actor, sizes, recipe["action_scale"], factory)
