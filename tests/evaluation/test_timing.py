"""Calls are timed fairly: in turns, after a warm-up, each long enough for the clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from loraprune.evaluation import timing
from loraprune.evaluation.timing import time_in_turns

CPU = torch.device("cpu")


class Machine:
    """A clock that only the calls move, and the order in which calls, waits and clock readings happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.events = 0.0, list[str]()
        monkeypatch.setattr(timing, "perf_counter", self.read)
        monkeypatch.setattr(timing, "_synchronise", lambda device: self.events.append("wait"))

    def read(self) -> float:
        self.events.append("read")
        return self.now

    def call(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.events.append(name)
            self.now += seconds()

        return run


def test_calls_alternate_after_a_warm_up_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    calls = {name: machine.call(name, lambda: 1.0) for name in "AB"}
    time_in_turns(calls, repeats=3, device=CPU)
    ran = [event for event in machine.events if event in calls]
    assert machine.events[:2] == ["A", "B"]  # warmed up before the clock is first read
    assert ran == ["A", "B"] * (1 + 1 + 3)  # warm-up, one try of the loop count, three repeats


def test_the_device_has_finished_before_every_reading_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    time_in_turns({"A": machine.call("A", lambda: 1.0)}, repeats=2, device=CPU)
    before = [machine.events[place - 1] for place, event in enumerate(machine.events) if event == "read"]
    assert before == ["wait"] * len(before)
    assert len(before) == 2 * (1 + 2)


def test_short_calls_are_looped_as_often_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    seconds = {"A": 0.004, "B": 0.001}
    calls = {name: machine.call(name, lambda name=name: seconds[name]) for name in seconds}
    spreads = time_in_turns(calls, repeats=5, device=CPU)
    ran = "".join(event for event in machine.events if event in calls)
    assert ran.count("A") == ran.count("B")
    loops = len(ran) - len(ran.rstrip("B"))
    assert loops * seconds["B"] >= timing.SECONDS_AT_LEAST  # the faster one lasts long enough
    assert {name: spread.median for name, spread in spreads.items()} == pytest.approx(seconds)


def test_a_clock_that_stands_still_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(timing, "LOOPS_AT_MOST", 50)
    spreads = time_in_turns({"A": machine.call("A", lambda: 0.0)}, repeats=1, device=CPU)
    assert spreads["A"].samples == (0.0,)


def test_median_and_extremes_are_those_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    durations = iter([9.0, 9.0, 2.0, 1.0, 4.0])  # warm-up, loop count, three repeats
    spread = time_in_turns({"A": machine.call("A", lambda: next(durations))}, repeats=3, device=CPU)["A"]
    assert (spread.median, spread.minimum, spread.maximum, spread.samples) == (2.0, 1.0, 4.0, (2.0, 1.0, 4.0))
