"""Parse a command line and collect everything that is wrong with it.

Imports no torch: what is in models and data is read by the command itself, if nothing else is wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from loraprune.commands.names import wrong_inputs, wrong_names
from loraprune.commands.parser_errors import (
    Setting,
    missing_options,
    settings_of,
    split_words,
    unknown_command,
    unknown_option,
)
from loraprune.commands.verbs import COMMANDS
from loraprune.config import recipes
from loraprune.config.base import Options, null_problems
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.target import TARGETS, second_target
from loraprune.config.training import PruneConfig
from loraprune.config.values import register_types, takes_text
from loraprune.errors import ConfigError, Findings
from loraprune.runtime.hub import at_home

NO_OPTIONS = ("config", "recipe", "json", "debug")
"""what every command takes besides its own options"""


def build_parser(wanted: str) -> ArgumentParser:
    """Return the parser; options, types and defaults come from the configuration class of the wanted command.

    Only the options of that command are read, which is faster. Help is made elsewhere, see `loraprune.commands.help`.
    """
    register_types()
    parser = ArgumentParser(prog="loraprune", exit_on_error=False, allow_abbrev=False, add_help=False)
    verbs = parser.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        verb = ArgumentParser(exit_on_error=False, add_help=False)
        verbs.add_subcommand(name, verb)
        if name != wanted:
            continue
        verb.add_class_arguments(command.options)
        verb.add_argument("--config", action="config")
        if issubclass(command.options, PruneConfig):
            # Only unknown recipes reach the parser: see files_first.
            verb.add_argument("--recipe", type=str)
        verb.add_argument("--json", type=bool, default=False)
        verb.add_argument("--debug", type=bool, default=False)
    return parser


def normalise(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line in the form that the parser reads.

    `--trust-remote-code` becomes `--trust_remote_code`, a switch without a value `--overwrite=true`, and a word without a flag the value
    of the option that the command names for it.

    Raises:
        ConfigError: if there are too many such words, or the option is given too.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    verb, bare = arguments[0], COMMANDS[arguments[0]].bare
    switches = {"json", "debug"} | {f.name for f in fields(COMMANDS[verb].options) if f.type in ("bool", bool)}
    found: list[str] = []
    words: list[str] = []
    waits = False  # for the value of the option before
    for argument, following in pairwise([*arguments[1:], "--"]):
        if not argument.startswith("--"):
            (found if waits or not bare else words).append(argument)
            waits = False
            continue
        name, equals, value = argument.partition("=")
        name = "--" + name[2:].replace("-", "_")
        is_alone = following.startswith("-") or (bare is not None and following.lower() not in ("true", "false"))
        is_true = name[2:] in switches and not equals and is_alone
        found.append(f"{name}=true" if is_true else name + equals + value)
        waits = not equals and not is_true
    return files_first([verb, *(bare_words(verb, bare, words, found) if bare and words else ()), *found])


def bare_words(verb: str, option: str, words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return `--models=["A", "B"]` for the words A and B of `compare-models A B`, and `--model=A` for `inspect A`."""
    if any(other.partition("=")[0].removesuffix("+") == f"--{option}" for other in others):
        raise ConfigError(f"{verb} {' '.join(words)}: --{option} is given too; leave one of the two out")
    if option == "models":
        return [f"--{option}={json.dumps(words)}"]
    if len(words) > 1:
        raise ConfigError(f"{verb} {' '.join(words)}: only one {option} is allowed; see `loraprune {verb} --help`")
    return [f"--{option}={words[0]}"]


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
    if verb not in COMMANDS:
        raise ConfigError(unknown_command(verb, COMMANDS))
    parser = build_parser(verb)
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
    if problem := _second_target(given, parsed):
        raise ConfigError(*_all_wrong(parser, verb, normal[1:]), problem)
    return verb, parsed


def _second_target(given: Mapping[str, Setting], parsed: Namespace) -> str | None:
    """Return what is wrong with the default of --ratio, typed beside another target, which the options alone do not show.

    A run.yaml holds every option, so a file may name a ratio beside another target.
    """
    ratio = given.get("ratio")
    is_default = ratio is not None and not ratio.is_key and parsed.ratio == LoRAPruneConfig.ratio
    if not is_default or "heads" not in parsed:
        return None
    others = {name: value for name in (*TARGETS, "sizes", "max_drop") if (value := parsed.get(name)) is not None}
    return second_target(parsed.ratio, others) if others else None


def _is_lost(one: Setting, parsed: Namespace) -> bool:
    """Return whether the parser read a word as null: in YAML `#` begins a comment, and `~` is null. Only `null` is intended so."""
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
    """Return the options that a command requires."""
    return [one.name for one in fields(COMMANDS[verb].options) if one.default is one.default_factory is MISSING]


def _all_wrong(parser: ArgumentParser, verb: str, words: Sequence[str]) -> list[str]:
    """Return everything that is wrong with a command line; the parser reports only the first problem, so each option is read alone."""
    needed = _needed(verb)
    command = [verb, *(f"--{name}=[]" for name in needed)]
    files, found, right, types = Findings(), [], set(), _types(verb)
    settings: list[Setting] = []
    for option in split_words(words):
        with files.check():
            settings += settings_of(option)
    for one in settings:
        if one.option not in types:
            found.append(unknown_option(one, verb, types.keys() - NO_OPTIONS))
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
    """Return what is wrong with values of the right types; unknown options are skipped."""
    options = COMMANDS[verb].options
    empty = null_problems(options, values)
    skipped = {*unknown, *empty}
    filled = {name: "" for name in _needed(verb) if name in skipped}
    try:
        options(**(_without(values, skipped) | filled))
    except ConfigError as error:
        reported = tuple(f"--{name}" for name in skipped)
        return [*empty.values(), *(problem for problem in error.args if not problem.startswith(reported))]
    return list(empty.values())


def check_names(verb: str, options: Options) -> None:
    """Refuse names that do not exist before torch is imported.

    Raises:
        ConfigError: with all of them, and with what is wrong with the folders of models.
    """
    values = {one.name: getattr(options, one.name) for one in fields(options)}
    if wrong_names(verb, values):
        raise ConfigError(*wrong_inputs(verb, values))


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
