"""Runs that are timed: on which machine, with how many threads, and trained as the command line does it."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from lit_metarl.cli import quieten
from lit_metarl.reports.section import ReportError
from lit_metarl.tracking import MLflowLogger, environment_tags
from lit_metarl.types import Transition

SCHEMA = "lit_metarl.benchmark/1"
LOG_EVERY = 100  # training steps, as in configs/base.yaml


@contextmanager
def quiet_threads(count: int | None) -> Iterator[None]:
    """Drop others' warnings, and give torch ``count`` threads for a while; leave its number if None."""
    quieten()
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_device(accelerator: str) -> None:
    """Raise ``ReportError`` if there is no such device here."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ReportError("argument --accelerator: torch finds no CUDA device")


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Settings, machine and versions, which the numbers depend on."""
    cuda = args.accelerator != "cpu" and torch.cuda.is_available()
    machine = {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": platform.platform(),
        "load": os.getloadavg()[0],  # processes that wanted a CPU in the minute before, so who else was measured
    }
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "block")}
    return {"schema": SCHEMA, "settings": settings, "machine": machine, "versions": environment_tags()}


def noise(shape: tuple[int, ...], obs: int, action: int, generator: torch.Generator) -> Transition:
    """Transitions of noise, fields ``[*shape, ...]``, with actions in [-1, 1]; no episode ends."""
    flags = torch.zeros(shape, dtype=torch.bool)
    return Transition(
        torch.randn(*shape, obs, generator=generator),
        2.0 * torch.rand(*shape, action, generator=generator) - 1.0,
        torch.randn(shape, generator=generator),
        torch.randn(*shape, obs, generator=generator),
        flags,
        flags,
    )


def fit(args: argparse.Namespace, module: Any, epochs: int, hooks: dict[str, Any], **data: Any) -> None:
    """Train ``module`` as the command line does, logger included, without evaluation and checkpoints."""
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator=args.accelerator,
            devices=1,
            max_epochs=epochs,
            logger=MLflowLogger(root),
            callbacks=[LambdaCallback(**hooks)],
            log_every_n_steps=LOG_EVERY,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
        )
        trainer.fit(module, **data)
