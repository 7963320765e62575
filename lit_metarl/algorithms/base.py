"""What every LightningModule of the package shares: manual optimization, metrics, evaluation, resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lit_metarl.processes import average_gradients, gather_states, world_size
from lit_metarl.settings import check_precision
from lit_metarl.types import ConfigError, DivergenceError, State, require

log = logging.getLogger(__name__)

SCHEMA = "lit_metarl.algorithm/3"


class Algorithm(LightningModule):
    """Base of all algorithms; also the :class:`~lit_metarl.types.Policy` that collectors call.

    A subclass implements ``training_step``, ``explore``, ``act`` and ``policy_state``; it calls :meth:`minimise` for
    every loss and :meth:`record` at the end of every training step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.env_steps = 0
        self.generation = 0  # of the experience: see types.Policy
        self.latest_metrics: dict[str, float] = {}
        self._reset_sums()

    def setup(self, stage: str) -> None:
        """Refuse a precision that cannot work."""
        check_precision(self.trainer.precision)

    def on_train_start(self) -> None:
        """Let the config's step sizes hold on resume: an optimizer's state brings those of the checkpoint."""
        for optimizer, fresh in zip(self.trainer.optimizers, self.configure_optimizers(), strict=True):
            for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
                group["lr"] = new["lr"]

    # Optimization --------------------------------------------------------------------------------------------------

    def minimise(self, loss: Tensor, optimizer: LightningOptimizer) -> None:
        """One step of ``optimizer`` on ``loss``: gradients of its parameters only, averaged over processes.

        ``autograd.grad`` with the optimizer's own parameters leaves every other network's gradients alone, so an actor
        loss never reaches the critic.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        average_gradients(parameters)
        optimizer.step()

    @property
    def step_sizes(self) -> dict[str, float]:
        """Step sizes by their configuration key, for the message of a run that diverged."""
        raise NotImplementedError

    def diverged(self, what: str, state_is_finite: bool = False) -> DivergenceError:
        """The error to raise because of ``what``; it names the step sizes."""
        sizes = ", ".join(f"{key} = {value:g}" for key, value in self.step_sizes.items())
        return DivergenceError(
            f"training diverged: {what} after {self.env_steps} environment steps. Lower a step size ({sizes}), or "
            "look for huge rewards or observations. The checkpoints written so far are untouched.",
            state_is_finite,
        )

    # Metrics -------------------------------------------------------------------------------------------------------

    def _reset_sums(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._returns: list[Tensor] = []
        self._lengths: list[Tensor] = []

    def record(self, metrics: Mapping[str, Tensor], env_steps: int, returns: Tensor, lengths: Tensor) -> None:
        """Add one training step's metrics; every ``trainer.log_every_n_steps`` steps their means are logged.

        Args:
            metrics: scalars, detached, on any device: nothing is synchronised before they are logged.
            env_steps: the x-axis, environment steps so far of all processes.
            returns: ``[n]`` of the episodes that ended, logged as ``train/return``.
            lengths: ``[n]`` agent steps, logged as ``train/episode_length``.
        """
        self.env_steps = env_steps
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        if returns.numel():
            self._returns.append(returns.cpu())
            self._lengths.append(lengths.cpu())
        if self._steps >= self.trainer.log_every_n_steps:
            self.log_means()

    def log_means(self) -> None:
        """Log the means of what was recorded since the last time, if anything was, and start anew."""
        if not self._steps:
            return
        returns = torch.cat(self._returns) if self._returns else torch.zeros(0)
        lengths = torch.cat(self._lengths) if self._lengths else torch.zeros(0)
        counts = torch.tensor([self._steps, returns.sum(), lengths.sum(), len(returns)], dtype=torch.float32)
        sums = torch.cat([torch.stack([v.float() for v in self._sums.values()]), counts.to(self.device)])
        if world_size() > 1:
            dist.all_reduce(sums)
        *means, steps, return_sum, length_sum, episodes = sums.tolist()
        metrics = {f"train/{name}": value / steps for name, value in zip(self._sums, means, strict=True)}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
        if episodes:
            metrics |= {"train/return": return_sum / episodes, "train/episode_length": length_sum / episodes}
        self.log_points(metrics)
        self._reset_sums()

    def log_points(self, metrics: Mapping[str, float]) -> None:
        """Log ``metrics`` at the current number of environment steps, past Lightning's ``log`` (0.45 ms a key)."""
        self.latest_metrics |= metrics
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.env_steps)

    # Evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log :meth:`evaluation_metrics` as ``eval/…``, or ``validate/…`` outside ``fit``."""
        self._log_evaluation(batch, "eval" if self.trainer.state.fn == "fit" else "validate")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The same as ``test/…``."""
        self._log_evaluation(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What was filmed, as it came."""
        return batch

    def _log_evaluation(self, batch: Any, prefix: str) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in self.evaluation_metrics(batch).items()}
        # For callbacks (best checkpoint, early stopping) and the printed table; the logger gets exact step numbers.
        self.log_dict(metrics, batch_size=1, logger=False)
        if not self.trainer.sanity_checking:
            self.log_points({name: float(value) for name, value in metrics.items()})

    def evaluation_metrics(self, batch: Any) -> dict[str, Tensor]:
        """Of complete episodes of all processes: mean, spread and extremes of the return, mean length; scalars."""
        returns, lengths = self.gather(batch.returns.float()), self.gather(batch.lengths.float())
        return {
            "return": returns.mean(),
            "return_std": returns.std(correction=0),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "episode_length": lengths.mean(),
        }

    def gather(self, rows: Tensor) -> Tensor:
        """``[..., n]`` of this process → ``[..., n of all processes]``."""
        if world_size() == 1:
            return rows
        return self.all_gather(rows.to(self.device)).movedim(0, -2).flatten(-2)

    # Policy --------------------------------------------------------------------------------------------------------

    def policy_state(self) -> State:
        """What :func:`lit_metarl.load_policy` needs: :func:`policy_state_of` one network."""
        raise NotImplementedError

    # Resume --------------------------------------------------------------------------------------------------------

    def counters(self) -> State:
        """Python numbers that are part of the training state; a subclass adds its own."""
        return {"env_steps": self.env_steps, "generation": self.generation}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        self.env_steps, self.generation = state["env_steps"], state["generation"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save: counters, running metrics, and how to rebuild the policy."""
        checkpoint["algorithm"] = {
            "schema": SCHEMA,
            "name": type(self).__qualname__,
            "counters": self.counters(),
            "metrics": gather_states(self._running_metrics()),  # of every process: means are over all of them
            "latest": dict(self.latest_metrics),
            "policy": self.policy_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is this algorithm's with these networks, then restore what was added.

        Raises:
            ConfigError: a foreign checkpoint, another algorithm, or networks of other shapes.
        """
        state = checkpoint.get("algorithm")
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise ConfigError("ckpt_path cannot be used: it was not written by this version of lit_metarl.")
        require(
            state["name"] == type(self).__qualname__,
            "ckpt_path",
            state["name"],
            f"it is a checkpoint of {state['name']}, this run trains {type(self).__qualname__}",
        )
        self._check_shapes(checkpoint["state_dict"])
        datamodule = getattr(self.trainer, "datamodule", None) if self._trainer is not None else None
        if datamodule is not None and self.trainer.state.fn == "fit":
            # Lightning finds a DataModule's state by class name, and restores nothing, silently, if that differs.
            name = type(datamodule).__qualname__
            require(name in checkpoint, "data", name, "the checkpoint holds no state of this DataModule to resume from")
            done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            limit = self.trainer.max_epochs
            require(
                limit in (None, -1) or done <= limit,
                "trainer.max_epochs",
                limit,
                f"the checkpoint has trained {done} epochs already; raise it to go on",
            )
            if done == limit:
                log.warning("the run is complete: %d of %d epochs; raise trainer.max_epochs to go on", done, limit)
        self.load_counters(state["counters"])
        self.latest_metrics = dict(state["latest"])
        if len(state["metrics"]) != world_size():  # looked at with another number of processes
            return
        metrics = state["metrics"][self.global_rank]
        self._sums = {name: value.to(self.device) for name, value in metrics["sums"].items()}
        self._steps = metrics["steps"]
        self._returns, self._lengths = list(metrics["returns"]), list(metrics["lengths"])

    def _running_metrics(self) -> State:
        return {
            "sums": {name: value.detach().cpu() for name, value in self._sums.items()},
            "steps": self._steps,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    def _check_shapes(self, saved: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = [
            f"{name} {tuple(saved[name].shape) if name in saved else 'missing'} instead of "
            f"{tuple(own[name].shape) if name in own else 'absent'}"
            for name in sorted(own.keys() | saved.keys())
            if name not in saved or name not in own or saved[name].shape != own[name].shape
        ]
        require(
            not wrong,
            "ckpt_path",
            "; ".join(wrong[:3]),
            "the networks or the environment differ from the checkpoint's; resume with the config it was written with",
        )


def policy_state_of(recipe: State, module: nn.Module, obs_dim: int, action_dim: int) -> State:
    """Recipe and weights of a policy network, as :func:`lit_metarl.load_policy` reads them.

    Args:
        recipe: of the factory that built ``module`` (:func:`lit_metarl.nn.recipe.recipe_of`).
        module: the network.
        obs_dim: O.
        action_dim: A.
    """
    weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    return recipe | {"obs_dim": obs_dim, "action_dim": action_dim, "state_dict": weights}
