"""Classify the name of a model or of data as far as possible without the network.

Knows nothing about torch.
"""

from __future__ import annotations

import glob
import os
import re
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from loraprune.errors import nearest

DEMO = "demo"
STDLIB = "stdlib"
OURS = frozenset({DEMO, STDLIB})
"""names of models and texts that come with the package"""
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""of data files; a name that ends so is taken for one"""
COMPRESSED = (".gz", ".zst")
"""what may follow the suffix of a text"""
OFFLINE = "offline: HF_HUB_OFFLINE is set"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def at_home(name: Any) -> Any:
    """Return a name with `~` expanded to the home folder; anything else is returned as it is."""
    return os.path.expanduser(name) if isinstance(name, str) and name.startswith("~") else name


def data_suffix(name: str) -> str:
    """Return the suffix of a file's format, in small letters, without that of a compression."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_local(name: str | None) -> bool:
    """Return whether a name is a path of this machine, not an id of the hub."""
    return name is not None and (name.startswith((".", "/", "~")) or os.path.exists(name))


def may_be_on_hub(name: str) -> bool:
    """Return whether a name without a file or folder on this machine can be an id of the hub."""
    return not is_local(name) and data_suffix(name) not in SUFFIXES and bool(HUB_ID.fullmatch(name))


def needs_no_hub(name: str | None) -> bool:
    """Return whether a name can be resolved, or refused, without the hub."""
    if not name or (name in OURS and not is_local(name)):
        return False
    return bool(constants.HF_HUB_OFFLINE) or not may_be_on_hub(name)


def matching(pattern: str) -> list[str]:
    """Return the files that a pattern such as data/*.jsonl matches, sorted; none for a name that is not a pattern."""
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) and "\0" not in pattern else []


def parts(model: str) -> tuple[str, str | None]:
    """Return the base model and the folder of the adapter that BASE+ADAPTER names; a name that is a path, or has no +, is a base alone."""
    if os.path.exists(model) or "+" not in model:
        return model, None
    cuts = [place for place, letter in enumerate(model) if letter == "+"]
    # A path may hold a + itself: the adapter is what is there.
    cut = next((place for place in cuts if os.path.exists(at_home(model[place + 1 :]))), cuts[-1])
    return at_home(model[:cut]), at_home(model[cut + 1 :])


def is_gguf(name: str) -> bool:
    """Return whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf") and os.path.isfile(name)


def model_problem(name: str) -> str | None:
    """Return why there is no model of a name, as far as that can be found without the hub and without opening a folder."""
    base, adapter = parts(name)
    if adapter is not None:
        if not os.path.isdir(adapter):
            return f"{adapter or 'nothing'} after the + is not a folder; name one with adapter_config.json, as in BASE+ADAPTER"
        if is_gguf(base):
            return "an adapter is not merged into a GGUF file; name the checkpoint that it was trained on, as in BASE+ADAPTER"
        return f"{base or 'nothing'} before the +: {problem}" if (problem := model_problem(base)) else None
    if name == DEMO or os.path.isdir(name):  # unlike Path.is_dir, no error for a name that is too long
        return None
    if is_gguf(name):
        return None if find_spec("gguf") else "reading a GGUF file needs gguf, which is not installed; pip install gguf"
    if os.path.isfile(name):
        return "this is a file; name the folder that holds it and config.json"
    return None if may_be_on_hub(name) else "no such folder; check the path, or name a hub id such as org/name"


def uncached_model(name: str) -> str | None:
    """Return why there is no model of a hub id while the hub is switched off; None if there may be one, and for any other name."""
    base, _ = parts(name)
    if not constants.HF_HUB_OFFLINE or base in OURS or not may_be_on_hub(base):
        return None
    try:
        cached = try_to_load_from_cache(base, "config.json")
    except ValueError:  # no id of the hub
        cached = None
    return (
        None
        if isinstance(cached, str)
        else f"no such folder, nor in the hub's cache ({OFFLINE}); name a folder, or unset it"
    )


def uncached_data(name: str) -> str | None:
    """Return why there are no data of a hub id while the hub is switched off; None if there may be some, and for any other name."""
    identifier = name.partition(":")[0]
    # Names without an owner may be those of benchmarks, which lie elsewhere.
    if not constants.HF_HUB_OFFLINE or "/" not in identifier or not may_be_on_hub(name) or matching(at_home(name)):
        return None
    if _has_cached_data(identifier):
        return None
    return f"{name!r}: no such file or folder, nor a data set in the hub's cache ({OFFLINE}): name a file, or unset it"


def _has_cached_data(identifier: str) -> bool:
    """Return whether a data set is in the cache of the hub's client, or of `datasets`."""
    ours = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    places = (
        os.path.join(constants.HF_HUB_CACHE, "datasets--" + identifier.replace("/", "--")),
        os.path.join(ours, identifier.replace("/", "___")),
    )
    return any(map(os.path.isdir, places))


def scores_problem(path: str) -> str | None:
    """Return why a path leads to no scores of an earlier run; what is in the file is not looked at."""
    return None if os.path.isfile(path) else "no such file; name the scores.safetensors in the folder of an earlier run"


def task_data_problem(folder: str) -> str | None:
    """Return why a name leads to no data for the tasks of lm-eval; whether it has a file for each is not looked at."""
    return None if os.path.isdir(folder) else "no such folder; name one with a file for every task"


def data_problem(name: str) -> str | None:
    """Return why there are no data of a name, as far as that can be found without the hub and without opening a file."""
    path = at_home(name)
    if name == STDLIB or (name and os.path.exists(path)) or may_be_on_hub(name) or matching(path):
        return None
    return f"{name!r}: no such file or folder{like(path)}: check the path"


def like(path: str) -> str:
    """Return " (did you mean X?)" for the file or folder beside a path whose name is closest, or nothing."""
    try:
        return nearest(os.path.basename(path), os.listdir(os.path.dirname(path) or "."))
    except (OSError, ValueError):
        return ""
