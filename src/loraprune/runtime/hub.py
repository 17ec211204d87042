"""What a name given as a model or as data can lead to, as far as that shows without asking anybody.

Knows nothing about torch.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import PurePath
from typing import Any

from huggingface_hub import constants

from loraprune.errors import nearest

DEMO = "demo"
STDLIB = "stdlib"
OURS = frozenset({DEMO, STDLIB})
"""names of models and texts that come with the package"""
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""of data files; a name that ends so is taken for one"""
COMPRESSED = (".gz", ".zst")
"""what may follow the suffix of a text"""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def at_home(name: Any) -> Any:
    """Return a name with `~` expanded to the home folder; anything else is returned as it is."""
    return os.path.expanduser(name) if isinstance(name, str) and name.startswith("~") else name


def data_suffix(name: str) -> str:
    """Return the suffix that says what is in a file, in small letters; that of a compression does not count."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def lies_here(name: str | None) -> bool:
    """Say whether a name is a path of this machine, and no id of the hub."""
    return name is not None and (name.startswith((".", "/", "~")) or os.path.exists(name))


def may_be_on_hub(name: str) -> bool:
    """Say whether a name that leads nowhere on this machine can be an id of the hub."""
    return not lies_here(name) and data_suffix(name) not in SUFFIXES and bool(HUB_ID.fullmatch(name))


def needs_no_hub(name: str | None) -> bool:
    """Say whether what a name leads to, or that it leads nowhere, shows without the hub; what is ours needs no look."""
    if not name or (name in OURS and not lies_here(name)):
        return False
    return bool(constants.HF_HUB_OFFLINE) or not may_be_on_hub(name)


def without_hub(value: str | list[str] | None) -> list[str]:
    """Return what can be looked at without the hub of an option that names one, several or none."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if name and needs_no_hub(name)]


def matching(pattern: str) -> list[str]:
    """Return the files that a pattern such as data/*.jsonl matches, sorted; none for a name that is no pattern."""
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) and "\0" not in pattern else []


def model_problem(name: str) -> str | None:
    """Return why a name leads to no model, as far as that shows without the hub and without looking into a folder."""
    if name == DEMO or os.path.isdir(name):  # unlike Path.is_dir, no error for a name that is too long
        return None
    if os.path.isfile(name):
        if name.lower().endswith(".gguf"):
            return (
                "a GGUF file holds rounded weights that cannot be trained; name the folder or hub id of the 16- or 32-bit checkpoint it "
                "was made from, and `loraprune export --format gguf` the result"
            )
        return "this is a file; name the folder that holds it and config.json"
    return None if may_be_on_hub(name) else "no such folder; check the path, or name a hub id such as org/name"


def data_problem(name: str) -> str | None:
    """Return why a name leads to no data, as far as that shows without the hub and without looking into a file."""
    path = at_home(name)
    if name == STDLIB or (name and os.path.exists(path)) or may_be_on_hub(name) or matching(path):
        return None
    try:
        close = nearest(os.path.basename(path), os.listdir(os.path.dirname(path) or "."))
    except (OSError, ValueError):
        close = ""
    return f"{name!r}: no such file or folder{close}: check the path"
