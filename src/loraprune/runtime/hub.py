"""What a name given as a model or as data can lead to, as far as that shows without asking anybody.

Knows nothing about torch.
"""

from __future__ import annotations

import os
import re
from typing import Any

from huggingface_hub import constants

DEMO = "demo"
STDLIB = "stdlib"
OURS = frozenset({DEMO, STDLIB})
"""names of models and texts that come with the package"""
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
"""of data files; a name that ends so is taken for one"""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def at_home(name: Any) -> Any:
    """Return a name with `~` expanded to the home folder; anything else is returned as it is."""
    return os.path.expanduser(name) if isinstance(name, str) and name.startswith("~") else name


def lies_here(name: str | None) -> bool:
    """Say whether a name is a path of this machine, and no id of the hub."""
    return name is not None and (name.startswith((".", "/", "~")) or os.path.exists(name))


def may_be_on_hub(name: str) -> bool:
    """Say whether a name that leads nowhere on this machine can be an id of the hub."""
    return not lies_here(name) and not name.lower().endswith(SUFFIXES) and bool(HUB_ID.fullmatch(name))


def needs_no_hub(name: str | None) -> bool:
    """Say whether what a name leads to, or that it leads nowhere, shows without the hub; what is ours needs no look."""
    if not name or (name in OURS and not lies_here(name)):
        return False
    return bool(constants.HF_HUB_OFFLINE) or not may_be_on_hub(name)


def without_hub(value: str | list[str] | None) -> list[str]:
    """Return what can be looked at without the hub of an option that names one, several or none."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if name and needs_no_hub(name)]
