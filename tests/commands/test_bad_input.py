"""Damaged files of every kind through every command: one plain line, nothing left behind; a short form of `benchmarks.fuzz`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.fuzz import run as fuzz
from benchmarks.fuzz.inputs import KINDS, arguments

from loraprune import cli
from loraprune.commands import parser

ROUND = len(KINDS) + 1
"""cases after which every kind of input has had its turn"""


def test_damaged_input_of_every_kind_is_refused_or_still_good(tmp_path: Path) -> None:
    found = list(fuzz.outcomes_of(tmp_path, 2 * ROUND, seed=1))
    assert {one.kind for one in found} == {*KINDS, "options"}
    assert [f"{one.command}, {one.kind}: {one.damage}: {one.lost}: {one.error}" for one in found if one.lost] == []
    assert sum(one.code == 2 for one in found) > ROUND


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_same_case_is_made_again(tmp_path: Path) -> None:
    one, other = (next(fuzz.outcomes_of(folder(tmp_path / name), 1, first=4)) for name in ("a", "b"))
    assert (one.kind, one.command, one.damage, one.code) == (other.kind, other.command, other.damage, other.code)


def leaves_a_file(line: list[str]) -> int:
    sys.stderr.write("loraprune: error: wrong\n")
    (Path(line[1].partition("=")[2]).parent / "left").touch()
    return 2


def says_nothing(_: list[str]) -> int:
    return 2


def fails(_: list[str]) -> int:
    return 1


def raises(_: list[str]) -> int:
    raise ZeroDivisionError


def hangs(_: list[str]) -> int:
    time.sleep(30)
    return 2


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (leaves_a_file, "left or changed ['left']"), (says_nothing, "no plain line"), (fails, "exit code 1"),
        (raises, "ZeroDivisionError"), (hangs, "took more than"),
    ],
)  # fmt: skip
def test_what_is_lost_is_noticed(
    end: Callable[[list[str]], int], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls: a command that ends in each of the ways that it must not."""
    monkeypatch.setattr(cli, "main", end)
    good = tmp_path / "good"
    good.mkdir()
    fuzz.make_good(good)
    assert why in fuzz.try_case(good, 0, seed=0, seconds=0.5).lost


def test_every_command_is_tried() -> None:
    assert all(arguments(command, Path("good")) for command in parser.COMMANDS)
