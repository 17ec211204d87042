"""The command line: parse, call one library function, print the result. Imports torch only when something runs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from loraprune import export_options, launch, recipes, settings
from loraprune.compare.settings import CompareConfig
from loraprune.complaints import explain
from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError, LoraPruneError, VerificationError, hide_secrets, problems_of
from loraprune.folder import lies_here
from loraprune.options import null_problems
from loraprune.resume.interrupts import Interrupted, handled
from loraprune.runfile import check_config_file

USAGE = 2
LONGEST = 2000
"""characters of a message; a value that is quoted in it may be a whole file"""


@dataclass(frozen=True, slots=True)
class Command:
    """One verb: its options, and the `module:function` in loraprune that carries it out."""

    options: type
    function: str
    show: str
    words: str | None = None
    """the option that bare words right behind the command stand for"""


COMMANDS: dict[str, Command] = {
    "inspect": Command(settings.InspectConfig, "describe:inspect", "tables.shapes:inspection"),
    "plan": Command(settings.PlanConfig, "describe:dry_run", "tables.shapes:dry_run"),
    "prune": Command(PruneConfig, "pipeline:prune", "tables.results:report"),
    "finetune": Command(FinetuneConfig, "pipeline:finetune", "tables.results:report"),
    "evaluate": Command(settings.EvaluateConfig, "judge:evaluate", "tables.results:evaluation"),
    "benchmark": Command(settings.BenchmarkConfig, "judge:benchmark", "tables.results:comparison"),
    "report": Command(settings.ReportConfig, "judge:redraw", "tables.results:drawn"),
    "export": Command(export_options.ExportConfig, "export.run:export", "tables.results:export"),
    "push": Command(export_options.PushConfig, "push:push", "tables.results:pushed"),
    "compare": Command(CompareConfig, "compare.run:compare", "tables.results:compared"),
    "compare-models": Command(
        settings.CompareModelsConfig, "lineup:compare_models", "tables.results:lined_up", words="models"
    ),
    "demo": Command(settings.DemoConfig, "demo.run:demo", "tables.results:demo"),
}


def build_parser(wanted: str) -> ArgumentParser:
    """Return the parser; options, types, defaults and help come from the configuration class of the wanted command.

    Other commands have their name and summary only: reading the options of all takes a quarter of a second.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="loraprune", description="Make transformers smaller: prune while fine-tuning with LoRA.",
                            exit_on_error=False, allow_abbrev=False)  # fmt: skip
    verbs = parser.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        summary = (command.options.__doc__ or "").strip().splitlines()[0]
        verb = ArgumentParser(exit_on_error=False, description=summary)
        verbs.add_subcommand(name, verb, help=summary)
        if name != wanted:
            continue
        verb.add_class_arguments(command.options)
        verb.add_argument("--config", action="config", help="YAML file with the same keys; flags override it")
        if issubclass(command.options, PruneConfig):
            # Never reaches the parser, which takes one kind of file: see files_first.
            verb.add_argument("--recipe", type=str, help=f"ready options: {', '.join(recipes.names())}")
        verb.add_argument("--json", type=bool, default=False, help="print the result as JSON")
        verb.add_argument("--debug", type=bool, default=False, help="show the traceback of an error")
    return parser


def normalise(arguments: Sequence[str]) -> list[str]:
    """Let `--trust-remote-code` stand for `--trust_remote_code`, and a bare `--overwrite` for `--overwrite true`."""
    options = COMMANDS[arguments[0]].options if arguments and arguments[0] in COMMANDS else None
    switches = {"json", "debug"} | {f.name for f in (fields(options) if options else ()) if f.type in ("bool", bool)}
    arguments = name_words(arguments)
    found = []
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        following = arguments[place + 1] if place + 1 < len(arguments) else "--"
        bare = name[2:] in switches and not equals and following.startswith("-")
        found.append(f"{name}=true" if bare else name + equals + value)
    return files_first(found)


