"""Phases of a run on stderr: one display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from loraprune.runtime import progress
from loraprune.runtime.progress import phase, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_long_phase_writes_lines_and_a_short_one_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "loraprune")
    assert list(shown(range(3), "evaluating")) == [0, 1, 2]
    assert caplog.messages == []
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with phase("training blocks", 40) as advance:
        advance(10, state="layer 3")
    assert caplog.messages == ["training blocks: 10 of 40  layer 3, about 0 s left"]


def test_phases_within_phases_share_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with phase("pruning", 5) as outer:
        outer(2)
        (display,) = progress._open
        with phase("refitting", 60) as inner:
            inner(30, state="half")
            assert progress._open == [display]
            assert [task.description for task in display.tasks] == ["pruning", "refitting"]
        assert [task.description for task in display.tasks] == ["pruning"]
    assert progress._open == []
    assert "refitting" in screen.getvalue()
