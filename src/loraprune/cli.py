"""The command line: parse it, call one library function, print the result. Imports torch only when something runs."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from loraprune.commands.help import answer
from loraprune.commands.verbs import COMMANDS
from loraprune.errors import LoraPruneError, VerificationError, hide_secrets, problems_of
from loraprune.runtime import launch
from loraprune.runtime.interrupts import Interrupted, handled

USAGE = 2
"""exit code of wrong input"""
LONGEST = 2000
"""maximum characters of a message, which may quote a whole file"""

logger = logging.getLogger(__name__)


def call(target: str, *arguments: Any) -> Any:
    """Import `module:function` of this package and call it."""
    from importlib import import_module

    module, name = target.split(":")
    function: Callable[..., Any] = getattr(import_module(f"loraprune.{module}"), name)
    return function(*arguments)


def run(arguments: Sequence[str]) -> None:
    """Parse and carry out one command; the result goes to stdout."""
    from loraprune.commands.parser import check_names, make_options, parse  # its libraries are not needed for help

    verb, parsed = parse(arguments)
    launch.check_launch(verb)
    command = COMMANDS[verb]
    options = make_options(verb, parsed)
    check_names(verb, options)
    for sentence in options.idle():
        logger.warning(sentence)
    result = call(command.function, options)
    if not launch.is_first():
        return
    if parsed.json:
        print(json.dumps(result.values, indent=1))
    else:
        call(f"commands.tables.{command.show}", result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 2 for wrong input, 1 for any other failure."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("loraprune").setLevel(logging.INFO if launch.is_first() else logging.CRITICAL)
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # on import they log which kernels are missing
        logging.getLogger(library).setLevel(logging.ERROR)
    # Deprecations inside the libraries are for our tests (where they are errors), not for users.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Accelerate tells of what it leaves out of FSDP2 as it is asked to.
    warnings.filterwarnings("ignore", "Found .* Params4bit")
    debug = not {"--debug", "--debug=true"}.isdisjoint(arguments) and "--debug=false" not in arguments
    try:
        with handled():
            if (text := answer(arguments)) is None:
                run(arguments)
            else:
                print(text, end="")
                return 0 if arguments else USAGE
    except KeyboardInterrupt as interrupt:
        if launch.is_first():
            print(f"loraprune: interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return interrupt.code if isinstance(interrupt, Interrupted) else 130
    except LoraPruneError as error:
        if debug:
            raise
        # All processes end with the same errors; one tells them.
        for problem in problems_of(error) if launch.is_first() else ():
            print(f"loraprune: error: {_line(problem)}", file=sys.stderr)
        return 1 if isinstance(error, VerificationError) else USAGE
    except Exception as error:
        if debug:
            raise
        who = f"process {launch.number()} of {launch.count()} " if launch.count() > 1 else ""
        what = f"{type(error).__name__}: {_line(str(error))}"
        print(f"loraprune: {who}failed: {what} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _line(message: str) -> str:
    """Return a message as one line that a terminal can show, without secrets."""
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(message.split()))
    return hide_secrets(printable)[:LONGEST]
