"""A trained policy for use elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lit_metarl.nn.recipe import from_recipe
from lit_metarl.types import ConfigError


class TrainedPolicy:
    """Callable from observations to actions.

    Continuous actions lie in [-1, 1], the simulator's full range (map them to its own bounds); discrete ones are
    indices. A meta-learned policy is the one before adaptation.

    Args:
        actor: network whose distribution has a ``mode_action``, as those of :class:`~lit_metarl.nn.ActorFactory` and
            :class:`~lit_metarl.nn.PolicyFactory`.
        obs_dim: O.
        action_scale: a continuous action is ``clip(action_scale · action, −1, 1)``, as in training.
    """

    def __init__(self, actor: nn.Module, obs_dim: int, action_scale: float = 1.0) -> None:
        self.actor = actor.eval()
        self.obs_dim = obs_dim
        self.action_scale = action_scale

    @torch.no_grad()
    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Deterministic action ``[A]`` or ``[E, A]`` float32 (int64 ``[]`` or ``[E]``) for ``[O]`` or ``[E, O]``.

        Raises:
            ValueError: the last axis of ``obs`` is not O.
        """
        batch = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if batch.ndim not in (1, 2) or batch.shape[-1] != self.obs_dim:
            raise ValueError(
                f"this policy takes observations [{self.obs_dim}] or [E, {self.obs_dim}], not {batch.shape}."
            )
        action = self.actor(batch).mode_action
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
    from lit_metarl.checkpoint import CheckpointError, read_checkpoint

    path = Path(path_or_run).expanduser()
    run_dir = Path(root).expanduser() / "runs" / str(path_or_run)
    if not path.is_file() and run_dir.is_dir():
        path = next((p for p in (run_dir / f"{checkpoint}.ckpt", run_dir / "last.ckpt") if p.is_file()), run_dir)
    if not path.is_file():
        raise CheckpointError(f"{path_or_run}: neither a checkpoint file nor the id of a run in {root}.")
    recipe = read_checkpoint(path)["algorithm"]["policy"]
    try:
        factory = from_recipe(recipe)
    except ConfigError as error:
        raise ConfigError(f"the policy of {path} cannot be built: {error}") from error
    sizes = [recipe[key] for key in ("obs_dim", "action_dim", "num_actions") if key in recipe]
    actor = factory.build(*sizes)
    actor.load_state_dict(recipe["state_dict"])
    return TrainedPolicy(actor, recipe["obs_dim"], recipe.get("action_scale", 1.0))
