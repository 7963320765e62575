"""What is not finite is named, with the step sizes, and never saved over a good checkpoint, for every algorithm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from meta_cases import quiet_trainer
from test_cli import CONFIGS
from test_resume import CASES, NAVIGATION, make_meta, make_sac
from torch import nn

from lit_metarl.__main__ import main
from lit_metarl.algorithms import MAML, SAC, TRPOMAML, PreconditionedSAC, ProMP
from lit_metarl.callbacks import RunCheckpoint
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.losses.preconditioning import LogCosine
from lit_metarl.nn import CriticFactory
from lit_metarl.optim import PPO, VPG
from lit_metarl.tracking import connect, list_runs
from lit_metarl.types import ConfigError, DivergenceError, Sizes

PENDULUM = Gymnasium("Pendulum-v1")


class Huge(gymnasium.Wrapper):
    """Pendulum with rewards of 1e30: finite, but their square is not."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gymnasium.make("Pendulum-v1", **kwargs))

    def step(self, action: np.ndarray) -> Any:
        obs, reward, *rest = self.env.step(action)
        return obs, 1e30 * float(reward), *rest


def train(module: Any, datamodule: Any, epochs: int = 6, every_n_batches: int = 1, **kwargs: Any) -> Trainer:
    checkpoint = RunCheckpoint(every_n_batches=every_n_batches)
    callbacks = [checkpoint, *kwargs.pop("callbacks", [])]
    trainer = quiet_trainer(max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True, **kwargs)
    trainer.fit(module, datamodule)
    return trainer


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


class Poison(Callback):
    """Sets one entry of one parameter, or of an optimizer's state, to ``value`` after the third update."""

    def __init__(self, value: float, of_optimizer: bool) -> None:
        self.value, self.of_optimizer, self.batches = value, of_optimizer, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1
        if self.batches != 3:
            return
        state = trainer.optimizers[-1].state if self.of_optimizer else {}
        target = next(iter(state.values()))["exp_avg"] if state else next(pl_module.parameters())
        with torch.no_grad():
            target.view(-1)[0] = self.value


POISONS = [
    (case, value, of_optimizer)
    for case in ("SAC-gymnasium", "PreconditionedSAC-second_phase", "ProMP", "TRPOMAML")
    for value in (float("nan"), float("inf"), 1e30)
    for of_optimizer in (False, True)
    if not of_optimizer or (case != "TRPOMAML" and value != 1e30)  # it has none; a large moment is finite
]


@pytest.mark.parametrize(("case", "value", "of_optimizer"), POISONS)
def test_a_poisoned_state_is_never_saved(case: str, value: float, of_optimizer: bool, tmp_path: Path) -> None:
    module, datamodule = CASES[case]()
    with pytest.raises(DivergenceError, match=r"training diverged: .*Lower a step size \(model\.") as caught:
        train(module, datamodule, callbacks=[Poison(value, of_optimizer)])
    expected = r"optimizer \d|not finite" if of_optimizer else "parameter .* is not finite|is not finite|is (nan|inf)"
    caught.match(expected)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    parameters = tensors(saved["state_dict"]) + tensors(saved["optimizer_states"])
    assert all(t.isfinite().all() and t.abs().max() < 1e20 for t in parameters if t.is_floating_point() and t.numel())
    assert "last.ckpt is of step" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: make_sac(PENDULUM, actor_lr=1e6, critic_lr=1e6), r"model.actor_lr = 1e\+06"),
        (lambda: make_sac(PENDULUM, temperature_lr=1e30), r"model.temperature_lr = 1e\+30"),
        (
            lambda: make_sac(PENDULUM, PreconditionedSAC, {"warmup_updates": 3}, critic_lr=1e10),
            r"model.critic_lr = 1e\+10",
        ),
        (lambda: make_meta(MAML, NAVIGATION, outer=VPG(1e30)), r"model.outer.lr = 1e\+30"),
        (lambda: make_meta(ProMP, NAVIGATION, outer=PPO(1e30)), r"model.outer.lr = 1e\+30"),
        (lambda: make_meta(MAML, NAVIGATION, inner_lr=1e30), r"model.inner_lr = 1e\+30"),
        (lambda: make_meta(TRPOMAML, NAVIGATION, inner_lr=1e30), r"model.inner_lr = 1e\+30"),
        (lambda: make_sac(Gymnasium("test_divergence.Huge")), "huge rewards"),
    ],
    ids=["SAC", "SAC-temperature", "PreconditionedSAC", "MAML", "ProMP", "MAML-inner", "TRPO-inner", "reward"],
)
def test_a_run_that_leaves_the_finite_numbers_says_which_step_size(build: Any, key: str) -> None:
    with pytest.raises(DivergenceError, match=rf"training diverged: .*{key}"):
        train(*build())


def test_a_run_that_diverged_has_a_metric_at_the_step_of_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--config={CONFIGS / name}.yaml" for name in ("experiment/sac_small_pendulum", "overlay/smoke")]
    words += ["--trainer.accelerator=cpu", "--model.actor_lr=1e6", "--model.critic_lr=1e6"]
    assert main(["fit", *words]) == 2
    (step,) = re.findall(r"training diverged: .* after (\d+) environment steps", capsys.readouterr().err)
    (run,) = list_runs("mlruns", "lit_metarl", "seed")
    points = connect("mlruns").get_metric_history(run.run_id, "diverged")
    assert [(point.step, point.value) for point in points] == [(int(step), 1.0)]
    assert run.status == "FAILED"


class TwiceUsed(nn.Module):
    """Q of one hidden layer that is used twice, which no layer-wise kernel can treat."""

    members = 2

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        size = obs_dim + action_dim
        self.weight = nn.Parameter(torch.zeros(2, size, size))

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        x = torch.cat([obs, action], -1)
        return torch.tanh(x @ self.weight @ self.weight).sum(-1)


class TwiceUsedCritic(CriticFactory):
    def build(self, sizes: Sizes) -> nn.Module:
        return TwiceUsed(sizes.obs, sizes.action)


def test_a_critic_that_the_kernel_cannot_treat_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"model.critic = TwiceUsed cannot be preconditioned by LogCosine.*use JVP"):
        PreconditionedSAC(3, 1, critic=TwiceUsedCritic())
    assert SAC(3, 1, critic=TwiceUsedCritic()).critic.members == 2


def test_trying_the_critic_draws_nothing_from_the_global_stream() -> None:
    torch.manual_seed(0)
    SAC(3, 1)
    after_sac = torch.get_rng_state()
    torch.manual_seed(0)
    PreconditionedSAC(3, 1, objective=LogCosine())
    assert torch.equal(after_sac, torch.get_rng_state())


def test_an_action_that_is_not_finite_is_the_policys_fault_in_every_evaluation() -> None:
    module, datamodule = make_meta(MAML, Navigation2D(max_episode_steps=4))
    sac, replay = make_sac(PENDULUM)
    for network in (module.policy, sac.actor):
        nn.init.constant_(network.trunk[-1].bias, float("nan"))
    for algorithm, data in ((module, datamodule), (sac, replay)):
        for command in ("validate", "test"):
            with pytest.raises(DivergenceError, match="an action of the policy is not finite"):
                getattr(quiet_trainer(), command)(algorithm, data)
