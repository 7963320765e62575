"""The base of all LightningModules: manual optimization, metrics, evaluation, resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lit_metarl.algorithms.metrics import MeanMetrics
from lit_metarl.processes import average_gradients, gather_states, world_size
from lit_metarl.settings import check_precision, warn_of_emulation
from lit_metarl.types import ConfigError, DivergenceError, Sizes, State, require

log = logging.getLogger(__name__)

SCHEMA = "lit_metarl.algorithm/4"


class Algorithm(LightningModule):
    """Base of all algorithms; also the :class:`~lit_metarl.types.Policy` that collectors call.

    A subclass implements ``training_step``, what its protocol of :mod:`lit_metarl.types` asks for and ``policy_state``;
    it calls :meth:`minimise` for every loss, adds to ``metrics``, and ends a training step with :meth:`finish_step`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.env_steps = 0
        self.latest_metrics: dict[str, float] = {}
        self.metrics = MeanMetrics()
        self._steps = 0  # training steps since the means were logged
        self._logged_at = -1  # environment steps

    def setup(self, stage: str) -> None:
        """Refuse a precision that cannot work, and warn before training of one that this machine emulates."""
        check_precision(self.trainer.precision)
        if stage == "fit" and self.trainer.is_global_zero:
            warn_of_emulation(self.trainer.precision, self.trainer.strategy.root_device.type)

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
        parameters = parameters_of(optimizer)
        self.descend(parameters, torch.autograd.grad(loss, parameters), optimizer)

    def descend(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], optimizer: LightningOptimizer
    ) -> None:
        """One step of ``optimizer`` along ``gradients`` of its parameters, averaged over processes."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # Fused optimizers read both in the order of memory, whatever their strides; backward() would see to it.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        average_gradients(parameters)
        optimizer.step()

    def optimizer(self, number: int) -> LightningOptimizer:
        """Optimizer ``number`` of :meth:`configure_optimizers`, of which there is one at least; -1 for the last."""
        found = self.optimizers()
        return cast(LightningOptimizer, found[number] if isinstance(found, list) else found)

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

    def finish_step(self, env_steps: int, returns: Tensor, lengths: Tensor) -> None:
        """Count one training step; every ``trainer.log_every_n_steps`` steps the means of ``metrics`` are logged.

        Many steps may be trained on what was collected at once: of these one is logged, with the means since the last
        point, as a curve has one value at each number of environment steps.

        Args:
            env_steps: the x-axis, environment steps so far of all processes.
            returns: ``[n]`` of the episodes that ended, logged as ``train/return``.
            lengths: ``[n]`` agent steps, logged as ``train/episode_length``.
        """
        self.env_steps = env_steps
        self._steps += 1
        self.metrics.add_episodes(returns, lengths)
        if self._steps >= self.trainer.log_every_n_steps and env_steps > self._logged_at:
            self.log_means()

    def log_means(self) -> None:
        """Log the means of what was counted since the last time, if anything was, and start anew."""
        if not self._steps:
            return
        self._steps, self._logged_at = 0, self.env_steps
        metrics = {f"train/{name}": value for name, value in self.metrics.pop(self.device).items()}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
        self.log_points(metrics)

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
        """Log :meth:`evaluation_metrics` as ``test/…``."""
        self._log_evaluation(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return ``batch``, the film that the DataModule made: callbacks write it."""
        return batch

    def _log_evaluation(self, batch: Any, prefix: str) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in self.evaluation_metrics(batch).items()}
        # For callbacks (best checkpoint, early stopping) and the printed table; the logger gets exact step numbers.
        self.log_dict(metrics, batch_size=1, logger=False)
        if not self.trainer.sanity_checking:
            self.log_points({name: float(value) for name, value in metrics.items()})

    def evaluation_metrics(self, batch: Any) -> dict[str, Tensor]:
        """Scalars to log of an evaluation of all processes, by name; ``return`` is what checkpoints are compared by."""
        raise NotImplementedError

    def gather(self, rows: Tensor) -> Tensor:
        """``[..., n]`` of this process → ``[..., n of all processes]``."""
        if world_size() == 1:
            return rows
        return self.all_gather(rows.to(self.device)).movedim(0, -2).flatten(-2)

    # Policy --------------------------------------------------------------------------------------------------------

    def policy_state(self) -> State:
        """The policy as :func:`lit_metarl.load_policy` reads it: :func:`policy_state_of` one network."""
        raise NotImplementedError

    # Resume --------------------------------------------------------------------------------------------------------

    def counters(self) -> State:
        """Python numbers that are part of the training state; a subclass adds its own."""
        return {"env_steps": self.env_steps}

    def load_counters(self, state: State) -> None:
        """Inverse of :meth:`counters`."""
        self.env_steps = state["env_steps"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save: counters, running metrics, and how to rebuild the policy."""
        checkpoint["algorithm"] = {
            "schema": SCHEMA,
            "name": type(self).__qualname__,
            "counters": self.counters(),
            # of every process: means are over all of them
            "metrics": gather_states({"steps": self._steps, "logged_at": self._logged_at} | self.metrics.state()),
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
        if self._trainer is not None and self.trainer.state.fn == "fit":
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
        own = state["metrics"][self.global_rank]
        self._steps, self._logged_at = own["steps"], own.get("logged_at", -1)  # which older checkpoints have not
        self.metrics.load_state(own, self.device)

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


def parameters_of(optimizer: LightningOptimizer) -> list[nn.Parameter]:
    """Parameters of all groups of ``optimizer``."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def policy_state_of(recipe: State, module: nn.Module, sizes: Sizes, action_scale: float = 1.0) -> State:
    """Recipe and weights of a policy network, as :func:`lit_metarl.load_policy` reads them.

    Args:
        recipe: of the factory that built ``module`` (:func:`lit_metarl.nn.recipe.recipe_of`).
        module: the network.
        sizes: that it was built for.
        action_scale: factor between its continuous actions and the simulator's range.
    """
    weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    return recipe | {"sizes": sizes._asdict(), "action_scale": action_scale, "state_dict": weights}
