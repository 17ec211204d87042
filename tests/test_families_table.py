"""The README's table of families says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loraprune.checkpoint import storable_kinds
from loraprune.families import find_groups
from tests.tiny import EVERY, VARIANTS, model_type, tiny_config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = {
    name: (stock, code) for name, stock, code in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", README, re.MULTILINE)
}
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
