"""Tables in terminals of any width: no word is broken."""

from __future__ import annotations

import pytest

from loraprune.commands.tables.frame import show

COLUMNS = ("size", "parameters", "removed of prunable", "file", "memory of training", "shape")
ROW = ("90%", "4,148,480", "12.5 %", "7.91 MiB", "533.60 MiB", "num_attention_heads 6, intermediate_size 480")


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 48])
def test_every_word_of_a_table_is_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show("a model", COLUMNS, [ROW])
    printed = capsys.readouterr().out
    assert {word for text in (*COLUMNS, *ROW) for word in text.split()} <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= width


def test_a_narrow_terminal_gets_lists_and_a_wide_one_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show("a model", COLUMNS, [ROW, ("80%", "", "26.0 %", "7.00 MiB", "508 MiB", "heads 6\nFFN 376")])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if not line.startswith(" ")] == ["a model", "size 90%", "size 80%"]
    assert [line.split() for line in lines[lines.index("size 80%") + 1 :]] == [
        ["removed", "of", "prunable", "26.0", "%"],
        ["file", "7.00", "MiB"],
        ["memory", "of", "training", "508", "MiB"],
        ["shape", "heads", "6"],
        ["FFN", "376"],
    ]
    monkeypatch.setenv("COLUMNS", "120")
    show("a model", COLUMNS, [ROW])
    assert "\u2503" in capsys.readouterr().out
