"""Signals that ask a run to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

from lit_metarl.types import Interrupted

# What terminals, schedulers and operators send. Windows has the first two only.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

SAME_WISH = 5.0
"""Seconds after a stop began in which one more Ctrl-C asks for nothing new: the stop is to be put on record first."""


class StopSignals:
    """Takes note of the first signal, so that the step in progress can end and be saved; a second Ctrl-C stops at once.

    A signal that is ignored stays so: ``nohup`` ignores SIGHUP, a shell the Ctrl-C of its background jobs. In another
    thread than the main one nothing is done, as Python delivers signals there only.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._stopping_since = -math.inf
        self._before: dict[int, Any] = {}

    def take(self) -> None:
        """Install the handlers, over whatever was installed since the last call."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, self.note):
                self._before.setdefault(number, handler)
                signal.signal(number, self.note)

    def give_back(self) -> None:
        """Install the handlers that there were before the first :meth:`take`."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(self, number: int, frame: Any) -> None:
        """Remember ``number``; raise :class:`~lit_metarl.types.Interrupted` at a second Ctrl-C."""
        if self.received is not None and number == signal.SIGINT:
            if time.monotonic() < self._stopping_since + SAME_WISH:
                return
            self.stopping()
            raise Interrupted("stopped at once, without saving the steps since the last checkpoint", number)
        self.received = number

    def stopping(self) -> None:
        """Say that the run is about to be stopped by an exception, which no Ctrl-C may overtake."""
        self._stopping_since = time.monotonic()


def name_of(number: int) -> str:
    """``SIGTERM`` and so on, or the number of a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
