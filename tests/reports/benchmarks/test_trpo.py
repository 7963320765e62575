"""The benchmark of MAML-TRPO: the plain implementation takes the same steps; never how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from meta_cases import random_rounds
from report_cases import code_of

from lit_metarl.algorithms import TRPOMAML
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.nn import GaussianMLP
from lit_metarl.reports.benchmarks.naive_maml import Episodes, HalfCheetah, PlainMAMLTRPO, Settings
from lit_metarl.reports.benchmarks.timing import PeakPSS
from lit_metarl.reports.benchmarks.trpo import NAMES, table_of
from lit_metarl.reports.benchmarks.trpo_plain import (
    CHEETAH,
    NAVIGATION,
    OPTIMISATION,
    SAMPLING,
    WHOLE,
    WORKS,
    Times,
    Work,
    serve_plain,
)
from lit_metarl.reports.benchmarks.trpo_timing import OURS, PLAIN, Measured, Result, contender, module_of, serve_ours
from lit_metarl.reports.section import ReportError
from lit_metarl.types import Trajectories

TINY = {
    "navigation": Work(NAVIGATION, 2, 3, 4, (5,), 3.0),
    "half_cheetah": Work(CHEETAH, 2, 3, 4, (5,), 4.0),
}
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")  # nothing is evaluated


def episodes_of(plain: PlainMAMLTRPO, trajectories: Trajectories) -> list[Episodes]:
    """Every task's data, time first."""
    fields = trajectories.obs, trajectories.action, trajectories.reward, trajectories.mask
    return [plain.episodes(*(x.transpose(0, 1) for x in task)) for task in zip(*fields, strict=True)]


@pytest.mark.parametrize("full", [True, False], ids=["full episodes", "short episodes"])
def test_the_plain_implementation_takes_the_same_steps(full: bool) -> None:
    torch.manual_seed(0)
    module = TRPOMAML(3, 2, policy=GaussianMLP([5, 4])).double()
    plain, fractions = PlainMAMLTRPO(Settings.of(module)), []
    for seed in range(3):
        rounds = random_rounds(module, tasks=4, full=full, seed=seed)
        before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
        fractions.append(float(module.outer.update(module.iteration(rounds))["step_fraction"]))
        plain.update(list(zip(*(episodes_of(plain, data) for data in rounds), strict=True)))
        for name, p in module.policy.named_parameters():
            assert not torch.equal(p, before[name])
            torch.testing.assert_close(plain.params[name], p, rtol=1e-6, atol=1e-7)
    assert 0.0 < min(fractions) < 1.0  # the line search had something to do


def test_both_adapt_alike() -> None:
    torch.manual_seed(0)
    module = TRPOMAML(3, 2, policy=GaussianMLP([5, 4])).double()
    plain = PlainMAMLTRPO(Settings.of(module))
    (data, _) = random_rounds(module)
    adapted = module.adapt(module.before_adaptation(data.context), data)
    for task, episodes in enumerate(episodes_of(plain, data)):
        for name, p in plain.adapt(plain.params, episodes, create_graph=False).items():
            torch.testing.assert_close(adapted[f"policy.{name}"][task], p)


@pytest.mark.parametrize("name", NAMES)
def test_both_are_in_the_same_environments(name: str) -> None:
    """The simulator of one task follows the plain data: same observations and rewards for the same actions."""
    work, goal = TINY[name], {"navigation": np.zeros(2), "half_cheetah": np.array(-1.0)}[name]
    simulator = TaskSimulator(work.family(1), 1, work.trajectories, 0, 0.1, False)
    (task,) = simulator.family.sample(1, np.random.default_rng(0))
    simulator.set_tasks({task: goal[None]})
    module = TRPOMAML(simulator.env.spec.obs_dim, simulator.env.spec.action_dim, action_scale=0.1)
    plain = PlainMAMLTRPO(Settings.of(module))
    envs, start = work.plain_envs(), simulator.stepper.reset()
    if name == "half_cheetah":  # which starts with noise
        state = simulator.env.simulation
        envs = SyncVectorEnv([lambda row=row: Started(state, row) for row in range(work.trajectories)])
    data = plain.sample_task(envs, goal, work.horizon)[0]
    torch.testing.assert_close(data.obs[0], start)
    env = simulator.stepper
    for t in range(len(data.obs)):
        seen, alive = env.observe() if t else start, data.mask[t]
        torch.testing.assert_close(seen * alive[:, None], data.obs[t] * alive[:, None], rtol=1e-5, atol=1e-6)
        step = env.step(np.clip(0.1 * data.action[t].numpy(), -1.0, 1.0))
        torch.testing.assert_close(step.reward * alive, data.reward[t], rtol=1e-4, atol=1e-5)
        if t + 1 < len(data.obs):
            assert torch.equal(data.mask[t + 1] > 0, (alive > 0) & ~step.terminated)
    assert (data.mask.amin() == 0) == (name == "navigation")  # whose points reach the goal, some at once


