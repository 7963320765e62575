"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lit_metarl.types import Interrupted

# What terminals, schedulers and operators send. Windows has the first two only.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class StopSignals:
    """Takes note of the first signal, so that the step in progress can end and be saved; a second Ctrl-C stops at once.

    A signal that is ignored stays so: ``nohup`` ignores SIGHUP, a shell the Ctrl-C of its background jobs. In another
    thread than the main one nothing is done, as Python delivers signals there only.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
            raise Interrupted("stopped at once, without saving the steps since the last checkpoint", number)
        self.received = number


def name_of(number: int) -> str:
    """``SIGTERM`` and so on, or the number of a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
