"""What the meta-learning benchmark measures and how it computes; never how fast anything is."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from meta_cases import unadapted
from report_cases import code_of

from lit_metarl.algorithms import MAML, SGMRL
from lit_metarl.data.trajectories import TaskSimulator
from lit_metarl.envs.locomotion_tasks import Direction
from lit_metarl.nn import GaussianMLP
from lit_metarl.reports.benchmarks import meta_timing, physics
from lit_metarl.reports.benchmarks.meta import COMPARISONS, table_of
from lit_metarl.reports.benchmarks.meta_timing import (
    COLLECTION_TASKS,
    Measured,
    Memory,
    Result,
    measure,
    time_bare,
    time_collection,
)
from lit_metarl.reports.benchmarks.timing import META_PARTS, OTHER, forget_peak, resident, spread
from lit_metarl.reports.command import main, parse
from lit_metarl.reports.section import markers

TINY = [
    "benchmark",
    "meta",
    "--tasks",
    "2",
    "--trajectories",
    "2",
    "--horizon",
    "3",
    "--rounds",
    "1",
    "--threads",
    "1",
    "--hidden",
    "4",
]
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")  # nothing is evaluated
NAMES = {name for pair in COMPARISONS for name in pair[:2]}


def measured(iteration: float, bare: float, **own: float) -> Measured:
    """Written out: a quarter of an iteration each is physics, adaptation, update and Lightning."""
    parts = dict.fromkeys(META_PARTS, 0.0)
    parts |= dict.fromkeys(("physics", "adaptation", "update", OTHER), iteration / 4)
    return Measured(1000, parts, bare, own, {40: 1e-5, 400: 2e-5})


@pytest.fixture(scope="module")
def result() -> Result:
    return measure(parse(TINY)[1])


def test_every_round_measures_everything(result: Result) -> None:
    assert len(result.measured) == 1  # the round that warms up is dropped
    (one,) = result.measured
    assert one.env_steps == 2 * 2 * 3 * 2  # tasks × trajectories × steps × rounds of an iteration
    assert tuple(one.parts) == tuple(META_PARTS)
    assert min(one.parts.values()) > 0
    assert one.iteration == pytest.approx(sum(one.parts.values()))
    assert one.bare > 0
    assert one.own.keys() == NAMES
    assert min(one.own.values()) > 0
    assert sorted(one.collection) == [2 * tasks for tasks in COLLECTION_TASKS]
    assert min(one.collection.values()) > 0


def test_memory_is_that_of_the_process(result: Result) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell")
    assert list(result.memory) == ["MAML", "MAML-TRPO"]
    for memory in result.memory.values():
        assert 0.05 < memory.baseline <= memory.peak < 100
    block = mmap.mmap(-1, 2**27)  # 1/8 GiB, given back as a whole, also where freed memory is kept
    np.frombuffer(block, dtype=np.uint8)[:] = 1
    before = resident("VmRSS")
    assert resident("VmHWM") >= before
    block.close()
    assert before - resident("VmRSS") == pytest.approx(1 / 8, abs=0.02)
    forget_peak()
    assert resident("VmHWM") == pytest.approx(resident("VmRSS"), abs=0.02)


def test_an_iteration_of_another_algorithm_is_collection_and_its_own() -> None:
    one = measured(iteration=8.0, bare=2.0, MAML=4.0, other=6.0)
    assert one.iteration == 8.0
    assert one.iteration_of("MAML") == 8.0
    assert one.iteration_of("other") == 10.0


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [measured(1.0, 0.9), measured(10.0, 5.0), measured(4.0, 3.2)]
    assert spread(m.bare / m.iteration for m in rounds) == pytest.approx((0.8, 0.5, 0.9))


def test_the_text_says_what_is_reached() -> None:
    own = dict.fromkeys(NAMES, 4.0) | {"SG-MRL, LeaveOneOut": 6.0, "SG-MRL, CrossTask": 4.08}
    memory = Memory()
    memory.baseline, memory.peak = 0.5, 1.25
    settings = {"robot": "ant", "tasks": 3, "trajectories": 2, "horizon": 5, "rounds": 1, "hidden": [8, 4]}
    text = table_of(
        Result(settings, {"threads": 2, "cpus": 2, "load": 0.1}, {"MAML": memory}, [measured(8.0, 7.0, **own)])
    )
    lines = {line.split("   ")[0].strip(): " ".join(line.split()) for line in text.splitlines()}
    assert "others use the CPUs" not in text
    assert "3 tasks × 2 trajectories × 5 steps" in text
    assert lines["MAML's iterations"] == "MAML's iterations 125 (125 to 125) env steps/s"
    assert lines["whole to bare"] == "whole to bare 0.875 (0.875 to 0.875) goal ≥ 0.85: reached"
    assert lines["update"].startswith("update 25.0 % 2000.0")
    assert "4080.0 MAML 1.010 (1.010 to 1.010) goal ≤ 1.02: reached" in lines["SG-MRL, CrossTask"]
    assert "6000.0 MAML 1.250 (1.250 to 1.250) goal ≤ 1.15: missed" in lines["SG-MRL, LeaveOneOut"]
    assert lines["SG-MRL, LinearisedLeaveOneOut"].endswith("1.000 (1.000 to 1.000)")  # no goal
    assert (
        "resident memory, MAML: 0.50 GiB before the first iteration, at most 1.25 GiB (+0.75); goal ≤ 1.5: reached"
        in text
    )
    assert lines["400"] == "400 20.00 (20.00 to 20.00) 2.00 (2.00 to 2.00)"


def test_bare_physics_takes_as_many_steps_with_the_same_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = TaskSimulator(Direction(max_episode_steps=4, threads=1), 2, 3, 0, 0.1, False)
    constant = torch.full((2, 3, 6), 5.0)
    data = simulator.run(lambda obs: (constant, torch.zeros(2, 3)))
    batches = []

    class Spy(physics.Batch):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            self.steps: list[int] = []
            batches.append(self)

        def step(self, nstep: int) -> None:
            assert torch.get_num_threads() == 1
            np.testing.assert_allclose(self.ctrl_seen, 0.5)
            self.steps.append(nstep)
            super().step(nstep=nstep)

        def bind(self, name: str) -> np.ndarray:
            self.ctrl_seen = super().bind(name)
            return self.ctrl_seen

    monkeypatch.setattr(physics, "Batch", Spy)
    threads = torch.get_num_threads()
    assert time_bare(simulator, [data, data]) > 0
    assert torch.get_num_threads() == threads
    assert batches[0].steps == [simulator.env.robot.frame_skip] * 8  # two rounds of four agent steps
    assert batches[0].state.shape[0] == 6


def test_a_collection_is_divided_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = TaskSimulator(Direction(max_episode_steps=4, threads=1), 2, 3, 0, 0.1, False)
    module = MAML(simulator.env.spec.obs_dim, 6, policy=GaussianMLP([4]))
    clock = iter([10.0, 58.0])
    monkeypatch.setattr(meta_timing.time, "perf_counter", lambda: next(clock))
    assert time_collection(simulator, module, torch.Generator(), times=4) == 48.0 / (4 * 2 * 3 * 4)


def test_an_algorithm_starts_from_the_parameters_that_collected() -> None:
    simulator = TaskSimulator(Direction(max_episode_steps=4, threads=1), 2, 3, 0, 0.1, False)
    training = MAML(simulator.env.spec.obs_dim, 6, policy=GaussianMLP([4]))
    adaptation, generator = unadapted(training, 2), torch.Generator()
    rounds = [simulator.run(lambda obs: training.sample_actions(adaptation, obs, generator)) for _ in range(2)]
    state = {name: value.clone() for name, value in training.state_dict().items()}
    other = SGMRL(simulator.env.spec.obs_dim, 6, policy=GaussianMLP([4]))
    seen = []
    update = other.iteration
    other.iteration = lambda *r: seen.append({n: v.clone() for n, v in other.state_dict().items()}) or update(*r)
    for _ in range(2):
        assert meta_timing.time_own(other, state, rounds) > 0
        moved = other.state_dict()
        assert any(not torch.equal(moved[name], state[name]) for name in state)  # it did update
    assert all(torch.equal(each[name], state[name]) for each in seen for name in state)


def test_write_puts_the_text_into_a_document(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_metarl.reports.benchmarks.meta_timing.measure", lambda args: result)
    begin, end = markers("meta-benchmark")
    file = tmp_path / "speed.md"
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert main([*TINY, "--write", str(file)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in (*META_PARTS, *NAMES))
    assert file.read_text() == f"before\n{begin}\n\n```text\n{text}```\n{end}\nafter\n"
    assert main([*TINY, "--write", str(tmp_path / "nowhere.md")]) == 2
    assert "nowhere.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "1"], "--tasks: '1' is not an integer of at least 2: a credit across tasks"),
        (["--horizon", "0"], "--horizon: '0' is not an integer of at least 1"),
        (["--hidden", "64", "x"], "--hidden: 'x' is not an integer"),
        (["--robot", "cheetah"], "--robot: unknown robot 'cheetah'"),
        (["--steps", "3"], "--steps"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert code_of([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert torch.get_num_threads() == threads
