"""Write docs/options.md from the descriptions of the options, so that it says what `--help-all` says.

    python scripts/options_page.py

`tests/config/test_describe.py` fails if the page is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill

from loraprune.commands.verbs import COMMANDS, GENERAL, SECTIONS
from loraprune.config import recipes
from loraprune.config.base import dashed
from loraprune.config.describe import Option, describe, grouped

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
INTRODUCTION = """\
# Options

`loraprune COMMAND --help` shows the common options of a command, and `--help-all` shows every one. This page lists them
in the same groups.

On the command line, an option is written `--eval-every 50` (`--eval_every 50` works too), and a switch such as
`--overwrite` needs no value. Lists are written `[1,16]`. In a file for `--config`, the name has underscores and no
dashes: `eval_every: 50`. The command line overrides a file, and a file overrides `--recipe`.

The commands `inspect`, `plan`, `evaluate`, `benchmark`, `report`, `export` and `push` take the model as a word:
`loraprune inspect small` means `loraprune inspect --model small`.

## Shell completion

```
pip install 'loraprune[completion]'
```

Then add one line to the start-up file of the shell:

| shell | file | line |
|---|---|---|
| bash | `~/.bashrc` | `eval "$(loraprune --print-completion bash)"` |
| zsh | `~/.zshrc` | `eval "$(loraprune --print-completion zsh)"` |
| tcsh | `~/.tcshrc` | ``eval `loraprune --print-completion tcsh` `` |
"""
SHARING = ("finetune", "compare", "plan")
"""commands of which only the options that differ from those of `prune` are listed"""
FLAG = re.compile(r"(?<![\w`])(--[a-z][a-z-]*)")


def page() -> str:
    """Return the text of the page."""
    parts = [
        INTRODUCTION,
        *(part for verbs in SECTIONS.values() for verb in verbs for part in section(verb)),
        *general(),
    ]
    return "\n".join(parts)


def section(verb: str) -> Iterator[str]:
    """Yield the parts of a command."""
    command, options = COMMANDS[verb], describe(COMMANDS[verb].options)
    yield f"## `{verb}`\n"
    yield f"{fill(command.summary, 120)}\n"
    if verb in SHARING:
        ours = describe(COMMANDS["prune"].options)
        yield f"{fill(shared(options, ours), 120, break_on_hyphens=False, break_long_words=False)}\n"
        options = [option for option in options if option not in ours]
    for title, members in grouped(options).items():
        yield f"### {verb}: {title}\n"
        yield "\n".join(entry(option) for option in members) + "\n"


def shared(options: Sequence[Option], ours: Sequence[Option]) -> str:
    """Return which options a command has as `prune` has them."""
    same, missing = [one for one in ours if one in options], [one for one in ours if one not in options]
    these = "The options below, and those of `prune`" if len(options) > len(same) else "The options of `prune`"
    if not missing:
        return f"{these}."
    names = {option.name for option in options}
    absent = [option for option in missing if option.name not in names]
    if len(absent) < len(same):
        return f"{these} without {_flags(absent)}." if absent else f"{these}."
    return f"{these}, but only {_flags(same)}."


def entry(option: Option) -> str:
    """Return the line of an option."""
    value = "" if option.is_switch else f" {option.metavar}"
    default = f" Default: `{option.default_text}`." if option.default_text else ""
    words = FLAG.sub(r"`\1`", option.text)
    text = f"- `{option.flag}{value}`: {words}.{default}"
    return fill(text, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def general() -> Iterator[str]:
    """Yield the options that every command has."""
    yield "## Every command\n"
    values = {"config": " FILE", "recipe": " NAME"}
    texts = {
        name: text.format(recipes=", ".join(f"`{one}`" for one in recipes.names())) for name, text in GENERAL.items()
    }
    texts["recipe"] += "; only for `prune` and `compare`"
    lines = [f"- `--{dashed(name)}{values.get(name, '')}`: {text}." for name, text in texts.items()]
    yield "\n".join(fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines) + "\n"


def _flags(options: Sequence[Option]) -> str:
    return ", ".join(f"`{option.flag}`" for option in options)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
