"""SIGINT and SIGTERM: exit codes, a checkpoint first, what was there before stays."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.runtime.interrupts import Interrupted, at_once, handled, kept
from loraprune.training.guarded_trainer import GuardedTrainer
from tests.pipeline.cases import SHORT
from tests.samples import save_tiny, write_text


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Let both signals count: a shell starts what it runs in the background with SIGINT ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_becomes_an_exception_with_the_exit_code_of_a_shell(number: int, code: int) -> None:
    former = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupt, handled():
        signal.raise_signal(number)
    assert interrupt.value.code == code
    assert signal.getsignal(number) is former


def test_a_signal_is_kept_and_the_second_one_ends() -> None:
    seen = []

    def two_signals() -> None:
        with kept() as pending:
            signal.raise_signal(signal.SIGTERM)
            seen.append(pending.number)
            signal.raise_signal(signal.SIGTERM)
            seen.append("went on")

    with pytest.raises(Interrupted):
        two_signals()
    assert seen == [signal.SIGTERM]


def test_an_overlooked_signal_ends_at_last() -> None:
    seen = []

    def one_signal() -> None:
        with kept():
            signal.raise_signal(signal.SIGTERM)
            seen.append("went on")

    with pytest.raises(Interrupted):
        one_signal()
    assert seen == ["went on"]


def test_an_ignored_signal_stays_ignored_and_other_threads_leave_signals_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with handled():
        signal.raise_signal(signal.SIGINT)
    found: list[Any] = []

    def look() -> None:
        with handled():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signalled_run_leaves_a_checkpoint_and_what_was_there(
    number: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_tiny(tmp_path / "model")
    write_text(tmp_path / "text.txt", 60)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    real = GuardedTrainer.compute_loss

    def signalling(self: GuardedTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            os.kill(os.getpid(), number)
        return real(self, *arguments, **options)

    monkeypatch.setattr(GuardedTrainer, "compute_loss", signalling)
    options = {"model": tmp_path / "model", "data": tmp_path / "text.txt", "output": tmp_path / "out"} | SHORT
    arguments = ["prune", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    assert cli.main([*arguments, "--overwrite"]) == code
    err = capfd.readouterr().err
    assert "a checkpoint of step 4 is written" in err
    assert "`loraprune resume " in caplog.text
    assert (tmp_path / "out" / "report.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "out.partial").glob("step-*")] == ["step-00000004"]
    monkeypatch.setattr(GuardedTrainer, "compute_loss", real)
    assert cli.main([*arguments, "--overwrite", "--resume", "--json"]) == 0
    assert not (tmp_path / "out.partial").exists()


def test_a_long_part_of_a_step_is_ended_at_once() -> None:
    reached = []

    def step() -> None:
        with kept(), at_once():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the part")

    with pytest.raises(Interrupted):
        step()
    assert reached == []


def test_a_signal_that_waits_ends_a_long_part_before_it_begins() -> None:
    reached = []

    def step() -> None:
        with kept():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the rest of the step")  # the control: elsewhere a signal waits
            with at_once():
                reached.append("the part")

    with pytest.raises(Interrupted):
        step()
    assert reached == ["the rest of the step"]
