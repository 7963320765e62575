"""(Meta-)reinforcement learning that is right, fast and resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_metarl.policy import load_policy

__all__ = ["load_policy"]


def __getattr__(name: str) -> Any:
    if name == "load_policy":  # torch is imported by whoever uses it: `lit-metarl --help` does not
        from lit_metarl.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
