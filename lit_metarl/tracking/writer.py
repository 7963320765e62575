"""Metric points on their way into the database."""

from __future__ import annotations

import logging
import threading
from typing import Any

from lit_metarl.tracking.store import TrackingError, reason_of

log = logging.getLogger(__name__)

_POINTS_PER_WRITE = 1000  # MLflow's limit

Point = tuple[str, float, int, int]  # name, value, time in ms, step


class MetricWriter:
    """Collects metric points and writes them from a background thread, ``period`` seconds after the first.

    Points leave the buffer only once they are in the database, so a write that failed is tried again by the next one.
    (MLflow's own asynchronous logging drops them with a line in the log.)
    """

    def __init__(self, client: Any, run_id: str, period: float = 1.0) -> None:
        self._client, self._run_id, self._period = client, run_id, period
        self._points: list[Point] = []
        self._timer: threading.Timer | None = None
        self._buffer_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self.told: str | None = None  # what went wrong, since the last write that succeeded

    def add(self, points: list[Point]) -> None:
        """Take ``points`` to be written soon."""
        with self._buffer_lock:
            self._points += points
            if self._timer is None:
                self._timer = threading.Timer(self._period, self._write_in_background)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write all points and return when they are in the database.

        Raises:
            TrackingError: the database refuses them; they are kept for the next call.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        with self._write_lock:
            while batch := self._points[:_POINTS_PER_WRITE]:
                try:
                    self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in batch])
                except MlflowException as error:
                    self.told = (
                        f"metric points of run {self._run_id} cannot be written to {self._client.tracking_uri}: "
                        f"{reason_of(error)}. Check the space on the disk, and who locks the file."
                    )
                    raise TrackingError(f"{len(self._points)} {self.told}") from error
                with self._buffer_lock:
                    del self._points[: len(batch)]
            self.told = None

    def _write_in_background(self) -> None:
        with self._buffer_lock:
            self._timer = None
        before = self.told
        try:
            self.flush()
        except TrackingError as error:
            if self.told != before:
                log.warning("%s Trying again later.", error)
