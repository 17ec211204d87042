"""Record which files of a folder a run wrote; the user's other files survive when the folder is replaced.

Knows nothing about what the files hold.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

RECORD = ".loraprune-files"
"""names of the files that a run wrote into its folder, one a line; hidden, so that nothing uploads it"""
ADDED_LATER = frozenset({RECORD, "report.html", "evaluation.json"})
"""files that other commands add to the folder of a finished run"""


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
    """Copy the user's files from a folder to the one that will replace it, and return their names.

    A file whose name the new folder has itself is kept as NAME.kept if its content differs.
    """
    kept = []
    for name in foreign_files(old):
        place = new / name
        if place.is_file() and filecmp.cmp(place, old / name, shallow=False):
            continue
        if os.path.lexists(place) or not _is_free(place.parent, new):
            place = new / f"{name.replace(os.sep, '_')}.kept"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, place, follow_symlinks=False)
        except (OSError, NotImplementedError):  # a file system without hard links
            shutil.copy2(old / name, place, follow_symlinks=False)
        kept.append(name)
    return kept


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
