"""One bar for the whole run, also where it is resumed within an epoch; nothing is written behind it."""

from __future__ import annotations

import logging
import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from meta_cases import quiet_trainer
from test_resume import CASES

from lit_metarl.callbacks import ProgressBar, RunCheckpoint, progress
from lit_metarl.types import Interrupted


class At(Callback):
    """Does something at one batch of the run."""

    def __init__(self, batch: int, do: Any) -> None:
        self.batch, self.do, self.seen = batch, do, -1

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            self.do(trainer)


def fit(*callbacks: Callback, **kwargs: Any) -> None:
    bar = ProgressBar(refresh_rate=1)
    settings = {"max_epochs": 3, "enable_progress_bar": True, "enable_checkpointing": True}
    trainer = quiet_trainer(callbacks=[bar, RunCheckpoint(), *callbacks], **settings)
    trainer.fit(*CASES["SAC-gymnasium"](), **kwargs)


def states(text: str) -> list[str]:
    """What the terminal showed, one state of a line after the other."""
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def interrupt(trainer: Trainer) -> None:
    next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint)).signals.note(2, None)


def test_the_bar_counts_to_the_end_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    fit()  # 6 batches an epoch
    shown = states(capsys.readouterr().out)
    assert any(re.match(r"epoch 1/3: .* 5/18 \[00:\d\d<\d\d:\d\d, .*env_steps=", line) for line in shown)
    assert re.match(r"epoch 3/3: 100%.* 18/18 \[00:\d\d<00:00, .*eval/return=-", shown[-1])
    assert not any("Validation" in line for line in shown)


def test_a_resumed_run_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        fit(At(7, interrupt))
    assert states(capsys.readouterr().out)[-1].startswith("epoch 2/3:  44%")  # 8 of 18, and closed
    fit(ckpt_path="checkpoints/last.ckpt")
    counts = [int(found[1]) for line in states(capsys.readouterr().out) if (found := re.search(r" (\d+)/18 ", line))]
    assert next(count for count in counts if count) in (8, 9)
    assert counts[-1] == 18


def test_messages_are_written_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak(trainer: Trainer) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of a simulator", stacklevel=1)
        logging.getLogger("lit_metarl.tracking").warning("of the store")

    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
    fit(At(4, speak))
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    for message in ("UserWarning: of a simulator", "of the store"):
        (line,) = [line for line in lines if message in line]
        assert "%" not in line.rpartition("\r")[2]
    assert not logging.getLogger().handlers  # as it was


def test_rate_and_latest_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    bar: Any = ProgressBar(refresh_rate=0)
    shown: list[str] = []
    bar.train_progress_bar = SimpleNamespace(total=10, set_description=shown.append)
    latest = {"train/return": 1.23456, "eval/return": -20.0, "train/entropy": 3.0}
    module: Any = SimpleNamespace(env_steps=0, latest_metrics={})
    trainer: Any = SimpleNamespace(num_training_batches=5, current_epoch=0, max_epochs=2, max_steps=-1)
    bar._trainer = trainer
    bar.on_train_epoch_start(trainer, module)
    assert shown == ["epoch 1/2"]
    now, module.env_steps = 15.0, 100  # the warm-up
    assert bar.get_metrics(trainer, module) == {"env_steps": 100}
    now, module.env_steps, module.latest_metrics = 17.0, 150, latest
    expected = {"env_steps": 150, "steps/s": 25, "return": "1.23", "eval/return": "-20"}
    assert bar.get_metrics(trainer, module) == expected
    now = 30.0  # an evaluation
    bar.on_train_epoch_start(trainer, module)
    assert "steps/s" not in bar.get_metrics(trainer, module)  # no time has passed
    now, module.env_steps = 34.0, 190
    assert bar.get_metrics(trainer, module)["steps/s"] == 10
