"""What a command line means: the commands, their options, and everything that is wrong with one, told at once.

Imports no torch: what is in models and data is looked at by the command itself, if nothing else is wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from loraprune.commands.compare.settings import CompareConfig
from loraprune.commands.names import wrong_inputs, wrong_names
from loraprune.commands.parser_errors import (
    HELP,
    Setting,
    missing_options,
    settings_of,
    split_words,
    unknown_command,
    unknown_option,
)
from loraprune.config import commands, export, recipes
from loraprune.config.base import Options, null_problems
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.config.values import takes_text
from loraprune.errors import ConfigError, Findings
from loraprune.runtime.hub import at_home

USAGE = 2
NO_OPTIONS = ("config", "recipe", "json", "debug")
"""what every command takes besides its own options"""


@dataclass(frozen=True, slots=True)
class Command:
    """One verb and its options."""

    options: type[Options]
    function: str
    """the `module:function` in loraprune that carries it out"""
    show: str
    """the `module:function` in loraprune.commands.tables that prints the result"""
    words: str | None = None
    """the option that bare words right behind the command stand for"""


COMMANDS: dict[str, Command] = {
    "inspect": Command(commands.InspectConfig, "commands.inspect:inspect", "shapes:inspection"),
    "plan": Command(commands.PlanConfig, "commands.plan:dry_run", "shapes:dry_run"),
    "prune": Command(PruneConfig, "pipeline:prune", "results:report"),
    "finetune": Command(FinetuneConfig, "pipeline:finetune", "results:report"),
    "evaluate": Command(commands.EvaluateConfig, "commands.evaluate:evaluate", "results:evaluation"),
    "benchmark": Command(commands.BenchmarkConfig, "commands.benchmark:benchmark", "results:comparison"),
    "report": Command(commands.ReportConfig, "commands.report:redraw", "results:drawn"),
    "export": Command(export.ExportConfig, "export.run:export", "results:export"),
    "push": Command(export.PushConfig, "export.push:push", "results:pushed"),
    "compare": Command(CompareConfig, "commands.compare.run:compare", "results:compared"),
    "compare-models": Command(
        commands.CompareModelsConfig, "commands.compare_models:compare_models", "results:lined_up", words="models"
    ),
    "demo": Command(commands.DemoConfig, "commands.demo:demo", "results:demo"),
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
            # Of those that there are only the file reaches the parser: see files_first.
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
    verb = COMMANDS.get(arguments[0]) if arguments else None
    moved: dict[str, list[str]] = {"--config": []}
    if verb and issubclass(verb.options, PruneConfig):
        moved["--recipe"] = []
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
    named = moved.pop("--recipe", [])
    ready = [f"--config={recipes.path(one)}" if one in recipes.names() else f"--recipe={one}" for one in named]
    found = [*ready, *(f"--config={at_home(file)}" for file in moved["--config"])]
    return [*others[:1], *found, *([waiting] if waiting else []), *others[1:]]


def parse(arguments: Sequence[str]) -> tuple[str, Namespace]:
    """Return the command and what its options are set to.

    Raises:
        ConfigError: with everything that is wrong, and the nearest name for an unknown option, key or command.
    """
    verb = arguments[0] if arguments else ""
    parser = build_parser(verb)
    if not arguments:
        parser.print_help()
        raise SystemExit(USAGE)
    if verb not in (*COMMANDS, *HELP):
        raise ConfigError(unknown_command(verb, COMMANDS))
    normal = normalise(arguments)
    try:
        given = {one.option: one for words in split_words(normal[1:]) for one in settings_of(words)}
        parsed = parser.parse_args(normal)[verb]
    except (ConfigError, argparse.ArgumentError) as error:
        raise ConfigError(*_all_wrong(parser, verb, normal[1:]) or (str(error),)) from None
    types = _types(verb)
    lost = {name: one for name, one in given.items() if _is_lost(one, parsed)}
    if not all(takes_text(types[name]) for name in lost):
        raise ConfigError(*_all_wrong(parser, verb, normal[1:]))
    for name, one in lost.items():
        parsed[name] = one.value
    return verb, parsed


def _is_lost(one: Setting, parsed: Namespace) -> bool:
    """Say whether the parser made nothing of a word: to YAML `#` begins a comment, and `~` is null. Only `null` is meant so."""
    return one.option not in NO_OPTIONS and parsed.get(one.option) is None and one.value not in (None, "", "null")


def make_options(verb: str, parsed: Namespace) -> Options:
    """Return the options of a command.

    Raises:
        ConfigError: with everything that is wrong with them, with names in them, and with the folders of models.
    """
    values = _without(parsed.as_dict(), NO_OPTIONS)
    if wrong := _wrong_options(verb, values):
        raise ConfigError(*wrong, *wrong_inputs(verb, values))
    return COMMANDS[verb].options(**values)


def _types(verb: str) -> dict[str, Any]:
    """Return the type of every option of a command."""
    hints = get_type_hints(COMMANDS[verb].options)
    plain = {"config": str, "recipe": str, "json": bool, "debug": bool}
    return {one.name: hints[one.name] for one in fields(COMMANDS[verb].options)} | plain


def _needed(verb: str) -> list[str]:
    """Return the options that a command cannot do without."""
    return [one.name for one in fields(COMMANDS[verb].options) if one.default is one.default_factory is MISSING]


def _all_wrong(parser: ArgumentParser, verb: str, words: Sequence[str]) -> list[str]:
    """Return everything that is wrong with a command line, of which the parser tells the first only: each option is read alone."""
    needed = _needed(verb)
    command = [verb, *(f"--{name}=[]" for name in needed)]
    files, found, right, types = Findings(), [], set(), _types(verb)
    settings: list[Setting] = []
    for option in split_words(words):
        with files.check():
            settings += settings_of(option)
    for one in settings:
        if one.option not in types:
            found.append(unknown_option(one.name, verb, types.keys() - NO_OPTIONS))
            continue
        try:
            lost = _is_lost(one, parser.parse_args([*command, *one.words])[verb]) and not takes_text(types[one.option])
        except argparse.ArgumentError:
            lost = True
        if lost:
            found.append(one.problem(types[one.option]))
        else:
            right.add(one.name)
            command += one.words
    missing = [name for name in needed if name not in {one.option for one in settings}]
    if missing and not files.errors:  # a file that cannot be read may name them
        found.append(missing_options(missing, verb))
    unknown = set(needed) - right
    values = _without(parser.parse_args(command)[verb].as_dict(), NO_OPTIONS)
    found += _wrong_options(verb, values, unknown=unknown)
    return [*files.problems(), *found, *wrong_inputs(verb, _without(values, unknown))]


def _wrong_options(verb: str, values: Mapping[str, Any], *, unknown: Collection[str] = ()) -> list[str]:
    """Return what is wrong with values of the right types; of those that are unknown nothing is told."""
    options = COMMANDS[verb].options
    empty = null_problems(options, values)
    skipped = {*unknown, *empty}
    filled = {name: "" for name in _needed(verb) if name in skipped}
    try:
        options(**(_without(values, skipped) | filled))
    except ConfigError as error:
        told = tuple(f"--{name}" for name in skipped)
        return [*empty.values(), *(problem for problem in error.args if not problem.startswith(told))]
    return list(empty.values())


def check_names(verb: str, options: Options) -> None:
    """Refuse names that lead nowhere before torch is imported.

    Raises:
        ConfigError: with all of them, and with what is wrong with the folders of models.
    """
    values = {one.name: getattr(options, one.name) for one in fields(options)}
    if wrong_names(verb, values):
        raise ConfigError(*wrong_inputs(verb, values))


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
