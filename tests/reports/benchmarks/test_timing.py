"""The clock: every second counts for one part."""

from __future__ import annotations

import time

import pytest

from lit_metarl.reports.benchmarks.timing import OTHER, PARTS, Clock


class Nested:
    now = 10.0

    def outer(self) -> str:
        self.now += 2.0
        result = self.inner()
        self.now += 1.0
        return result

    def inner(self) -> str:
        self.now += 6.0
        return "result"


def test_clock_counts_a_nested_call_once(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised, nested = [], Nested()
    monkeypatch.setattr(time, "perf_counter", lambda: nested.now)
    clock = Clock(lambda: synchronised.append(1))
    clock.wrap(nested, "outer", "collector")
    clock.wrap(nested, "inner", "simulator")
    assert nested.outer() == "result"
    clock.unwrap()
    assert len(synchronised) == 5  # in and out of both, and the end
    assert clock.seconds == {part: {"collector": 2.0 + 1.0, "simulator": 6.0}.get(part, 0.0) for part in PARTS}
    assert vars(nested).keys() == {"now"}  # nothing is left on it
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
