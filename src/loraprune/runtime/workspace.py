"""The folder that a run writes to until it is finished: OUTPUT.partial, beside OUTPUT.

    OUTPUT.partial/lock             held by the run that writes here
    OUTPUT.partial/run.json         its options, see `loraprune.runtime.run_file`
    OUTPUT.partial/result/          takes the name OUTPUT when everything in it is written and checked
    OUTPUT.partial/step-00000120/   checkpoints, see `loraprune.training.resume.files`
    OUTPUT.partial/blocks/          blocks trained after a removal
    OUTPUT.partial/rounds/          rounds that are finished, and the workspace of the one that is not, see `loraprune.rounds`
    OUTPUT.partial/tries/           tries of a search and the workspace of the one that is not finished, see `loraprune.search`
    OUTPUT.partial/sizes/           sizes that are finished, and the workspace of the one that is not, see `loraprune.sizes`
    OUTPUT.partial/vocabulary/      the model with fewer tokens, see `loraprune.training.vocabulary`
    OUTPUT.partial/teacher/         teacher logits, see `loraprune.training.teachers`

Knows nothing about models.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from loraprune.errors import CheckpointError, LoraPruneError, NumericsError, VerificationError
from loraprune.runtime.atomic import former_of, replace_folder
from loraprune.runtime.output import PARTIAL, output_problem
from loraprune.runtime.processes import first_alone
from loraprune.runtime.run_file import RUN
from loraprune.runtime.written import carry_over, record

CHECKPOINT = "step-"
"""prefix of the names of checkpoints"""
RESULT = "result"
UNVERIFIED = ".unverified"
"""suffix of the name of a result that failed its checks"""
ROUNDS = "rounds"
TRIES = "tries"
SIZES = "sizes"
WITHIN = (ROUNDS, TRIES, SIZES)
"""folders of whole runs inside a workspace, which the outer run continues"""
VOCABULARY = "vocabulary"
BLOCKS = "blocks"
"""blocks that are trained after a removal, see `loraprune.pruning.recovery.finished`"""

logger = logging.getLogger(__name__)


def workspace_of(output: Path) -> Path:
    """Return the folder that a run writes to until it is finished."""
    return output.with_name(output.name + PARTIAL)


@contextmanager
def new_folder(
    output: Path,
    *,
    overwrite: bool,
    resume: bool = False,
    costly: bool = False,
    inputs: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Give a folder in the workspace of `output` that takes its name only if the block succeeds.

    Files in a replaced folder that no run wrote are moved to the new one. If the block fails, only checkpoints stay; but a result that is
    `costly` and fails its checks with weights written is kept as OUTPUT.unverified. With `resume` those of an earlier run are there.
    Of several processes, which all see the folder, the first one makes and moves it. `inputs` is as `output_problem` has it.

    Raises:
        CheckpointError: if `output` exists and may not be replaced, another run writes it, an unfinished run would be lost, or
            the place is not writable.
    """
    with ExitStack() as stack:
        yield first_alone(
            lambda: stack.enter_context(
                _new_folder(output, overwrite=overwrite, resume=resume, costly=costly, inputs=inputs)
            )
        )
        first_alone(stack.close)


@contextmanager
def _new_folder(
    output: Path, *, overwrite: bool, resume: bool, costly: bool, inputs: Mapping[str, str | None] | None
) -> Iterator[Path]:
    output = output.absolute()
    workspace = workspace_of(output)
    _recover(output)
    problem = output_problem(str(output), overwrite=overwrite, resume=resume, inputs=inputs)
    if problem:
        raise CheckpointError(problem)
    if not (overwrite or resume) and _checkpoints(workspace):
        raise CheckpointError(
            f"--output {output}: an unfinished run left checkpoints in {workspace}: give --resume to continue it, or "
            "--overwrite to start again"
        )
    if overwrite and resume and output.exists():
        found = (
            "continues from the checkpoints of the run that was to replace it"
            if _checkpoints(workspace)
            else "starts again"
        )
        logger.info("--resume --overwrite: %s exists, and is replaced at the end; this run %s", output, found)
    with _locked(output, workspace):
        _sweep(workspace, checkpoints=False)
        folder = workspace / RESULT
        try:
            folder.mkdir()
            yield folder
            for file in folder.iterdir():
                if file.is_file():
                    file.chmod(0o644)  # safetensors makes its files private
            record(folder)
            if kept := carry_over(output, folder) if output.is_dir() else []:
                logger.warning("--output %s: kept the files that no run wrote: %s", output, ", ".join(kept[:20]))
            replace_folder(folder, output)
            _sweep(workspace, checkpoints=True)
        except VerificationError as error:
            if not costly or not any(folder.glob("*.safetensors")):
                raise
            raise VerificationError(f"{error}; {_keep_unverified(folder, output)}") from error
        except BaseException as error:
            left = _checkpoints(workspace)
            is_inner = output.parent.name in WITHIN
            if left and not is_inner and (isinstance(error, NumericsError) or not isinstance(error, LoraPruneError)):
                logger.warning(
                    "%s is kept: `%s` continues the run", left[-1], shlex.join(["loraprune", "resume", str(output)])
                )
            if _is_full(error):
                raise CheckpointError(
                    f"--output {output}: the disk is full ({error}); nothing was written: free some space"
                ) from None
            raise
        finally:
            _sweep(workspace, checkpoints=False)


