"""Rounds of experience of many tasks, adapted to in between: the one way from a meta-policy to its data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_metarl.data.stepping import finite_action
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.types import Adaptation, MetaPolicy, Trajectories


def collect_rounds(
    policy: MetaPolicy, device: torch.device, simulators: Sequence[TaskSimulator], generator: torch.Generator
) -> tuple[list[Trajectories], list[Adaptation]]:
    """A round of each of ``simulators`` on the CPU, and the adaptation that each was collected with.

    Args:
        policy: acts, and adapts after every round but the last.
        device: that the policy is on.
        simulators: one per round, all with the same tasks; it may be the same one every time.
        generator: of the policy's draws.
    """
    adaptations = [policy.before_adaptation(simulators[0].context)]
    rounds = [act_round(policy, device, simulators[0], adaptations[0], generator)]
    for simulator in simulators[1:]:
        adaptations.append(adapt(policy, device, adaptations[-1], rounds[-1]))
        rounds.append(act_round(policy, device, simulator, adaptations[-1], generator))
    return rounds, adaptations


def adapt(policy: MetaPolicy, device: torch.device, adaptation: Adaptation, trajectories: Trajectories) -> Adaptation:
    """The policy's knowledge of the tasks after ``trajectories``, which are moved to its ``device``."""
    return policy.adapt(adaptation, Trajectories(*(x.to(device) for x in trajectories)))


def act_round(
    policy: MetaPolicy,
    device: torch.device,
    simulator: TaskSimulator,
    adaptation: Adaptation,
    generator: torch.Generator,
) -> Trajectories:
    """One episode of every environment of ``simulator``, on the CPU.

    Raises:
        DivergenceError: an action is not finite.
    """
    acting = policy.begin_round(adaptation, simulator.trajectories, generator)

    def choose(obs: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = policy.sample_actions(acting, obs.to(device), generator)
        return finite_action(policy, action), log_prob.cpu()

    return simulator.run(choose)
