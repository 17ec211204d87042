"""Write files and folders atomically: complete or not at all, whatever happens meanwhile.

Knows nothing about what is in them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""names, sizes and SHA-256 of all other files of a folder; written last"""
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    if os.name == "nt":
        return  # Windows opens no folders, and flushes no files that are opened to read
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder: `about` and the checksums of its files."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    text = json.dumps({**about, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_sealed(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder whose files all match it.

    Raises:
        ValueError: in words, if a file is missing, torn or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
    except OSError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{MANIFEST} is torn or altered") from None
    for name, (size, expected) in files.items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} is torn: {path.stat().st_size:,} bytes of {size:,}")
        if digest(path) != expected:
            raise ValueError(f"{name} was altered: its checksum is another one")
    assert isinstance(manifest, dict)
    return manifest


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def replace_folder(new: Path, place: Path) -> None:
    """Replace `place` by `new`; `place` is removed only then, and both are in the same file system."""
    sync_tree(new)
    if not place.exists():
        new.rename(place)
    else:
        exchange(new, place)
        shutil.rmtree(new)
    sync(place.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically; an existing file stays until then."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders: atomically if the system can, so that neither name is ever missing."""
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename and not rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
            return
        if rename and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    former = former_of(one)
    other.rename(former)
    try:
        one.rename(other)
    except OSError:
        former.rename(other)
        raise
    former.rename(one)


def former_of(new: Path) -> Path:
    """Return the temporary name of a folder that `new` replaces, on systems that cannot swap names."""
    return new.with_name(new.name + ".former")
