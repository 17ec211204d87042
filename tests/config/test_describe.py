"""The page of options says what the help says."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from loraprune.commands import verbs
from loraprune.commands.verbs import COMMANDS
from loraprune.config.base import dashed
from loraprune.config.training import PruneConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, PAGE = ROOT / "scripts" / "options_page.py", ROOT / "docs" / "options.md"


def page() -> str:
    text: str = runpy.run_path(str(SCRIPT))["page"]()
    return text


def test_the_page_of_options_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"run python {SCRIPT.relative_to(ROOT)}"
    monkeypatch.setitem(verbs.GENERAL, "json", "print something else")
    assert PAGE.read_text(encoding="utf-8") != page()


def test_the_page_has_every_command_and_option_and_no_long_lines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [f"## `{verb}`" in text for verb in COMMANDS] == [True] * len(COMMANDS)
    listed = set(re.findall(r"^- `(--[\w-]+)", text, re.MULTILINE))
    assert {f"--{dashed(one.name)}" for one in fields(PruneConfig)} <= listed
    assert not {flag for flag in listed if "_" in flag}
    assert max(map(len, text.splitlines())) <= 140
