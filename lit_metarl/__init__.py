"""(Meta-)reinforcement learning that is right, fast and resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_metarl.evaluation import evaluate
    from lit_metarl.policy import load_policy

__all__ = ["evaluate", "load_policy"]


def __getattr__(name: str) -> Any:
    # torch and lightning are imported by whoever uses them: `lit-metarl --help` does not
    if name == "evaluate":
        from lit_metarl.evaluation import evaluate

        return evaluate
    if name == "load_policy":
        from lit_metarl.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
