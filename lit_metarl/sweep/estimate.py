"""How long a sweep will take, from what its runs took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median


class Durations:
    """Seconds that whole runs took, by arm."""

    def __init__(self) -> None:
        self._of: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, arm: str, seconds: float) -> None:
        """Count a finished run of ``arm``."""
        self._of[arm].append(seconds)

    def typical(self, arm: str) -> float | None:
        """Median of the runs of ``arm``; of all if none of it has finished, None if none has at all."""
        known = self._of.get(arm) or [seconds for each in self._of.values() for seconds in each]
        return median(known) if known else None

    def left(self, parts: Iterable[tuple[str, float]], workers: int) -> float | None:
        """Seconds until ``workers`` have trained what is left of runs; None if nothing is known.

        Args:
            parts: arm and the fraction of a run that is left.
            workers: how many runs are trained at a time.
        """
        seconds = []
        for arm, fraction in parts:
            whole = self.typical(arm)
            if whole is None:
                return None
            seconds.append(whole * fraction)
        return max(sum(seconds) / workers, max(seconds)) if seconds else 0.0


def in_words(seconds: float | None) -> str:
    """``seconds`` as ``40 s``, ``7 min`` or ``2 h 10 min``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
