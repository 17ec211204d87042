"""The source code of Python's standard library: a corpus that is available wherever Python is installed.

Knows nothing about models or tokenizers.
"""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path

from loraprune.errors import DataError

# Lookup tables and generated text rather than code: they would dominate the perplexity.
TABLES = ("encodings/", "pydoc_data/")
FOREIGN = ("site-packages/", "dist-packages/")
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
HELD_OUT_EVERY = 20


def is_held_out(path: str) -> bool:
    """Return whether a module belongs to the evaluation split: about one in twenty, by the checksum of its path."""
    return zlib.crc32(path.encode()) % HELD_OUT_EVERY == 0


def is_test(path: str) -> bool:
    """Return whether a module is a test of the library; Linux distributions ship Python without them."""
    return not TEST_FOLDERS.isdisjoint(path.split("/"))


def stdlib_modules(root: Path | None = None) -> dict[str, str]:
    """Read every module of the standard library: relative path -> source, in sorted order.

    Raises:
        DataError: if no source is found, as on a Python whose library is a zip archive.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    modules: dict[str, str] = {}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if path.startswith(TABLES) or path.startswith(FOREIGN):
            continue
        try:
            modules[path] = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a few tests of the parser are badly encoded on purpose
            continue
    if not modules:
        raise DataError(f"no Python source under {root}: give your own text as --data")
    return modules


def stdlib_texts(*, held_out: bool, tests: bool = False) -> list[str]:
    """Return the modules of one split; `tests` adds the library's own tests to the training split."""
    return [
        text
        for path, text in stdlib_modules().items()
        if is_held_out(path) == held_out and (not is_test(path) or (tests and not held_out))
    ]
