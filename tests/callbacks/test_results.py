"""Which process writes and prints the results of ``test`` and ``predict``: the first, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from meta_cases import quiet_trainer
from torch import Tensor

from lit_metarl.algorithms import MAML, SAC
from lit_metarl.callbacks.adaptation import AdaptationResults
from lit_metarl.callbacks.results import EpisodeVideo, TestTable
from lit_metarl.data import ReplayDataModule, TrajectoryDataModule
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.navigation import Navigation2D
from lit_metarl.types import ConfigError, Episodes, MetaEpisodes

FILM = torch.arange(4 * 48 * 64 * 3).reshape(4, 48, 64, 3).to(torch.uint8)


def episodes(frames: Tensor | None = FILM) -> Episodes:
    return Episodes(torch.tensor([1.5]), torch.tensor([4]), frames, 25.0)


def meta_episodes() -> MetaEpisodes:
    goals = {"test": {"goal": torch.zeros(1)}}
    return MetaEpisodes({"test": torch.zeros(2, 1, 2)}, goals, {}, {"before": FILM, "after": FILM}, 25.0)


def draw_the_fit(trainer: Any, module: Any) -> None:
    curve = AdaptationResults()
    curve.on_validation_batch_end(trainer, module, None, meta_episodes(), 0)
    curve.on_fit_end(trainer, module)


WRITERS: dict[str, tuple[Callable[[Any, Any], None], set[str], str]] = {
    "film": (
        lambda trainer, module: EpisodeVideo().on_predict_batch_end(trainer, module, episodes(), episodes(), 0),
        {"episode.mp4"},
        "episode of return 1.5",
    ),
    "films": (
        lambda trainer, module: AdaptationResults().on_predict_batch_end(
            trainer, module, meta_episodes(), meta_episodes(), 0
        ),
        {"before.mp4", "after.mp4"},
        "before: return 0.0",
    ),
    "curve of a test": (
        lambda trainer, module: AdaptationResults().on_test_batch_end(trainer, module, None, meta_episodes(), 0),
        {"test.png"},
        "random actions",
    ),
    "curve of a fit": (draw_the_fit, {"eval.png"}, ""),
    "table": (lambda trainer, module: TestTable().on_test_end(trainer, module), set(), "test/return"),
}


@pytest.mark.parametrize(
    ("callback", "stage"), [(AdaptationResults(), "fit"), (TestTable(), "test"), (EpisodeVideo(), "predict")]
)
def test_results_of_another_kind_of_data_are_refused_at_the_start(callback: Any, stage: str, tmp_path: Path) -> None:
    replay = ReplayDataModule(Gymnasium("Pendulum-v1"), batch_size=4, capacity=100, warmup_steps=5, epoch_steps=4)
    tasks = TrajectoryDataModule(Navigation2D(max_episode_steps=2), num_tasks=1, trajectories=1)
    module, datamodule = (SAC(3, 1), replay) if isinstance(callback, AdaptationResults) else (MAML(2, 2), tasks)
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[callback])
    message = f"{type(callback).__name__} = '{type(datamodule).__name__}' cannot be used: it shows"
    with pytest.raises(ConfigError, match=message):
        getattr(trainer, stage)(module, datamodule=datamodule)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_writes_and_prints(
    name: str, first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"test/return": torch.tensor(2.0)}
    trainer = SimpleNamespace(
        is_global_zero=first, loggers=[], default_root_dir=str(tmp_path), callback_metrics=metrics
    )
    write, files, printed = WRITERS[name]
    write(trainer, None)
    assert {path.name for path in tmp_path.iterdir()} == (files if first else set())
    output = capsys.readouterr().out
    assert printed in output if first else not output


def test_an_episode_without_pictures_is_no_film(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[], default_root_dir=str(tmp_path))
    module: Any = None
    EpisodeVideo().on_predict_batch_end(trainer, module, episodes(None), episodes(None), 0)
    assert not list(tmp_path.iterdir())
