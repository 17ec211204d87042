"""What a release says about itself agrees, and what would spoil one is found."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import yaml
from scripts import release_check

ROOT = Path(__file__).resolve().parents[1]


VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]  # type: ignore[index]
INFO = f"loraprune-{VERSION}.dist-info"
SEMANTIC = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
SCREEN = 50
"""lines"""


def test_the_version_is_semantic_and_the_same_everywhere() -> None:
    assert re.fullmatch(SEMANTIC, VERSION)
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]) == VERSION
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == VERSION


def test_contributing_fits_a_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= SCREEN


def made_wheel(folder: Path, *, without: str = "", extra: str = "", extras: set[str] = release_check.EXTRAS) -> Path:
    """Write a wheel of empty files with everything that is looked for, but for what the case changes."""
    wheel = folder / f"loraprune-{VERSION}-py3-none-any.whl"
    text = "".join(f"Provides-Extra: {name}\n" for name in sorted(extras)) + "License-Expression: Apache-2.0\n"
    names = {*(f"loraprune/{name}" for name in release_check.SHIPPED), f"{INFO}/licenses/LICENSE"} - {without}
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{INFO}/METADATA", text)
        for name in [*names, *([extra] if extra else [])]:
            archive.writestr(name, "")
    return wheel


def test_a_whole_wheel_is_accepted(tmp_path: Path) -> None:
    assert release_check.wheel_problems(made_wheel(tmp_path), VERSION) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"without": "loraprune/py.typed"}, "lacks loraprune/py.typed"),
     ({"without": f"{INFO}/licenses/LICENSE"}, "LICENSE"),
     ({"extra": "tests/conftest.py"}, "has tests/conftest.py"),
     ({"extra": "loraprune/__pycache__/cli.pyc"}, "__pycache__"),
     ({"extras": {"dev"}}, "lacks eval")],
)  # fmt: skip
def test_an_incomplete_wheel_is_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    problems = release_check.wheel_problems(made_wheel(tmp_path, **changes), VERSION)  # type: ignore[arg-type]
    assert any(told in problem for problem in problems), problems


def test_every_shipped_file_lies_in_the_source() -> None:
    assert release_check.missing(
        release_check.SHIPPED,
        (str(path.relative_to(ROOT / "src/loraprune")) for path in (ROOT / "src/loraprune").rglob("*")),
        "src",
    ) == []  # fmt: skip
