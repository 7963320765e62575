"""Signals are taken, noted and given back."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from lit_metarl.callbacks.signals import SAME_WISH, STOPPING, StopSignals, name_of
from lit_metarl.types import Interrupted


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background commands with it ignored
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_handlers_are_taken_over_and_given_back() -> None:
    def early(number: int, frame: object) -> None: ...

    def late(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, early)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = {number: signal.getsignal(number) for number in STOPPING}
    signals = StopSignals()
    signals.take()
    signal.signal(signal.SIGTERM, late)  # as Lightning does once training begins
    signals.take()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup: it stays ignored
    taken = [number for number in STOPPING if signal.getsignal(number) == signals.note]
    assert taken == [number for number in STOPPING if number != signal.SIGHUP]
    signals.give_back()
    assert {number: signal.getsignal(number) for number in STOPPING} == before
    signal.signal(signal.SIGTERM, late)
    signals.give_back()  # there is nothing more to give back
    assert signal.getsignal(signal.SIGTERM) is late


def test_another_thread_takes_nothing() -> None:
    signals = StopSignals()
    thread = threading.Thread(target=signals.take)
    thread.start()
    thread.join()
    assert all(signal.getsignal(number) != signals.note for number in STOPPING)


def test_the_first_is_noted_and_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    signals = StopSignals()
    signals.take()
    signal.raise_signal(signal.SIGINT)
    assert signals.received == signal.SIGINT
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped at once, without saving") as stopped:
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.args
    signal.raise_signal(signal.SIGINT)  # on the way to those who write the record
    now += SAME_WISH
    with pytest.raises(Interrupted):  # something held that one up
        signal.raise_signal(signal.SIGINT)
    assert name_of(signal.SIGUSR1) == "SIGUSR1"
    assert name_of(250) == "signal 250"
