"""The contract of what a checkpoint holds, and environments as its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from oracles import assert_same, rollout, through_file

from lit_metarl.envs.base import BatchedEnv, EnvFactory
from lit_metarl.envs.tasks import TaskFamily

Trace = list[Any]
"""What an object did: arrays, tensors and numbers."""


@dataclass(frozen=True)
class Case:
    """How to make an object of some seed, and how to use it.

    Attributes:
        make: seed → a fresh object; of one seed where that is a setting, not a state.
        begin: uses a fresh object for a while; what it does depends on the number.
        go_on: uses it after that, and says all that can be seen.
        forgetful: without state, so that nothing tells one object from another.
        load: gives it the state.
    """

    make: Callable[[int], Any]
    begin: Callable[[Any, int], None]
    go_on: Callable[[Any], Trace]
    forgetful: bool = False
    load: Callable[[Any, Any], None] = lambda made, state: made.load_state_dict(state)


def assert_goes_on(case: Case) -> None:
    """Saved, written, read and loaded, it goes on bit for bit: in a fresh object and in one with another history."""
    first = case.make(1)
    case.begin(first, 0)
    state = first.state_dict()
    saved = through_file(state)
    expected = case.go_on(first)
    assert_same(through_file(state), saved)  # it is a copy: what came after did not change it
    fresh, used = case.make(2), case.make(3)
    case.begin(used, 1)
    if not case.forgetful:
        with pytest.raises(AssertionError):  # without the state it goes on differently
            assert_same(case.go_on(used), expected)
    for other in (used, fresh):
        case.load(other, saved)
        if other is fresh:  # saved again at once, as when a run is stopped while it resumes
            assert_same(through_file(other.state_dict()), saved)
        assert_same(case.go_on(other), expected)


def actions(env: BatchedEnv, steps: int, seed: int) -> np.ndarray:
    rng, spec = np.random.default_rng(seed), env.spec
    if spec.num_actions is not None:
        return rng.integers(spec.num_actions, size=(steps, env.num_envs))
    return rng.uniform(-1, 1, (steps, env.num_envs, spec.action_dim)).astype(np.float32)


def env_case(
    factory: EnvFactory,
    num_envs: int = 2,
    before: int = 26,
    after: int = 40,
    tasks: Callable[..., Any] | None = None,
    ends: bool = True,
) -> Case:
    """Saved ``before`` steps after the first reset, when the tasks of the next episodes are known already.

    Args:
        factory: of the environments.
        num_envs: how many.
        before: steps before the state is saved.
        after: steps after it.
        tasks: (environments, number) → tasks; of a task family they are sampled.
        ends: whether episodes end within the steps after it.
    """
    if isinstance(factory, TaskFamily):
        tasks = lambda env, number: factory.sample(num_envs, np.random.default_rng(number))  # noqa: E731

    def begin(env: BatchedEnv, number: int) -> None:
        assert env.resumes_exactly, env.resume_note
        if tasks is not None:
            env.set_tasks(tasks(env, 2 * number))
        env.reset()
        rollout(env, actions(env, before if number == 0 else 3, number))
        assert env.resumes_exactly, env.resume_note
        assert env.resume_note == ""
        if tasks is not None:
            env.set_tasks(tasks(env, 2 * number + 1))

    def go_on(env: BatchedEnv) -> Trace:
        trace = rollout(env, actions(env, after, 99))
        assert (len(trace) > 4 * after) is ends
        return [*trace, env.reset(), *rollout(env, actions(env, 3, 98))]

    return Case(partial(factory.make, num_envs), begin, go_on)
