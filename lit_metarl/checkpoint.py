"""Checkpoint files: read without trusting them, written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the file in a run's folder that is locked while the run is trained."""
_HOLDER = ".lock.holder"


class CheckpointError(RuntimeError):
    """A file that cannot be used or written as a checkpoint; the message says why and what to do."""


def read_checkpoint(path: Path, verify: bool = True) -> dict[str, Any]:
    """Content of a checkpoint of this package, loaded without executing anything from it.

    Args:
        path: the file.
        verify: compare every entry with its CRC-32 first: torch reads flipped bits without a word. False only to look
            at a file that will be read again.

    Raises:
        CheckpointError: missing, a folder, truncated, damaged, or written by something else.
    """
    if path.is_dir():
        raise CheckpointError(f"ckpt_path = {path} is a folder; name a checkpoint in it, such as {path / 'last.ckpt'}.")
    if not path.is_file():
        raise CheckpointError(f"ckpt_path = {path}: there is no such file.")
    damage = find_damage(path) if verify else None
    if damage is not None:
        raise CheckpointError(f"ckpt_path = {path} is damaged: {damage}. {_another(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise CheckpointError(
            f"ckpt_path = {path} cannot be read ({type(error).__name__}): it is truncated or no checkpoint. "
            f"{_another(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or "algorithm" not in checkpoint:
        raise CheckpointError(f"ckpt_path = {path} was not written by lit_metarl; it cannot be resumed.")
    return checkpoint


def run_name(checkpoint: Mapping[str, Any]) -> str | None:
    """The name that a checkpoint's config gives its run, as a sweep's does; None where it gives none."""
    config = yaml.safe_load(checkpoint.get("run", {}).get("config", "{}"))
    logger = config.get("trainer", {}).get("logger")
    return logger.get("init_args", {}).get("run_name") if isinstance(logger, dict) else None


def find_damage(path: Path) -> str | None:
    """Damage to a checkpoint's container in words, such as an entry that its CRC-32 denies; None if it is intact."""
    try:
        with zipfile.ZipFile(path) as container:
            for entry in container.infolist():
                try:
                    with container.open(entry) as content:
                        while content.read(1 << 20):
                            pass
                except Exception as error:  # whatever a damaged header leads to
                    return f"entry {entry.filename} ({error})"
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return f"it is truncated or no checkpoint ({error})"
    return None


def _another(path: Path) -> str:
    """Which checkpoint beside ``path`` can be used instead."""
    for name in ("last.ckpt", "best.ckpt", "diverged.ckpt"):
        other = path.with_name(name)
        if other.is_file() and not other.samefile(path) and find_damage(other) is None:
            return f"{other} is intact: resume from it."
    return "No other checkpoint is beside it: start a new run, or bring a copy of the file."


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write ``checkpoint`` to ``path``: first beside it and to the disk, then in its place.

    Raises:
        CheckpointError: the disk is full or the folder not writable; ``path`` is what it was.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the former into the latter
        part.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be written: {reason}. Free space there, or use another root.") from error


def link_checkpoint(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no hard links."""
    part = part_of(target)
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)  # no second copy of the replay
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
    _sync_folder(target.parent)


def part_of(path: Path) -> Path:
    """Temporary name of ``path`` while it is written: what a crash leaves, to be swept at the next start."""
    return path.with_name(f".{path.name}.part")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sign_lock(folder: Path) -> None:
    """Write down that this process has locked ``folder``."""
    (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def signed_by(folder: Path) -> str:
    """Who locked ``folder`` last, as :func:`sign_lock` wrote it."""
    try:
        return (folder / _HOLDER).read_text(encoding="utf-8")
    except OSError:
        return "another process"


def trained_by(folder: Path) -> str | None:
    """The process that has the run in ``folder`` locked now; None if none has."""
    if not (folder / LOCK).is_file():
        return None
    words = signed_by(folder).split()
    if words[0] == "process" and words[-1] == socket.gethostname() and not _is_alive(int(words[1])):
        return None  # without trying the lock, which would be in the way of a process that takes it just now
    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return signed_by(folder)
    except NotImplementedError:  # a file system without locks
        return None


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
