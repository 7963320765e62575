"""Types of arguments: what a word of the command line has to be."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_metarl.reports.section import ReportError


def at_least(least: int, why: str = "") -> Callable[[str], int]:
    """The type of an integer of at least ``least`` ≥ 0; a smaller one is an error that says ``why``."""

    def integer(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            message = f"{text!r} is not an integer of at least {least}"
            raise argparse.ArgumentTypeError(f"{message}: {why}" if why else message)
        return int(text)

    return integer


positive = at_least(1)
seed = at_least(0)
"""Types of a number of things, and of a seed."""


def positive_steps(text: str) -> int:
    """A whole number of steps, such as 50000 or 5e4."""
    number = float(text)  # argparse names the option if this raises
    if not number.is_integer() or number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number of steps")
    return int(number)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def writable_file(text: str) -> Path:
    """A file that can be written, so that a measurement of minutes is not lost at its end."""
    path = Path(text)
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; name a file in a writable folder")
    return path


@contextmanager
def blame(option: str) -> Iterator[None]:
    """Turn what a constructor says of its arguments into an error of ``option``.

    Raises:
        ReportError: in place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise ReportError(f"argument {option}: {error}") from error
