"""Two processes on the CPU: the averaged gradient is the joined batch's, and every process's state survives resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from meta_cases import attach, batch_of, random_rounds
from test_resume import metrics_of

from lit_metarl.__main__ import main
from lit_metarl.algorithms import MAML, PEARL, SAC
from lit_metarl.losses.critics import critic_loss
from lit_metarl.losses.sac import actor_loss
from lit_metarl.nn import (
    EnsembleCriticMLP,
    GaussianMLP,
    HyperActor,
    HyperCritic,
    MetaLearned,
    ProductOfGaussians,
    TanhGaussianMLP,
)
from lit_metarl.optim import PPO, TRPO, VPG
from lit_metarl.tracking import connect
from lit_metarl.types import TaskMinibatch, Trajectories, Transition

CONFIGS = Path(__file__).parents[1] / "configs"
M, O, A = 12, 4, 2  # noqa: E741


def fixed_case() -> tuple[SAC, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    sac = SAC(O, A, TanhGaussianMLP([8]), EnsembleCriticMLP([8]))
    batch = {
        "obs": torch.randn(M, O),
        "action": torch.randn(M, A),
        "target": torch.randn(M),
        "noise": torch.randn(M, A),
    }
    return sac, batch


def gradients(rows: slice) -> dict[str, torch.Tensor]:
    """Gradients that ``minimise`` leaves for critic and actor on ``rows`` of the fixed batch."""
    sac, batch = fixed_case()
    obs, action, target, noise = (batch[key][rows] for key in ("obs", "action", "target", "noise"))
    still = [torch.optim.SGD(net.parameters(), lr=0.0) for net in (sac.critic, sac.actor)]
    sac.minimise(critic_loss(sac.critic(obs, action), target), still[0])
    sample, log_prob = sac.actor(obs).sample(noise)
    sac.minimise(actor_loss(sac.critic(obs, sample), log_prob, torch.tensor(0.1)), still[1])
    return {name: p.grad for name, p in sac.named_parameters() if p.grad is not None}


META = {
    "VPG": VPG(lr=0.5, optimizer_class="SGD"),
    # KL of the first two tasks 0.12910, of all 0.12958: alone, the first process would halve the penalty below 0.12935
    "PPO": PPO(lr=0.05, epochs=3, adaptive_kl=True, kl_target=1.5 * 0.12935),
    "TRPO": TRPO(max_kl=0.02),
}


def meta_update(outer: str, tasks: slice) -> dict[str, torch.Tensor]:
    """Parameters and KL coefficients after one outer update on ``tasks`` of a fixed meta-batch of four."""
    torch.manual_seed(0)
    module = attach(MAML(O, A, policy=GaussianMLP((4,)), outer=META[outer], inner_lr=0.5, learn_inner_lr=True).double())
    rounds = random_rounds(module, tasks=4, full=True)
    module.outer.update(module.iteration([Trajectories(*(x[tasks] for x in trajectories)) for trajectories in rounds]))
    parameters = {name: value.detach().clone() for name, value in module.meta_parameters().items()}
    return parameters | {"penalties": torch.tensor(module.outer.state().get("penalties", []))}


def baseline_update(tasks: slice) -> dict[str, torch.Tensor]:
    """Parameters of a meta-learned baseline after its steps on ``tasks`` of a fixed meta-batch of four."""
    torch.manual_seed(0)
    policy, baseline = GaussianMLP((4,)), MetaLearned((4,), lr=0.05, updates=3)
    module = attach(MAML(O, A, policy=policy, baseline=baseline, normalise_advantages=False).double())
    rounds = random_rounds(module, tasks=4)
    parts = [Trajectories(*(x[tasks] for x in trajectories)) for trajectories in rounds]
    module.finish_step = lambda *counts: None  # which logs, and there is no loop
    module.training_step(batch_of(module, parts), 0)
    return {name: value.detach().clone() for name, value in module.baseline.named_parameters()}


MLP: dict[str, Any] = {"hidden": [8], "initialisation": "torch"}
HYPER: dict[str, Any] = {"hidden": (6,), "widths": (8,), "blocks": 1}
INFERENCE: dict[str, dict[str, Any]] = {
    "PEARL": {
        "actor": TanhGaussianMLP([8]),
        "critic": EnsembleCriticMLP(**MLP),
        "value": EnsembleCriticMLP(members=1, **MLP),
    },
    "Hyper-PEARL": {  # and a learned temperature
        "actor": HyperActor(**HYPER),
        "critic": HyperCritic(meta=("obs",), base=("action", "context"), **HYPER),
    },
}


def pearl_update(name: str, tasks: slice) -> dict[str, torch.Tensor]:
    """Parameters after two updates of ``name`` on ``tasks`` of a fixed minibatch of four tasks, with fixed noise."""
    torch.manual_seed(0)
    encoder = ProductOfGaussians(latent=3, hidden=[8])
    module = attach(PEARL(O, A, encoder=encoder, kl_weight=0.5, **INFERENCE[name]).double())

    def transitions(count: int) -> Transition:
        drawn = (torch.randn(4, count, *size).double()[tasks] for size in ((O,), (A,), (), (O,)))
        obs, action, reward, next_obs = drawn
        return Transition(obs, action.tanh(), reward, next_obs, reward > 1, reward < -1)

    batch = TaskMinibatch(transitions(6), transitions(5), torch.zeros(4, 0)[tasks])
    noise = {3: torch.randn(4, 3).double()[tasks], A: torch.randn(4, 6, A).double()[tasks]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: noise[x.shape[-1]])
        for _ in range(2):
            module.update(batch)
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(0, M // 2) if rank == 0 else slice(M // 2, M)
    torch.save(gradients(half), f"{folder}/rank{rank}.pt")
    tasks = slice(0, 2) if rank == 0 else slice(2, 4)
    torch.save({outer: meta_update(outer, tasks) for outer in META}, f"{folder}/meta{rank}.pt")
    torch.save(baseline_update(tasks), f"{folder}/baseline{rank}.pt")
    torch.save({name: pearl_update(name, tasks) for name in INFERENCE}, f"{folder}/pearl{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they computed."""
    folder = tmp_path_factory.mktemp("two")
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    return folder