class Started(HalfCheetah):
    """A half-cheetah that starts where one of the simulator's does."""

    def __init__(self, simulation: Any, row: int) -> None:
        super().__init__()
        self.start = simulation.field("qpos")[row].copy(), simulation.field("qvel")[row].copy()

    def reset_model(self) -> np.ndarray:
        self.set_state(*self.start)
        return np.concatenate([self.data.qpos[1:], self.data.qvel])


@pytest.mark.parametrize("name", [PLAIN, OURS])
def test_an_iteration_is_timed_part_by_part(name: str) -> None:
    here, there = Pipe()
    for _ in range(2):
        here.send(None)  # asked for before it is ready, so that all happens in this process
    threads = torch.get_num_threads()
    work = TINY["half_cheetah"]
    if name == OURS:
        serve_ours(there, work, 1, 2)
        assert torch.get_num_threads() == threads
    else:
        serve_plain(there, work, Settings.of(module_of(work, 1)[1]), 1, 2)
        torch.set_num_threads(threads)  # which it has for good, in a process of its own
    assert here.recv() is None
    for times in (here.recv(), here.recv()):
        assert list(times) == [SAMPLING, OPTIMISATION, WHOLE]
        assert min(times[SAMPLING].wall, times[OPTIMISATION].wall) > 0
        assert times[WHOLE].wall >= times[SAMPLING].wall + times[OPTIMISATION].wall
        assert times[WHOLE].cpu >= times[SAMPLING].cpu


def test_a_process_that_has_ended_is_named() -> None:
    with contender(PLAIN, TINY["navigation"], 1, 1) as (process, ask):
        process.kill()
        process.join()
        for _ in range(2):
            with pytest.raises(ReportError, match="the process of 2-D navigation, plain, has ended"):
                ask()


def test_the_plain_process_imports_what_a_plain_program_would() -> None:
    code = (
        "import sys, lit_metarl.reports.benchmarks.trpo_plain; "
        "heavy = {'lightning', 'torchmetrics', 'mlflow', 'jsonargparse', 'sympy', 'matplotlib'} & sys.modules.keys(); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_is_watched() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("the system does not tell")
    code = "input(); block = bytearray(b'1') * 2**28; print('held', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        watch = PeakPSS(process.pid)
        before = watch.value
        with watch:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "held\n"
        process.communicate("\n")
    assert 0.2 < watch.value - before < 0.5  # 1/4 GiB


def test_the_text_says_what_is_reached() -> None:
    def both(plain: float, ours: float) -> dict[str, dict[str, Times]]:
        return {
            name: dict.fromkeys((SAMPLING, OPTIMISATION, WHOLE), Times(seconds, seconds / 2))
            for name, seconds in ((PLAIN, plain), (OURS, ours))
        }

    rounds = [both(8.0, 2.0), both(9.0, 3.0), both(30.0, 6.0)]
    measured = Measured(rounds, {PLAIN: 0.25, OURS: 0.5}, {PLAIN: 1.25, OURS: 1.0})
    settings = {"works": list(NAMES), "threads": [1], "rounds": 3}
    text = table_of(Result(settings, {"cpus": 2, "load": 0.1}, {(name, 1): measured for name in NAMES}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "others use the CPUs" not in text
    assert "2-D navigation · 20 tasks × 20 trajectories × 100 steps, 1 inner step · policy 100-100" in lines
    row = "1 iteration 9.00 4.50 3.00 1.50 4.00 (3.00 to 5.00) 4.00 goal"
    assert f"{row} ≥ 3: reached" in lines
    assert f"{row} ≥ 4: reached" in lines
    assert "1 MiB at most: plain 1,280 (at first 256), ours 1,024 (at first 512); goal < plain: reached" in lines


def test_works_are_those_of_the_command() -> None:
    assert tuple(WORKS) == NAMES
    assert code_of(["benchmark", "trpo", "--works", "ant"]) == 2
