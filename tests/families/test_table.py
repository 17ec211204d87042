"""The tables of families in docs/models.md agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from loraprune.families import find_groups
from loraprune.models.saving import storable_kinds
from tests.tiny import EVERY, VARIANTS, model_type, tiny_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {name: (stock, code) for name, stock, code in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)}


def shared_rows(text: str) -> dict[str, str]:
    """Return what the table says of each name in a row; on the page of images a column of units stands before."""
    rows = re.findall(r"^\| (`[^|]+) \| (?:[^|]+ \| )??([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    return {name: stock for names, stock in rows for name in re.findall(r"`([\w-]+)`", names)}


def present_part(stock: str) -> str:
    """Return what a row says of the version of transformers that is installed."""
    bound = re.search(r"\(transformers ([\d.]+) or newer\)", stock)
    return "" if bound and Version(transformers.__version__) < Version(bound[1]) else stock


SHARED = shared_rows(PAGE)
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


@pytest.mark.parametrize("name", dict.fromkeys(model_type(variant) for variant in EVERY))
def test_rows_of_several_families_say_whether_heads_and_channels_load_with_no_flag(name: str) -> None:
    stock = present_part(SHARED[name])
    variants = [variant for variant in EVERY if model_type(variant) == name]
    found = {
        kind for variant in variants for kind in storable_kinds(tiny_config(variant), find_groups(tiny_config(variant)))
    }
    if "channel" in found:  # of convolutions, which have no other kind
        assert stock == "both in proportion, stage by stage"
        return
    assert bool(re.search("heads|both", stock)) == ("attention" in found)
    assert bool(re.search("channels|FFN|both", stock)) == bool(found & {"ffn", "expert_ffn"})
    assert bool(re.search(r"experts(,|$)", stock.replace("of experts", ""))) == ("expert" in found)