def assert_joined(name: str, joined: dict[str, torch.Tensor], folder: Path, within: float, key: str = "") -> None:
    """Both processes computed the same numbers, those of one process with the data of both."""
    first, second = (torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2))
    first, second = (first[key], second[key]) if key else (first, second)
    for parameter, expected in joined.items():
        assert torch.equal(first[parameter], second[parameter]), parameter
        torch.testing.assert_close(first[parameter], expected, atol=within / 100, rtol=within)


def test_averaged_gradient_is_that_of_the_joined_batch(folder: Path) -> None:
    joined = gradients(slice(0, M))
    assert len(joined) > 4
    alone = gradients(slice(0, M // 2))
    for rank in range(2):
        averaged = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, expected in joined.items():
            torch.testing.assert_close(averaged[name], expected, atol=1e-7, rtol=1e-5)
    assert any(not torch.allclose(alone[name], joined[name]) for name in joined)  # one process alone differs


@pytest.mark.parametrize("outer", META)
def test_meta_update_is_that_of_the_joined_tasks(outer: str, folder: Path) -> None:
    joined, alone = meta_update(outer, slice(0, 4)), meta_update(outer, slice(0, 2))
    assert_joined("meta", joined, folder, within=1e-6, key=outer)
    assert not torch.allclose(alone["policy.trunk.0.weight"], joined["policy.trunk.0.weight"], rtol=1e-4)


def test_a_learned_baseline_is_that_of_the_joined_tasks(folder: Path) -> None:
    joined, alone = baseline_update(slice(0, 4)), baseline_update(slice(0, 2))
    assert_joined("baseline", joined, folder, within=1e-6)
    assert not torch.allclose(alone["net.0.weight"], joined["net.0.weight"], rtol=1e-3)


@pytest.mark.parametrize("name", INFERENCE)
def test_an_update_of_pearl_is_that_of_the_joined_tasks(name: str, folder: Path) -> None:
    """Also the divergence, which is a sum over all processes' tasks."""
    joined, alone = pearl_update(name, slice(0, 4)), pearl_update(name, slice(0, 2))
    assert_joined("pearl", joined, folder, within=1e-9, key=name)
    assert not torch.allclose(alone["encoder.trunk.0.weight"], joined["encoder.trunk.0.weight"], rtol=1e-6)


SAC_FILES = ("experiment/sac_small_pendulum.yaml", "overlay/smoke.yaml")
TD3_FILES = ("experiment/td3_half_cheetah.yaml", "overlay/smoke.yaml")
META_FILES = ("experiment/corners_trpo_maml.yaml", "overlay/smoke_meta.yaml")  # three adaptation steps


SHARES = ("--data.eval_episodes=2", "--data.test_episodes=2")
DMC_FILES = ("experiment/preconditioned_small_dmc_walker_walk.yaml", "overlay/smoke.yaml")


def command_of(files: tuple[str, ...], root: Path, *flags: str) -> list[str]:
    """Arguments of a training in two processes."""
    configs = [f"--config={CONFIGS / file}" for file in files]
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    return ["fit", *configs, *two, f"--trainer.logger.root={root}", *flags]


def start(commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    """Two processes of one run that execute ``commands`` one after the other, as ``torchrun`` starts them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    # From the first command on, as torchrun has it; otherwise Lightning lowers the threads after the first command's
    # networks are initialised, and the last bit of an orthogonal matrix depends on the threads that decomposed it.
    shared["OMP_NUM_THREADS"] = "1"
    program = [sys.executable, __file__, "train", json.dumps(commands)]
    return [
        subprocess.Popen(
            program, env=shared | {"LOCAL_RANK": str(rank), "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def resume_in_two_processes(files: tuple[str, ...], folder: Path, *flags: str) -> list[tuple[dict[str, Any], Any]]:
    """Last checkpoint and curves of a straight run of two epochs, and of one that was resumed after the first."""
    roots = folder / "straight", folder / "resumed"
    straight, resumed = (command_of(files, root, *flags) for root in roots)
    processes = start([straight, [*resumed, "--trainer.max_epochs=1"], [*resumed, "--ckpt_path=last"]])
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    paths = [path for root in roots for path in root.glob("runs/*/last.ckpt")]
    assert len(paths) == 2
    return [(torch.load(path, weights_only=True), metrics_of(path.parents[2], path.parent.name)) for path in paths]


@pytest.mark.parametrize(
    "files",
    [DMC_FILES, *(pytest.param(files, marks=pytest.mark.slow) for files in (SAC_FILES, TD3_FILES))],
    ids=["PreconditionedSAC-dm_control", "SAC", "TD3"],
)
def test_every_process_resumes_its_own_replay(files: tuple[str, ...], tmp_path: Path) -> None:
    # An epoch has 8 updates: the checkpoint lies within a logging interval, of which each process has its own sums.
    flags = (*SHARES, "--trainer.log_every_n_steps=3")
    (straight, curves), (resumed, again) = resume_in_two_processes(files, tmp_path, *flags)
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    ranks = [state["experience"]["replay"]["storage"]["obs"] for state in resumed["ReplayDataModule"]["ranks"]]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0], ranks[1])  # different exploration
    for own, expected in zip(ranks, straight["ReplayDataModule"]["ranks"], strict=True):
        assert torch.equal(own, expected["experience"]["replay"]["storage"]["obs"])
    assert resumed["algorithm"]["counters"]["env_steps"] == 2 * (20 + 16)  # both processes together
    own = [rank["sums"] for rank in straight["algorithm"]["metrics"]]
    assert own[0] != own[1]
    assert {len(points) for name, points in curves.items() if name.startswith("train/")} == {5}
    assert again == curves


def test_every_process_resumes_its_own_tasks(tmp_path: Path) -> None:
    (straight, curves), (resumed, again) = resume_in_two_processes(META_FILES, tmp_path)
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    streams = [state["experience"]["generator"] for state in resumed["TrajectoryDataModule"]["ranks"]]
    assert len(streams) == 2
    assert not torch.equal(*streams)
    for own, expected in zip(streams, straight["TrajectoryDataModule"]["ranks"], strict=True):
        assert torch.equal(own, expected["experience"]["generator"])
    # iterations × rounds × tasks of both processes × trajectories × steps
    assert resumed["algorithm"]["counters"]["env_steps"] == 2 * 4 * 2 * 5 * 20
    assert again == curves


@pytest.mark.slow
def test_every_process_resumes_its_own_task_replays(tmp_path: Path) -> None:
    files = "experiment/quickstart_inference.yaml", "overlay/smoke_pearl.yaml"
    (straight, curves), (resumed, again) = resume_in_two_processes(files, tmp_path, "--data.train_tasks=4")
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    first, second = (state["experience"] for state in resumed["TaskReplayDataModule"]["ranks"])
    goals = [{tuple(goal) for goal in part["tasks"]["goal"].tolist()} for part in (first, second)]
    assert [len(part) for part in goals] == [2, 2]
    assert not goals[0] & goals[1]
    for own, expected in zip((first, second), straight["TaskReplayDataModule"]["ranks"], strict=True):
        for buffer in ("replay", "encoder_buffer"):
            assert torch.equal(own[buffer]["storage"]["obs"], expected["experience"][buffer]["storage"]["obs"])
    # tasks × initial steps, and iterations × tasks of both processes × steps of the three phases
    assert resumed["algorithm"]["counters"]["env_steps"] == 4 * 10 + 2 * 2 * 30
    assert again == curves


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_whose_peer_died_says_so_and_leaves_a_true_record(killed: int, tmp_path: Path) -> None:
    processes = start([command_of(SAC_FILES, tmp_path, *SHARES, "--trainer.max_epochs=100000")])
    try:
        while not (found := list(tmp_path.glob("runs/*/last.ckpt"))):
            assert processes[0].poll() is None, processes[0].communicate()[1][-3000:]
            time.sleep(0.05)
        processes[killed].kill()
        _, errors = processes[1 - killed].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    (line,) = [line for line in errors.splitlines() if line.startswith("lit-metarl:")]
    assert line.startswith("lit-metarl: error: another process of this run has died (")
    assert "last.ckpt is of step" in line
    assert "Traceback" not in errors
    assert processes[1 - killed].returncode == 1
    assert connect(tmp_path).get_run(found[0].parent.name).info.status == "FAILED"


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_one_run(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "lit_metarl"]
    done = subprocess.run(
        [*launcher, *command_of(SAC_FILES, tmp_path, *SHARES)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    run = connect(tmp_path).get_run(folder.name)
    assert (run.info.status, run.data.tags["devices"]) == ("FINISHED", "2 × cpu")
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["algorithm"]["counters"]["env_steps"] == 2 * (20 + 16)  # both processes together
    assert len(last["ReplayDataModule"]["ranks"]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_experiment_runs_on_cuda(tmp_path: Path) -> None:
    from lit_metarl.cli import run

    run(["fit", f"--config={CONFIGS / 'experiment' / 'sac_small_pendulum.yaml'}",
         f"--config={CONFIGS / 'overlay' / 'smoke.yaml'}", f"--config={CONFIGS / 'overlay' / 'gpu.yaml'}",
         f"--trainer.logger.root={tmp_path / 'runs'}"])  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(max(main(arguments) for arguments in json.loads(sys.argv[2])))
    worker(int(sys.argv[1]), sys.argv[2])
