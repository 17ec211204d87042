"""Check where a result may be written, before any work.

Knows nothing about how it is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from loraprune.runtime.hub import parts

PARTIAL = ".partial"
"""suffix of the folder that a run writes to until it is finished"""
OUR_FILES = ("report.json", "plan.json", "export.json", "sizes.json")
"""a folder with one of these was written by `loraprune` or `save_pruned`"""


def is_ours(folder: Path) -> bool:
    """Return whether a folder may be replaced: it is empty, or a run wrote it."""
    return folder.is_dir() and (not any(folder.iterdir()) or holds_result(folder))


def holds_result(folder: Path) -> bool:
    """Return whether a command has finished this folder."""
    return any((folder / name).is_file() for name in OUR_FILES)


def output_problem(
    output: str, *, overwrite: bool, resume: bool = False, inputs: Mapping[str, str | None] | None = None
) -> str | None:
    """Return what is wrong with a folder to write, or to continue writing, in one sentence.

    `inputs` maps options to what they name: a path among them must not be in a folder that is replaced.
    """
    if not output:
        return "--output is empty: name a folder to write"
    if problem := replaced_input(output, inputs or {}):
        return problem
    if os.path.islink(output):
        return f"--output {output}: it is a symbolic link, which cannot be replaced by a folder; name another folder"
    if os.path.exists(output):
        if not overwrite:
            ended = " (its run has ended, nothing is left to resume)" if resume and holds_result(Path(output)) else ""
            return f"--output {output} exists{ended}: choose another folder, or give --overwrite"
        if not is_ours(Path(output)):
            return f"--output {output} --overwrite: not written by loraprune, so it is not replaced; choose another one"
    why = unwritable(output)
    return f"--output {output}: cannot be written ({why}); choose another folder" if why else None


def replaced_input(output: str, inputs: Mapping[str, str | None]) -> str | None:
    """Return in one sentence which inputs would be deleted with the replaced folder, or with the files of an unfinished run."""
    for place in (output, output + PARTIAL):
        inside = [
            f"--{option.replace('_', '-')} {name}"
            for option, name in inputs.items()
            if name and any(part and _is_inside(part, place) for part in parts(name))
        ]
        if inside:
            they, them = ("it is", "it") if len(inside) == 1 else ("they are", "them")
            return f"{' and '.join(inside)}: {they} in {place}, which would be replaced; move {them} out, or choose another --output"
    return None


def _is_inside(name: str, folder: str) -> bool:
    """Return whether a name is an existing folder, or anything in it."""
    if "\0" in name + folder or not os.path.isdir(folder) or not os.path.lexists(name):
        return False
    inner, outer = os.path.realpath(name), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer + os.sep)


def unwritable(output: str) -> str | None:
    """Return why no folder of this name can be created, as far as that can be found without trying."""
    try:
        os.lstat(output)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte; a file on the way
        return getattr(error, "strerror", None) or str(error)
    parent = os.path.dirname(os.path.abspath(output))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return os.strerror(errno.ENOTDIR)
    return None if os.access(parent, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
