"""Ctrl-C waits for writes: SQLAlchemy leaks the connection of an interrupted one, and its lock with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _Held:
    """A handler of SIGINT that only counts, until the signals are let through to the handler before it."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self._count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._count += 1

    def let_through(self) -> None:
        """Call the handler before this one, once for every signal that was counted."""
        count, self._count = self._count, 0
        for _ in range(count):
            self._handler(signal.SIGINT, None)


@contextmanager
def uninterrupted() -> Iterator[Callable[[], None]]:
    """A context within which Ctrl-C is held back until its end; yields a function that lets it through earlier.

    Within another such context it is held back until the end of the outer one. In another thread than the main one,
    and where Ctrl-C is ignored or ends the process without Python, there is nothing to hold back.
    """
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Held):
        yield handler.let_through
    elif not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
    else:
        held = _Held(handler)
        signal.signal(signal.SIGINT, held)
        try:
            yield held.let_through
        finally:
            signal.signal(signal.SIGINT, handler)
            held.let_through()
