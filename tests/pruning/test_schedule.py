"""The schedule rises from 0 to exactly 1 at its last event, whatever the length of the run."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.pruning.schedule import EVENTS_AT_LEAST, INTERVAL, Schedule, ScheduleName

NAMES = get_args(ScheduleName)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    warmup = draw(st.floats(0, 0.9))
    cooldown = draw(st.floats(0, 0.99 - warmup))
    return Schedule(
        draw(st.sampled_from(NAMES)), draw(st.integers(1, 400)), draw(st.none() | st.integers(1, 50)), warmup, cooldown
    )


@given(schedules())
def test_progress_never_falls_and_is_one_exactly_from_the_last_event_on(schedule: Schedule) -> None:
    progress = [schedule.progress(step) for step in range(schedule.steps + 1)]
    assert progress == sorted(progress)
    assert progress[0] == 0.0
    assert next(step for step, value in enumerate(progress) if value == 1.0) == schedule.last
    assert 1 <= schedule.last <= schedule.steps


@given(schedules())
def test_the_last_event_of_every_run_is_the_step_that_reaches_the_target(schedule: Schedule) -> None:
    events = [step for step in range(1, schedule.steps + 1) if schedule.is_event(step)]
    assert events[-1] == schedule.last
    assert schedule.name != "oneshot" or len(events) == 1


@given(schedules(), st.integers(1, 400))
def test_the_next_event_is_the_first_one_from_a_step_on(schedule: Schedule, step: int) -> None:
    events = [later for later in range(step, schedule.steps + 1) if schedule.is_event(later)]
    assert schedule.next_event(step) == min(events, default=schedule.last)


def test_a_step_is_remembered_as_long_as_its_scores_have_some_weight_left() -> None:
    schedule = Schedule("oneshot", 200, None, 0.0, 0.5)
    assert [step for step in range(1, 101) if schedule.is_remembered(step, 0.9)] == list(range(57, 101))
    assert [step for step in range(1, 101) if schedule.is_remembered(step, 0.0)] == [100]
    often = Schedule("cubic", 200, 10, 0.1, 0.1)
    assert all(often.is_remembered(step, 0.9) for step in range(21, 181))


@given(schedules())
def test_a_run_with_enough_steps_prunes_often_enough(schedule: Schedule) -> None:
    events = [step for step in range(1, schedule.steps + 1) if schedule.is_event(step)]
    possible = schedule.last - schedule.first
    if schedule.name != "oneshot":
        longest = schedule.interval or max(1, min(INTERVAL, possible // EVENTS_AT_LEAST))
        assert max((b - a for a, b in zip([schedule.first, *events], events)), default=0) <= longest  # noqa: B905
        if schedule.interval is None:
            assert len(events) >= min(EVENTS_AT_LEAST, possible)


def test_the_cubic_schedule_is_the_one_of_the_paper() -> None:
    """s_t = s_f (1 - (1 - (t - wT) / (T - (w + c) T))^3) with w = c = 0.1, and T = 1000."""
    schedule = Schedule("cubic", 1000, 10, 0.1, 0.1)
    for step in (101, 150, 500, 899):
        assert schedule.progress(step) == pytest.approx(1 - (1 - (step - 100) / 800) ** 3)
    assert schedule.progress(100) == 0.0
    assert schedule.stride == 10
    assert [step for step in range(1, 1001) if schedule.is_event(step)] == list(range(110, 901, 10))


def test_cubic_removes_early_and_linear_evenly() -> None:
    cubic, linear = Schedule("cubic", 100, 5, 0.0, 0.0), Schedule("linear", 100, 5, 0.0, 0.0)
    assert linear.progress(50) == 0.5
    assert cubic.progress(50) == 0.875
