"""Help and shell completion, made from the descriptions of the options. Imports neither torch nor the parser of real runs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from loraprune.commands.verbs import COMMANDS, GENERAL, SECTIONS, Command
from loraprune.config import recipes
from loraprune.config.base import dashed
from loraprune.config.describe import NAMES, PATHS, Option, describe, grouped
from loraprune.config.training import PruneConfig
from loraprune.errors import ConfigError, nearest

HELP, ALL = ("-h", "--help"), "--help-all"
VERSION, COMPLETION = "--version", "--print-completion"
SHELLS = ("bash", "zsh", "tcsh")
WIDEST = 118
"""columns of the text on a wide terminal"""
SUMMARY = "Make transformers smaller: prune a model while fine-tuning it with LoRA."
FIRST = ("demo", "prune --model Qwen/Qwen3-0.6B --data train.jsonl --output small --ratio 0.2 --steps 1000")
"""examples of the overview"""


def answer(arguments: Sequence[str]) -> str | None:
    """Return the text that a command line asks for instead of a result: help, version or completion; None for any other.

    Raises:
        ConfigError: for a shell without completion, or without the extra that writes it.
    """
    if arguments[:1] == [VERSION]:
        return f"loraprune {version('loraprune')}\n"
    if arguments and arguments[0].partition("=")[0] == COMPLETION:
        return completion((" ".join(arguments)[len(COMPLETION) :]).lstrip("= "))
    verb = arguments[0] if arguments else HELP[0]
    if arguments and {*HELP, ALL}.isdisjoint(arguments):
        return None
    if verb in COMMANDS:
        return command_help(verb, everything=ALL in arguments).format_help()
    return overview().format_help() if verb in (*HELP, ALL) else None


def overview() -> argparse.ArgumentParser:
    """Return a parser whose help lists all commands."""
    parser = _parser("loraprune", "loraprune COMMAND [options]", SUMMARY, FIRST)
    for title, verbs in SECTIONS.items():
        group = parser.add_argument_group(title)
        for verb in verbs:
            group.add_argument(verb, help=COMMANDS[verb].summary.rstrip("."))
    group = parser.add_argument_group("other")
    group.add_argument("COMMAND --help", help="show the options of a command")
    group.add_argument(VERSION, action="store_true", help="show the version")
    group.add_argument(COMPLETION, choices=SHELLS, help="print a script that completes commands and options in a shell")
    return parser


def command_help(verb: str, *, everything: bool) -> argparse.ArgumentParser:
    """Return a parser whose help shows the common options of a command, or all of them."""
    command = COMMANDS[verb]
    parser = _parser(f"loraprune {verb}", _usage(verb, command), command.summary, command.examples)
    options = describe(command.options)
    if command.common and not everything:
        options = [option for option in options if option.name in command.common]
    for title, members in grouped(options).items():
        group = parser.add_argument_group(title)
        for option in members:
            _add(group.add_argument, option, bare=command.bare)
    _add_general(parser.add_argument_group("general").add_argument, command, everything=everything)
    return parser


def completion(shell: str) -> str:
    """Return the script that completes commands and options in a shell.

    Raises:
        ConfigError: for an unknown shell, or if shtab is not installed.
    """
    if shell not in SHELLS:
        raise ConfigError(f"{COMPLETION} {shell}{nearest(shell, SHELLS)}: one of {', '.join(SHELLS)} is needed")
    if find_spec("shtab") is None:
        raise ConfigError(f"{COMPLETION} {shell}: shtab is not installed; pip install 'loraprune[completion]'")
    import shtab

    parser = argparse.ArgumentParser("loraprune", description=SUMMARY)
    verbs = parser.add_subparsers()
    for verb, command in COMMANDS.items():
        one = verbs.add_parser(verb, help=command.summary, add_help=False)
        for option in describe(command.options):
            _add(one.add_argument, option, bare=command.bare)
        _add_general(one.add_argument, command, everything=True)
    found: str = shtab.complete(parser, shell)
    return found


def _parser(prog: str, usage: str, summary: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    lines = "\n".join(_wrapped(f"loraprune {example}") for example in examples)
    return argparse.ArgumentParser(
        prog, usage, summary, f"examples:\n{lines}", formatter_class=_Formatter, add_help=False
    )


def _wrapped(command: str) -> str:
    """Return a command on lines that fit, and that a shell reads as one."""
    options = command.replace(" --", "\0--").split("\0")
    lines = [f"  {options[0]}"]
    for option in options[1:]:
        if len(lines[-1]) + len(option) + 3 > _width():
            lines[-1] += " \\"
            lines.append(f"      {option}")
        else:
            lines[-1] += f" {option}"
    return "\n".join(lines)


def _width() -> int:
    """Return the columns that help may take."""
    return min(shutil.get_terminal_size().columns - 2, WIDEST)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, and no line longer than the terminal or `WIDEST`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_width())


def _usage(verb: str, command: Command) -> str:
    words = [f"loraprune {verb}"]
    if command.bare:
        word = NAMES[command.bare]
        word = f"{word} {word} ..." if command.bare == "models" else word
        words.append(word if command.bare in command.required else f"[{word}]")
    words += [f"--{dashed(name)} {NAMES[name]}" for name in command.required if name != command.bare]
    return " ".join([*words, "[options]"])


def _add(add: Callable[..., argparse.Action], option: Option, *, bare: str | None) -> None:
    """Add one option to a group; the one that needs no flag as a word."""
    notes = [f"or {option.flag}"] if option.name == bare else []
    notes += [f"default: {option.default_text}"] if option.default_text else []
    text = (option.text + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%")
    if option.name == bare:
        several = option.name == "models"
        action = add(option.name, metavar=NAMES[option.name], help=text, nargs="+" if several else None)
    elif option.is_switch:
        action = add(option.flag, action="store_true", help=text)
    else:
        action = add(option.flag, metavar=option.metavar, choices=option.choices or None, help=text)
    if option.name in PATHS:
        action.complete = _files()  # type: ignore[attr-defined]


def _add_general(add: Callable[..., argparse.Action], command: Command, *, everything: bool) -> None:
    config = add("--config", metavar="FILE", help=GENERAL["config"])
    config.complete = _files()  # type: ignore[attr-defined]
    if issubclass(command.options, PruneConfig):
        names = recipes.names()
        text = GENERAL["recipe"].format(recipes=", ".join(names))
        add("--recipe", metavar="NAME", choices=names, help=text)
    add("--json", action="store_true", help=GENERAL["json"])
    if everything:
        add("--debug", action="store_true", help=GENERAL["debug"])
        add("--print-config", action="store_true", help=GENERAL["print_config"])
    if command.common and not everything:
        add(ALL, action="store_true", help="show all options")
    add(*HELP, action="store_true", help="show this help")


def _files() -> dict[str, Any]:
    """Return how shtab completes names of files; nothing where only help is shown."""
    if find_spec("shtab") is None:
        return {}
    import shtab

    return dict(shtab.FILE)