def name_words(arguments: Sequence[str]) -> Sequence[str]:
    """Write `compare-models A B --data D` as `compare-models --models=["A", "B"] --data D`."""
    option = COMMANDS[arguments[0]].words if arguments and arguments[0] in COMMANDS else None
    end = next((place for place, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    if not option or end < 2:
        return arguments
    return [arguments[0], f"--{option}={json.dumps(arguments[1:end])}", *arguments[end:]]


def files_first(arguments: Sequence[str]) -> list[str]:
    """Move every `--recipe NAME` and then every `--config FILE` right behind the command.

    The parser lets what comes later override what comes earlier.
    """
    moved: dict[str, list[str]] = {"--recipe": [], "--config": []}
    others: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if waiting:
            moved[waiting].append(argument)
            waiting = None
        elif name in moved and equals:
            moved[name].append(value)
        elif name in moved:
            waiting = name
        else:
            others.append(argument)
    found = [f"--config={file}" for file in (*map(recipes.path, moved["--recipe"]), *moved["--config"])]
    return [*others[:1], *found, *([waiting] if waiting else []), *others[1:]]


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the command line.

    Raises:
        ConfigError: in one sentence, with the nearest name for an unknown option, key or command.
    """
    parser = build_parser(arguments[0] if arguments else "")
    if not arguments:
        parser.print_help()
        raise SystemExit(USAGE)
    normal = normalise(arguments)
    for argument in normal:
        if argument.startswith("--config="):
            check_config_file(argument.partition("=")[2])
    try:
        return parser.parse_args(normal)
    except argparse.ArgumentError as error:
        verb = arguments[0]
        known = [f.name for f in fields(COMMANDS[verb].options)] if verb in COMMANDS else []
        raise ConfigError(explain(str(error), verb, commands=COMMANDS, options=known)) from None


def call(target: str, *arguments: Any) -> Any:
    """Import `module:function` of this package and call it."""
    from importlib import import_module

    module, name = target.split(":")
    function: Callable[..., Any] = getattr(import_module(f"loraprune.{module}"), name)
    return function(*arguments)


def run(arguments: Sequence[str]) -> None:
    """Parse and carry out one command; the result goes to stdout."""
    parsed = parse(arguments)
    verb = parsed.subcommand
    launch.check_launch(verb)
    values = parsed[verb].as_dict()
    for name in ("config", "recipe", "json", "debug"):
        values.pop(name, None)
    command = COMMANDS[verb]
    try:
        empty = null_problems(command.options, values)
        if empty:
            raise ConfigError(*empty.values())
        options = command.options(**values)
    except ConfigError as error:
        # The files are looked at all the same, so that everything wrong is told at once.
        given = map(values.get, ("model", "models", "against", "data", "eval"))
        here = any(lies_here(path) for value in given for path in (value if isinstance(value, list) else [value]))
        raise ConfigError(*error.args, *(call("inputs:local_problems", verb, values) if here else [])) from None
    result = call(command.function, options)
    if not launch.is_first():
        return
    if parsed[verb].json:
        print(json.dumps(result.values, indent=1))
    else:
        call(command.show, result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 the input is wrong, 1 anything else."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("loraprune").setLevel(logging.INFO if launch.is_first() else logging.CRITICAL)
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # on import they tell which kernels are lacking
        logging.getLogger(library).setLevel(logging.ERROR)
    # Deprecations inside the libraries are for our tests (where they are errors), not for users.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Accelerate tells of what it leaves out of FSDP2 as it is asked to.
    warnings.filterwarnings("ignore", "Found .* Params4bit")
    debug = not {"--debug", "--debug=true"}.isdisjoint(arguments) and "--debug=false" not in arguments
    try:
        with handled():
            run(arguments)
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
    """Return a message as one line that a terminal can show, without anything secret."""
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(message.split()))
    return hide_secrets(printable)[:LONGEST]
