"""Two processes on the CPU: the averaged gradient is the joined batch's, and every process's replay survives resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lit_metarl.algorithms import SAC
from lit_metarl.losses.sac import actor_loss, critic_loss
from lit_metarl.nn import EnsembleCriticMLP, TanhGaussianMLP

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


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(0, M // 2) if rank == 0 else slice(M // 2, M)
    torch.save(gradients(half), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_averaged_gradient_is_that_of_the_joined_batch(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    joined = gradients(slice(0, M))
    assert len(joined) > 4
    alone = gradients(slice(0, M // 2))
    for rank in range(2):
        averaged = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, expected in joined.items():
            torch.testing.assert_close(averaged[name], expected, atol=1e-7, rtol=1e-5)
    assert any(not torch.allclose(alone[name], joined[name]) for name in joined)  # one process alone differs


def fit(folder: Path, *flags: str) -> dict[str, Any]:
    """Run the command line in two processes; returns the last checkpoint."""
    files = [CONFIGS / "experiment" / "sac_small_pendulum.yaml", CONFIGS / "overlay" / "smoke.yaml"]
    command = [sys.executable, "-m", "lit_metarl", "fit", *(f"--config={file}" for file in files)]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.eval_episodes=2"]
    command += ["--data.test_episodes=2", f"--trainer.logger.root={folder}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("runs/*/last.ckpt")
    return torch.load(path, weights_only=True)


def test_every_process_resumes_its_own_replay(tmp_path: Path) -> None:
    straight = fit(tmp_path / "straight")
    fit(tmp_path / "resumed", "--trainer.max_epochs=1")
    resumed = fit(tmp_path / "resumed", "--ckpt_path=last")
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    ranks = [state["experience"]["replay"]["storage"]["obs"] for state in resumed["ReplayDataModule"]["ranks"]]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0], ranks[1])  # different exploration
    for own, expected in zip(ranks, straight["ReplayDataModule"]["ranks"], strict=True):
        assert torch.equal(own, expected["experience"]["replay"]["storage"]["obs"])
    assert resumed["algorithm"]["counters"]["env_steps"] == 2 * (20 + 16)  # both processes together


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_experiment_runs_on_cuda(tmp_path: Path) -> None:
    from lit_metarl.cli import run

    run(["fit", f"--config={CONFIGS / 'experiment' / 'sac_small_pendulum.yaml'}",
         f"--config={CONFIGS / 'overlay' / 'smoke.yaml'}", f"--config={CONFIGS / 'overlay' / 'gpu.yaml'}",
         f"--trainer.logger.root={tmp_path / 'runs'}"])  # fmt: skip


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
