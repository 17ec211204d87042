"""Where a result may be written: asked before any of the work.

Knows nothing about how it is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from loraprune.runtime.hub import parts

PARTIAL = ".partial"
"""what the name of the folder ends with that a run writes to until it is done"""
OUR_FILES = ("report.json", "plan.json", "export.json")
"""a folder with one of these was written by `loraprune` or `save_pruned`"""


def is_ours(folder: Path) -> bool:
    """Say whether a folder may be replaced: it is empty, or a run wrote it."""
    return folder.is_dir() and (not any(folder.iterdir()) or holds_result(folder))


def holds_result(folder: Path) -> bool:
    """Say whether a command has ended with this folder."""
    return any((folder / name).is_file() for name in OUR_FILES)


def output_problem(
    output: str, *, overwrite: bool, resume: bool = False, inputs: Mapping[str, str | None] | None = None
) -> str | None:
    """Return what is wrong with a folder to write, or to go on writing, in one sentence.

    `inputs` maps options to what they name: a path among them must not be in a folder that is replaced.
    """
    if not output:
        return "--output is empty: name a folder to write"
    if problem := replaced_input(output, inputs or {}):
        return problem
    if os.path.exists(output):
        if not overwrite:
            ended = " (its run has ended, nothing is left to resume)" if resume and holds_result(Path(output)) else ""
            return f"--output {output} exists{ended}: choose another folder, or give --overwrite"
        if not is_ours(Path(output)):
            return f"--output {output} --overwrite: it is no folder that loraprune wrote, and is left alone; choose another one"
    why = unwritable(output)
    return f"--output {output}: cannot be written ({why}); choose another folder" if why else None


def replaced_input(output: str, inputs: Mapping[str, str | None]) -> str | None:
    """Return in one sentence which input would go with the folder that is replaced, or with what an unfinished run left."""
    for option, name in inputs.items():
        for place in (output, output + PARTIAL):
            if name and any(part and _is_inside(part, place) for part in parts(name)):
                option = option.replace("_", "-")
                return f"--{option} {name}: it is in {place}, which would be replaced; move it out, or choose another --output"
    return None


def _is_inside(name: str, folder: str) -> bool:
    """Say whether a name leads to a folder that is there, or to anything in it."""
    if "\0" in name + folder or not os.path.isdir(folder) or not os.path.lexists(name):
        return False
    inner, outer = os.path.realpath(name), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer + os.sep)


def unwritable(output: str) -> str | None:
    """Return why no folder of this name can be made, as far as that shows before it is tried."""
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
