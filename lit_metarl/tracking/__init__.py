"""Tracking in MLflow: one store under one root, and the logger that writes to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_metarl.tracking.store import (
    DIVERGED,
    StoredRun,
    TrackingError,
    check_store,
    connect,
    find_runs,
    has_run,
    list_runs,
    open_store,
)

if TYPE_CHECKING:
    from lit_metarl.tracking.logger import MLflowLogger, environment_tags

__all__ = [
    "DIVERGED",
    "MLflowLogger",
    "StoredRun",
    "TrackingError",
    "check_store",
    "connect",
    "environment_tags",
    "find_runs",
    "has_run",
    "list_runs",
    "open_store",
]


def __getattr__(name: str) -> Any:
    # the logger imports lightning (seconds); who only reads the store does not pay for it
    if name in ("MLflowLogger", "environment_tags"):
        from lit_metarl.tracking import logger

        return getattr(logger, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
