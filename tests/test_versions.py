"""`make oldest` installs the lower bounds that pyproject.toml promises, and the page about versions names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
BOUNDS = dict(re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+)', PROJECT))
NEEDED = re.findall(r'^    "([a-z0-9-]+)', PROJECT.partition("\ndependencies = [")[2].partition("\n]")[0], re.MULTILINE)
OLDEST = dict(
    re.findall(r"^([a-z0-9-]+)==([\d.]+)", (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"), re.MULTILINE)
)


def test_what_the_package_needs_is_pinned() -> None:
    assert "transformers" in NEEDED
    assert set(NEEDED) - set(OLDEST) == set()


@pytest.mark.parametrize("name", sorted(OLDEST.keys() & BOUNDS.keys() - {"torch"}))
def test_a_pin_is_the_lower_bound(name: str) -> None:
    assert Version(OLDEST[name]) == Version(BOUNDS[name])


@pytest.mark.parametrize("name", ["torch", "transformers", "peft"])
def test_the_page_names_the_lower_bound(name: str) -> None:
    assert f"| {name} | {BOUNDS[name]} |" in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