def _keep_unverified(folder: Path, output: Path) -> str:
    """Move a result that failed its checks to a separate name, and return where it is and what to do."""
    place = output.with_name(output.name + UNVERIFIED)
    place = free_name(place) if os.path.lexists(place) else place
    replace_folder(folder, place)
    compare = shlex.join(["loraprune", "evaluate", "--model", str(place)])
    return (
        f"{output.name} was not written; the model is in {place}: it may differ from the trained model. Compare it with `{compare}`, "
        "and report this with the command and what is in that folder beside the weights"
    )


def free_name(output: Path) -> Path:
    """Return OUTPUT-2, or the next name of the kind that is not taken, neither by a folder nor by a run that is not finished."""
    names = (output.with_name(f"{output.name}-{number}") for number in count(2))
    return next(name for name in names if not os.path.lexists(name) and not workspace_of(name).exists())


def has_checkpoints(workspace: Path) -> bool:
    """Return whether an unfinished run left checkpoints or finished runs inside it."""
    return bool(_checkpoints(workspace))


def forget_checkpoints(workspace: Path, *, but: Sequence[str] = ()) -> None:
    """Remove the files of an unfinished run, except for `but`, when another one starts; until then nothing may be lost."""
    for path in _contents(workspace):
        if path.name not in (RESULT, *but):
            shutil.rmtree(path)


@contextmanager
def _locked(output: Path, workspace: Path) -> Iterator[None]:
    """Lock the workspace against other runs; afterwards it is removed unless files are left in it."""
    lock = FileLock(workspace / "lock")
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(f"--output {output}: another run is writing it now; choose another folder") from None
    except OSError as error:
        raise CheckpointError(
            f"--output {output}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    try:
        yield
    finally:
        empty = not _contents(workspace)
        lock.release()
        if empty:
            shutil.rmtree(workspace, ignore_errors=True)


def _contents(workspace: Path) -> list[Path]:
    """Return the files that a run left; lock and options do not count, as a run cannot continue from them."""
    return [path for path in workspace.iterdir() if path.name not in ("lock", RUN)]


def _checkpoints(workspace: Path) -> list[Path]:
    """Return what an unfinished run can continue from: checkpoints, or finished runs inside it and the checkpoints of the next one."""
    finished = (path for inner in WITHIN for path in workspace.glob(f"{inner}/*") if path.suffix != PARTIAL)
    own = (BLOCKS, f"{CHECKPOINT}*")
    patterns = (*own, *(f"{inner}/*{PARTIAL}/{each}" for inner in WITHIN for each in own))
    return [*sorted(finished), *(path for pattern in patterns for path in sorted(workspace.glob(pattern)))]


def _sweep(workspace: Path, *, checkpoints: bool) -> None:
    """Remove half-written files; with `checkpoints`, or if there are none, everything else too."""
    everything = checkpoints or not _checkpoints(workspace)
    for path in _contents(workspace):
        if everything or path.name == RESULT or path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)


def _recover(output: Path) -> None:
    """Restore the name of a folder that a run was about to replace when it was killed."""
    former = former_of(workspace_of(output) / RESULT)
    if os.path.isdir(former) and not output.exists():  # unlike Path.is_dir, no error for a name that is too long
        former.rename(output)


def _is_full(error: BaseException) -> bool:
    """Return whether a write failed for lack of space; safetensors has the number in its text only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
