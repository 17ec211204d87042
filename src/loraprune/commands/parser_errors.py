"""What the command-line parser complains of, in one line with the value and what is right.

Its messages are read by their form, and what has another form is passed on as it is. Knows nothing about options.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from loraprune.errors import nearest

WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list, such as [1, 2]",
    "dict": "a mapping, such as {name: value}",
    "NoneType": "null",
}
"""type -> what a value of it is"""


def explain(message: str, verb: str, *, commands: Collection[str], options: Collection[str]) -> str:
    """Turn the parser's message about a command line that begins with `verb` into one line, with the nearest known name."""
    text = " ".join(message.split())
    unknown = re.search(
        r"(?i:unrecognized arguments): (?:--)?([\w.-]+)|does not accept option '([^']+)'|invalid choice: '([^']+)'",
        text,
    )
    missing = re.search(r"the following arguments are required: (.+)", text)
    wrong = re.match(r'Parser key "([\w.]+)": ', text)
    if unknown:
        word = next(group for group in unknown.groups() if group)
        what, known, page = ("option", options, f"{verb} --help") if options else ("command", commands, "--help")
        return f"unknown {what} {word!r}{nearest(word, known)}: see `loraprune {page}`"
    if missing:
        return missing_options([name.strip().split(".")[-1] for name in missing[1].split(",")], verb)
    if wrong:
        return f"--{wrong[1].split('.')[-1]}{explain_value(text)}"
    return text


def missing_options(names: Sequence[str], verb: str) -> str:
    """Return the line about options that a command cannot do without."""
    return f"missing {' '.join('--' + name for name in names)}: see `loraprune {verb} --help`"


def explain_value(message: str) -> str:
    """Return " VALUE: what is needed instead" for the parser's message about the value of an option."""
    text = re.sub(r'^Parser key "[\w.]+": ', "", " ".join(message.split()))
    found = re.search(r"Subtypes: \[(.+)\] Errors: .* Given value: (.*)", text) or re.search(
        r"Expected an? (.+)\. Got value: (.*)", text
    )
    if not found:
        return f": {text}"
    types, value = found.groups()
    literal = re.search(r"Literal\[(.+?)\]", types)
    choices = [choice.strip(" '\"") for choice in literal[1].split(",")] if literal else []
    kinds = [f"one of {', '.join(choices)}"] if len(choices) > 1 else choices
    kinds += sorted((WORDS.get(name, name) for name in re.findall(r"<class '(\w+)'>", types)), key="null".__eq__)
    return f" {value}{nearest(value, choices)}: {' or '.join(kinds)} is needed"


def split_words(words: Sequence[str]) -> list[list[str]]:
    """Return the words of each option together, and each word that belongs to none."""
    groups: list[list[str]] = []
    for word in words:
        waits = bool(groups) and groups[-1][0].startswith("--") and "=" not in groups[-1][0] and len(groups[-1]) == 1
        if waits and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
