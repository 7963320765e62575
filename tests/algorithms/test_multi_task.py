"""Without adaptation steps a meta-learner is a multi-task one: the policy gradient of the mean return over tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from meta_cases import attach, batch_of, random_rounds
from test_configs import CONFIGS

from lit_metarl.algorithms import MAML, SGMRL
from lit_metarl.cli import run
from lit_metarl.optim import PPO, TRPO, VPG
from lit_metarl.tracking import connect
from lit_metarl.types import ConfigError


def make(outer: Any, of: type[MAML] | type[SGMRL] = MAML) -> Any:
    torch.manual_seed(0)
    return attach(of(3, 2, outer=outer).double())


@pytest.mark.parametrize("of", [MAML, SGMRL])  # without and with a correction for what inner data owes to θ
def test_an_update_is_a_step_along_the_mean_of_the_tasks_policy_gradients(of: Any) -> None:
    module = make(VPG(lr=0.5, optimizer_class="SGD"), of)
    (data,) = random_rounds(module, steps=0)
    signals = module.process(data)
    before = [parameter.detach().clone() for parameter in module.policy.parameters()]
    total = 0.0
    for task in range(len(data.reward)):
        for n in range(data.reward.shape[1]):
            for t in range(int(data.mask[task, n].sum())):
                log_prob = module.policy(data.obs[task, n, t]).log_prob(data.action[task, n, t])
                total = total + log_prob * signals.advantage[task, n, t] / data.reward.numel()
    expected = torch.autograd.grad(total, list(module.policy.parameters()))
    module.outer.update(module.iteration([data], optimizer=module.optimizer(0)))
    for old, new, gradient in zip(before, module.policy.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old + 0.5 * gradient)


@pytest.mark.parametrize("outer", [VPG(), PPO(adaptive_kl=True), TRPO()])
def test_every_outer_update_moves_the_policy_and_improves_its_surrogate(outer: Any) -> None:
    module = make(outer)
    rounds = random_rounds(module, steps=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = None if isinstance(outer, TRPO) else module.optimizer(0)
    metrics = module.outer.update(module.iteration(rounds, optimizer=optimizer))
    assert "inner_kl" not in metrics
    assert all(value.isfinite() for value in metrics.values())
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("outer", [VPG(), TRPO()])
def test_there_is_no_step_size_to_learn(outer: Any) -> None:
    module = attach(MAML(3, 2, outer=outer, learn_inner_lr=True))
    with pytest.raises(ConfigError, match=r"model\.learn_inner_lr = True cannot be used: without adaptation steps"):
        module.training_step(batch_of(module, random_rounds(module, steps=0)), 0)


def test_it_is_reached_by_yaml(tmp_path: Path) -> None:
    files = "experiment/half_cheetah_velocity_context_maml", "overlay/smoke_meta"
    words = [f"--config={CONFIGS / file}.yaml" for file in files]
    run(["fit", *words, "--data.adaptation_steps=0", "--trainer.accelerator=cpu"])
    (directory,) = (tmp_path / "mlruns" / "runs").iterdir()
    metrics = connect("mlruns").get_run(directory.name).data.metrics
    assert metrics["eval/return"] == metrics["eval/return_after_0_steps"]
    assert "eval/return_after_1_steps" not in metrics
    saved = torch.load(directory / "last.ckpt", weights_only=True)
    assert saved["algorithm"]["policy"]["sizes"]["context"] == 1
