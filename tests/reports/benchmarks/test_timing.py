"""The clock: every second counts for one part."""

from __future__ import annotations

import time

import pytest

from lit_metarl.reports.benchmarks.timing import OTHER, Clock


class Nested:
    def outer(self) -> str:
        time.sleep(0.02)
        return self.inner()

    def inner(self) -> str:
        time.sleep(0.06)
        return "result"


def test_clock_counts_a_nested_call_once() -> None:
    synchronised, nested = [], Nested()
    began = time.perf_counter()
    clock = Clock(lambda: synchronised.append(1))
    clock.wrap(nested, "outer", "collector")
    clock.wrap(nested, "inner", "simulator")
    assert nested.outer() == "result"
    clock.unwrap()
    elapsed = time.perf_counter() - began
    assert len(synchronised) == 5  # in and out of both, and the end
    assert clock.seconds["collector"] >= 0.02
    assert clock.seconds["simulator"] >= 0.06
    assert sum(clock.seconds.values()) <= elapsed  # counted twice, the inner call would exceed it
    assert sum(clock.seconds.values()) == pytest.approx(elapsed, abs=0.01)
    assert not vars(nested)  # nothing is left on it
    counted = dict(clock.seconds)
    nested.outer()
    assert clock.seconds == counted


def test_clock_goes_on_after_an_error() -> None:
    class Broken:
        def step(self) -> None:
            raise ValueError("diverged")

    broken, clock = Broken(), Clock(lambda: None)
    clock.wrap(broken, "step", "simulator")
    with pytest.raises(ValueError, match="diverged"):
        broken.step()
    assert clock.switch(OTHER) == OTHER
