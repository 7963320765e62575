"""Settings that are checked before anything is built: the seed, and the Trainer's options."""

from __future__ import annotations

import logging
import os
import secrets
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import torch

from lit_metarl.types import ConfigError, require

log = logging.getLogger(__name__)

SEEDS = 2**32  # NumPy's global stream takes 32 bits
PRECISIONS = ("32", "32-true", "bf16", "bf16-mixed")


class SeedError(ConfigError, ArgumentTypeError):
    """A seed that cannot be used, from a config file or from the command line."""


class Seed:
    """Type of ``seed_everything``: called with a number it is that number, with ``true`` a drawn one.

    Lightning hands the first process's seed on to those that it starts, in ``PL_GLOBAL_SEED``.
    """

    def __repr__(self) -> str:
        return "int or true"  # as the help shows it

    def __call__(self, value: object) -> int:
        """The seed that ``value`` asks for.

        Raises:
            SeedError: no integer from 0 to 2³² − 1, or ``true`` where a launcher started the processes of a run, each
                of which would draw its own.
        """
        text = str(value).lower()
        if text == "true":
            if "LOCAL_RANK" not in os.environ:
                return secrets.randbelow(SEEDS)
            text = os.environ.get("PL_GLOBAL_SEED", "true: processes that a launcher starts cannot agree on one")
        if not text.isdecimal() or int(text) >= SEEDS:
            raise SeedError(f"seed_everything = {text}: give a number from 0 to {SEEDS - 1}, or true to draw one")
        return int(text)


def check_precision(precision: object) -> None:
    """Raise :class:`ConfigError` unless ``precision`` is float32 or bf16-mixed."""
    reason = "float16 gradients underflow without a loss scaler, and the gradients here are set by hand"
    if "64" in str(precision):
        reason = "experience is float32"
    require(str(precision) in PRECISIONS, "trainer.precision", precision, f"{reason}; use 32-true or bf16-mixed")


def has_bf16_units(device: str) -> bool:
    """Whether ``device``, ``cpu`` or a GPU, multiplies bf16 numbers itself; where it does not they are emulated."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if device == "cpu" else {"bf16": True}
    return any(flags.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def warn_of_emulation(precision: object, device: str) -> None:
    """Log a warning if ``precision`` is bf16 and ``device`` would emulate it."""
    if str(precision).startswith("bf16") and not has_bf16_units(device):
        log.warning(
            "trainer.precision = %s: this %s has no bf16 units and emulates them, many times slower than "
            "--trainer.precision 32-true",
            precision,
            device.upper().replace("CUDA", "GPU"),
        )


_BY_HAND = "gradients are set by hand, so the Trainer cannot do it"
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("max_steps", lambda v: v == -1, "it counts optimizer steps; use max_epochs · data.epoch_steps"),
    ("accumulate_grad_batches", lambda v: v == 1, f"{_BY_HAND}; raise data.batch_size or data.num_tasks"),
    ("gradient_clip_val", lambda v: v == 0, f"{_BY_HAND}; lower a step size"),
    ("val_check_interval", lambda v: v == 1.0, "an evaluation follows each epoch; shorten the epochs of data"),
    ("limit_train_batches", lambda v: v > 0, "nothing would be trained; use validate or test to evaluate"),
    ("overfit_batches", lambda v: v == 0, "experience is collected anew for every batch, there is none to repeat"),
    ("barebones", lambda v: not v, "nothing would be logged or saved; `lit-metarl benchmark` times the loop"),
    ("enable_checkpointing", lambda v: v, "RunCheckpoint writes what resumes the run"),
    ("inference_mode", lambda v: not v, "adaptation at test time needs gradients"),
    ("log_every_n_steps", lambda v: v >= 1, "the means of at least one training step are logged"),
)
AUTOMATIC = ("LearningRateFinder", "BatchSizeFinder", "GradientAccumulationScheduler", "StochasticWeightAveraging")


def check_trainer(trainer: Any, training: bool) -> None:
    """Refuse, or warn of, Trainer options that do not fit gradients set by hand and experience made anew.

    Args:
        trainer: the parsed options.
        training: whether the sub-command is ``fit``.

    Raises:
        ConfigError: an option that cannot work; names it, its value and what to use instead.
    """
    check_precision("32-true" if trainer.precision is None else trainer.precision)
    for key, fits, remedy in RULES:
        value = trainer.get(key)
        require(value is None or fits(value), f"trainer.{key}", value, remedy)
    given = trainer.get("callbacks") or []
    names = [str(each.class_path).rpartition(".")[2] for each in (given if isinstance(given, list) else [given])]
    for name in names:
        require(name not in AUTOMATIC, "trainer.callbacks", name, f"{_BY_HAND}; remove it")
    if training and "RunCheckpoint" not in names and not trainer.get("fast_dev_run"):
        log.warning(
            "trainer.callbacks has no RunCheckpoint: nothing is saved, and the run can neither be resumed nor loaded. "
            "Name lit_metarl.callbacks.RunCheckpoint too, or add yours with --trainer.callbacks+=CLASS."
        )
