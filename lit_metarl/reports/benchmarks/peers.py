"""``lit-metarl benchmark peers``: the speed of training SAC and TD3 beside that of stable-baselines3.

Both train networks 256-256 on the half-cheetah on the CPU, one update on 256 transitions for every step. Machines are
noisy, so their rounds alternate in one process, what counts is its CPU time, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lit_metarl.reports.arguments import positive, writable_file
from lit_metarl.reports.benchmarks.timing import is_busy, spread
from lit_metarl.reports.section import ReportError, Section

PEER = "stable_baselines3"
ALGORITHMS = ("SAC", "TD3")
WARMUP, BATCH, HIDDEN = 1000, 256, (256, 256)


@dataclass(frozen=True)
class Row:
    """One algorithm.

    Attributes:
        algorithm: its name, in both.
        seconds: of CPU time, of our rounds.
        peer_seconds: of theirs, each after one of ours.
    """

    algorithm: str
    seconds: list[float]
    peer_seconds: list[float]


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl benchmark peers``."""
    add = parser.add_argument
    add("--steps", type=positive, default=500, help="environment steps of a round (default: %(default)s)")
    add("--rounds", type=positive, default=7, help="of each that are timed; one more is not (default: %(default)s)")
    add("--threads", type=positive, default=1, help="of torch and of our simulator; more spin (default: %(default)s)")
    add("--json", type=writable_file, metavar="FILE", help="also write the numbers there")
    parser.set_defaults(accelerator="cpu")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """Speeds of both.

    Raises:
        ReportError: stable-baselines3 is not installed.
    """
    if find_spec(PEER) is None:
        raise ReportError("stable-baselines3 is not installed; pip install stable-baselines3 to compare with it.")
    from lit_metarl.reports.benchmarks.training import describe, quiet_threads

    with quiet_threads(args.threads):
        described = describe(args)
        rows = [measure(args, name) for name in ALGORITHMS]
    data = described | {"peers": {row.algorithm: vars(row) for row in rows}}
    return Section(table_of(described, rows), data=data, preformatted=True)


def measure(args: argparse.Namespace, algorithm: str) -> Row:
    """The row of one algorithm: after the warm-up of both, an epoch of ours and as many steps of theirs alternate."""
    from lightning.pytorch import seed_everything

    from lit_metarl import algorithms
    from lit_metarl.data import ReplayDataModule
    from lit_metarl.envs.locomotion import MuJoCo
    from lit_metarl.nn import DeterministicMLP, EnsembleCriticMLP, TanhGaussianMLP
    from lit_metarl.reports.benchmarks.training import fit

    seed_everything(0, verbose=False)
    environment = MuJoCo("half_cheetah", threads=args.threads)
    data = ReplayDataModule(environment, batch_size=BATCH, warmup_steps=WARMUP, epoch_steps=args.steps)
    actor = TanhGaussianMLP(HIDDEN) if algorithm == "SAC" else DeterministicMLP(HIDDEN)
    module = getattr(algorithms, algorithm)(data.obs_dim, data.action_dim, actor, EnsembleCriticMLP(HIDDEN))
    learn = peer(algorithm)
    learn(WARMUP)
    row, began = Row(algorithm, [], []), 0.0

    def start(*_: Any) -> None:
        nonlocal began
        began = time.process_time()

    def end(trainer: Any, *_: Any) -> None:
        seconds = time.process_time() - began
        since = time.process_time()
        learn(args.steps)
        if trainer.current_epoch:  # in the first one ours warms up
            row.seconds.append(seconds)
            row.peer_seconds.append(time.process_time() - since)

    fit(args, module, args.rounds + 1, {"on_train_epoch_start": start, "on_train_epoch_end": end}, datamodule=data)
    return row


def peer(algorithm: str) -> Callable[[int], Any]:
    """A function that trains stable-baselines3's ``algorithm`` for so many more steps."""
    import gymnasium
    import stable_baselines3

    model = getattr(stable_baselines3, algorithm)(
        "MlpPolicy",
        gymnasium.make("HalfCheetah-v5"),
        learning_starts=WARMUP,
        batch_size=BATCH,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(HIDDEN)},
        seed=0,
        device="cpu",
    )
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def table_of(described: dict[str, Any], rows: list[Row]) -> str:
    """Lines of fixed width with the speeds and their ratio."""
    settings, machine = described["settings"], described["machine"]
    lines = [
        f"half-cheetah, networks 256-256, one update on {BATCH} transitions a step · ours, and stable-baselines3's",
        f"cpu · {machine['threads']} threads of {machine['cpus']} CPUs · load {machine['load']:.1f} · "
        f"medians of {settings['rounds']} rounds of {settings['steps']} steps (in brackets: all rounds)",
        "per second of CPU time",
    ]
    if is_busy(machine):
        lines[-1] += "; others use the CPUs: the speeds are somewhat too low"
    lines += ["", f"{'algorithm':<11}{'env steps/s':>13}{'theirs':>10}   ours to theirs"]
    for row in rows:
        ours, theirs = (spread(settings["steps"] / s for s in each) for each in (row.seconds, row.peer_seconds))
        ratio = spread(b / a for a, b in zip(row.seconds, row.peer_seconds, strict=True))
        lines.append(
            f"{row.algorithm:<11}{ours.median:>13.1f}{theirs.median:>10.1f}   "
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        )
    return "\n".join(lines)
