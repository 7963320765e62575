"""Reading checkpoints without trusting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A file that cannot be used as a checkpoint; the message says why and what to do."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this package without executing anything from it.

    Raises:
        CheckpointError: missing, truncated, or written by something else.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path = {path}: there is no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise CheckpointError(
            f"ckpt_path = {path} cannot be read ({type(error).__name__}): it is truncated or no checkpoint. "
            "Resume from another one, such as best.ckpt beside it."
        ) from error
    if not isinstance(checkpoint, dict) or "algorithm" not in checkpoint:
        raise CheckpointError(f"ckpt_path = {path} was not written by lit_metarl; it cannot be resumed.")
    return checkpoint
