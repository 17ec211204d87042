"""The Dockerfile copies what the package needs, installs extras that exist, and starts the command.

No image is built here: that needs Docker and a network.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parents[1]
FILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def problems(text: str) -> list[str]:
    """Return what is wrong with the text of a Dockerfile, as far as that shows without building it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in shlex.split(line)[:-1]]
    let_in = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()}
    needed = {project["readme"], *project["license-files"], "pyproject.toml", "constraints.txt", "src"}
    extras = re.findall(r'"/src\[([\w,]+)\]"', text)[0].split(",")
    entry = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', text, re.MULTILINE)
    return [
        *(f"{name} is not there" for name in copied if not (ROOT / name).exists()),
        *(f"{name} is not copied" for name in sorted(needed - set(copied))),
        *(f"{name} is kept out by .dockerignore" for name in copied if name not in let_in),
        *(f"{name} is no extra" for name in extras if name not in project["optional-dependencies"]),
        *(f"{name} is no command" for name in entry if name not in project["scripts"]),
    ]


def test_the_dockerfile_fits_the_project() -> None:
    assert problems(FILE) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("README.md LICENSE", "README.md", "LICENSE is not copied"),
        ("[report,", "[reports,", "reports is no extra"),
        ('["loraprune"]', '["lorapruned"]', "lorapruned is no command"),
        ("COPY src", "COPY sources", "sources is not there"),
    ],
)
def test_a_mistake_would_be_found(old: str, new: str, words: str) -> None:
    assert words in problems(FILE.replace(old, new))
