"""Record which files of a folder a run wrote; the user's other files survive when the folder is replaced.

Knows nothing about what the files hold, only which of them a library would read as a part of the model.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

RECORD = ".loraprune-files"
"""names of the files that a run wrote into its folder, one a line; hidden, so that nothing uploads it"""
ADDED_LATER = frozenset({RECORD, "report.html", "evaluation.json"})
"""files that other commands add to the folder of a finished run"""
PARTS = (
    "adapter_*", "added_tokens.json", "additional_chat_templates/*", "chat_template*", "config.json", "config_sentence_transformers.json",
    "generation_config.json", "merges.txt", "modules.json", "*processor_config.json", "special_tokens_map.json", "tokenizer*", "vocab*",
    "*.model", "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
"""what transformers, PEFT and engines read as a part of a model if it is beside the weights"""
KEPT = ".kept"
"""suffix of the name of a file that would be a part of the new result, or has the name of one"""


def record(folder: Path) -> None:
    """Record which files a folder holds now."""
    (folder / RECORD).unlink(missing_ok=True)
    (folder / RECORD).write_text("".join(f"{name}\n" for name in _names(folder)), encoding="utf-8")


def foreign_files(folder: Path) -> list[str]:
    """Return the files of a folder that no run wrote; all of them where there is no record."""
    try:
        ours = set((folder / RECORD).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        ours = set()
    return [name for name in _names(folder) if name not in ours | ADDED_LATER]


def carry_over(old: Path, new: Path) -> list[str]:
    """Copy the user's files from a folder to the one that will replace it, and return their names, with the new ones.

    A file whose name the new folder has itself is kept as NAME.kept if its content differs; so is one that would be read as a part of the
    new model, such as an adapter or a chat template.
    """
    kept = []
    for name in foreign_files(old):
        place = new / name
        if place.is_file() and filecmp.cmp(place, old / name, shallow=False):
            continue
        if os.path.lexists(place) or not _is_free(place.parent, new) or _is_part(name):
            place = new / f"{name.replace(os.sep, '_')}{KEPT}"
        while os.path.lexists(place):
            place = place.with_name(place.name + KEPT)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, place, follow_symlinks=False)
        except (OSError, NotImplementedError):  # a file system without hard links
            shutil.copy2(old / name, place, follow_symlinks=False)
        kept.append(name if place == new / name else f"{name} (as {place.name})")
    return kept


def _is_part(name: str) -> bool:
    """Return whether a library would read a file as a part of the model in its folder."""
    name = name.replace(os.sep, "/")
    return not name.endswith(KEPT) and any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in PARTS
    )


def _is_free(folder: Path, root: Path) -> bool:
    """Return whether a folder below `root` is there or can be made."""
    while folder != root and not folder.exists():
        folder = folder.parent
    return folder.is_dir()


def _names(folder: Path) -> list[str]:
    """Return the paths of all files and links below a folder, relative to it; links to folders are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in (*files, *links)]
    return sorted(found)
