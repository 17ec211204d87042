"""The README's table of families says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loraprune.checkpoint import storable_kinds
from loraprune.families import find_groups
from tests.encoders import ENCODERS
from tests.tiny import EVERY, VARIANTS, model_type, tiny_config
from tests.vision import VISION

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = {
    name: (stock, code) for name, stock, code in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", README, re.MULTILINE)
}
SHARED_ROWS = {
    name: (stock, code)
    for names, stock, code in re.findall(r"^\| (`[^|]+) \| (?:[^|]+ \| )??([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    for name in re.findall(r"`([\w-]+)`", names)
}
"""of encoders, and of images, where a column of units stands before"""
WORDS = {
    "heads": ("attention",),
    "channels": ("ffn", "expert_ffn"),
    "experts,?$": ("expert",),
    "shared expert": ("shared_ffn",),
}


@pytest.mark.parametrize("name", dict.fromkeys(model_type(variant) for variant in VARIANTS))
def test_the_table_says_which_kinds_load_with_no_flag(name: str) -> None:
    stock, code = ROWS[name]
    variants = [variant for variant in EVERY if model_type(variant) == name]
    groups = {variant: find_groups(tiny_config(variant)) for variant in variants}
    storable = {kind for variant in variants for kind in storable_kinds(tiny_config(variant), groups[variant])}
    present = {group.kind for variant in variants for group in groups[variant]}
    for word, kinds in WORDS.items():
        if kinds == ("ffn", "expert_ffn") or set(kinds) & present:
            assert bool(re.search(word, stock)) == bool(set(kinds) & storable), word
    assert ("–" in code) == (present <= storable and name not in ("gemma2", "gemma3_text", "phi"))


@pytest.mark.parametrize("name", dict.fromkeys(model_type(variant) for variant in ENCODERS | VISION))
def test_rows_of_several_families_say_whether_heads_and_channels_load_with_no_flag(name: str) -> None:
    stock, _ = SHARED_ROWS[name]
    variants = [variant for variant in EVERY if model_type(variant) == name]
    found = {
        kind for variant in variants for kind in storable_kinds(tiny_config(variant), find_groups(tiny_config(variant)))
    }
    if "channel" in found:  # of convolutions, which have no other kind
        assert stock == "both in proportion, stage by stage"
        return
    assert bool(re.search("heads|both", stock)) == ("attention" in found)
    assert bool(re.search("channels|FFN|both", stock)) == ("ffn" in found)
