"""A text that was cut in the middle of an emoji is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraprune.data import read_examples
from loraprune.data.labelled import make_labelled
from loraprune.data.sources import open_source
from loraprune.errors import DataError
from tests.samples import jsonl

CUT, WHOLE = "cut in the middle \ud83d", "whole \U0001f600 and naïve"


def rows(text: str) -> dict[str, Any]:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
    return {
        "text": {"text": text}, "chat": {"messages": said}, "pair": {"source": "a", "target": text}, "class": {"text": text, "label": 1},
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "chat", "pair", "class"])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_half_a_character_is_named_by_its_place(form: str, suffix: str, tmp_path: Path) -> None:
    def read(text: str) -> object:
        one, other = rows("fine")[form], rows(text)[form]
        content = jsonl(one, other)
        (tmp_path / f"a.{suffix}").write_text(content if suffix == "jsonl" else f"[{','.join(content.splitlines())}]")
        name = str(tmp_path / f"a.{suffix}")
        return make_labelled(open_source(name).read("train")) if form == "class" else read_examples(name, "train")

    with pytest.raises(DataError, match=rf"a\.{suffix}, (line|item) 2: it holds \\ud83d"):
        read(CUT)
    assert read(WHOLE)  # the control
