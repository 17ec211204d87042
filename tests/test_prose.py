"""The documents are plain technical English: no word of the list below, and no line of prose over 120 columns.

Code is left out: blocks, names in backticks, the targets of links. A name that contains such a word can so be quoted.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SOURCES_TOO = ["src/loraprune/**/*.py", "scripts/readme_figure.py"]
"""patterns of source files whose docstrings, help texts and messages are read too"""
SENTENCE = 4
"""words from which on a string is read as a message; shorter ones are names, keys and labels"""
WORDS = {
    r"(?<!there )\b(?:is|are|was|were|be) no (?!longer\b)": "say what it is: a buffer, non-finite",
    r"parted": "sharded",
    r"anew": "again, re-initialised, from scratch",
    r"judg(?:e|es|ed|ing)\b": "evaluate",
    r"tells?\b(?! apart)|told\b": "report, print, warn",
    r"opinions?\b": "outputs",
    r"promise[sd]?\b": "expected",
    r"lies? (?:in|beside|beneath|there|where)\b": "is in, is stored in",
    r"stands? (?:in|first|there|beside|where)\b": "is in",
    r"lets? (?:go|their)\b|let go\b": "free, remove",
    r"refit(?:s|ted|ting)?\b": "least-squares reconstruction",
    r"(?:on|of) (?:its|their) own\b": "separate, its",
    r"of (?:your|my|one's) own\b": "your own ...",
    r"merged in numbers": "dequantised and merged",
    r"knows? nothing (?!about|else)": "untrained",
    r"what (?:matters|counts|helps)\b": "importance, score",
    r"midst": "middle",
    r"mend(?:s|ed|ing)?\b": "recover, correct",
    r"by (?:which|what) (?:it|they|he)\b": "with",
    r"(?:goes|go|going) on (?:after|from|with|as|uncompiled)\b": "continue",
    r"as it stands|as they stand\b": "as it is",
    r"made up for\b": "recovered",
    r"seldom\b": "rarely",
    r"(?<!Model-)\w+iz(?:e|es|ed|ing|ation|er|ers)\b(?<!size)(?<!sizes)(?<!sized)(?<!tokenizer)(?<!tokenizers)(?<!prize)": "-ise",
}
"""what is not written -> what is written instead"""
COLUMNS = 120
CODE = re.compile(
    r"^ *```.*?^ *```$|^(?: {4}|:::).*?$|`[^`\n]+`|\]\([^)]*\)|<[^>]*>|--[a-z][a-z-]+", re.MULTILINE | re.DOTALL
)
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def blank(match: re.Match[str]) -> str:
    """Return as many lines as a match has, so that line numbers stay."""
    return " CODE " + "\n" * match[0].count("\n")


def words_to_avoid(text: str) -> list[str]:
    """Return line, word and remedy of every word of the list in a text, code left out."""
    prose = CODE.sub(blank, text)
    # A phrase may be wrapped.
    flowing = prose.replace("\n", " ")
    return [
        f"{prose.count(chr(10), 0, found.start()) + 1}: {found[0]!r}: {instead}"
        for pattern, instead in WORDS.items()
        for found in re.finditer(rf"\b(?:{pattern})", flowing, re.IGNORECASE)
    ]


def long_lines(text: str) -> list[str]:
    """Return every line of prose that is too long; tables, images and code cannot be wrapped."""
    lines = FENCE.sub(blank, text).splitlines()
    return [line for line in lines if len(line) > COLUMNS and not line.startswith(("|", "![", "    "))]


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, of its classes and functions, and below its assignments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield inspect.cleandoc(node.value.value)


def messages(source: str) -> Iterator[str]:
    """Yield errors, warnings, log lines and texts of tables and pages: strings of some words that are not docstrings."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) not in inside and len((text := words_of(node)).split()) >= SENTENCE:
            yield text


def words_of(node: ast.AST) -> str:
    """Return the text of a string, with its placeholders as code; nothing for other nodes."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part) or "`value`" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*DOCUMENTS, *(ROOT / "skills").rglob("*.md")], ids=by_name)
def test_a_document_has_no_word_to_avoid(path: Path) -> None:
    assert words_to_avoid(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_name)
def test_the_prose_of_a_document_fits_its_columns(path: Path) -> None:
    assert long_lines(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_the_text_of_a_notebook_has_no_word_to_avoid(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert words_to_avoid(text) == []


@pytest.mark.parametrize("pattern", SOURCES_TOO)
@pytest.mark.parametrize("texts", [docstrings, messages])
def test_the_texts_of_a_source_have_no_word_to_avoid(pattern: str, texts: Callable[[str], Iterator[str]]) -> None:
    files = list(ROOT.glob(pattern))
    assert files
    found = {
        by_name(path): [word for text in texts(path.read_text(encoding="utf-8")) for word in words_to_avoid(text)]
        for path in files
    }
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "text",
    ["Layers are judged anew.", "A count that is no number.", "The file lies in the folder.", "as the loss\ntells us",
     "It stands\nin a table.", "a process of its own", "Weights are refitted.", "quantized weights", "Optimizers keep a state."],
)  # fmt: skip
def test_a_word_to_avoid_is_found(text: str) -> None:
    assert words_to_avoid(text)


@pytest.mark.parametrize(
    "text",
    ["There is no such file.", "It is no longer there.", "`--judge anew`", "```\nloraprune prune --told\n```", "a tokenizer of size 4",
     "[the log](judging.md)", "It knows nothing about hooks."],
)  # fmt: skip
def test_plain_words_and_code_are_not_found(text: str) -> None:
    assert words_to_avoid(text) == []


def test_a_long_line_of_prose_is_found_and_a_row_of_a_table_is_not() -> None:
    assert long_lines("word " * 30)
    assert long_lines("| " + "word " * 30 + "|\n```\n" + "code " * 30 + "\n```") == []


def test_a_docstring_is_read_and_other_strings_are_not() -> None:
    assert list(docstrings('"""A module."""\nx = 1\n"""An assignment."""\ny = "a value"\n')) == [
        "A module.",
        "An assignment.",
    ]


def test_a_message_is_read_and_names_and_code_in_it_are_not() -> None:
    source = '"""Told."""\nraise ConfigError(f"--told {told}: the file of its own " f"lies in {{folder}}, `anew`")\nx = "told"\n'
    (text,) = messages(source)
    assert text == "--told `value`: the file of its own lies in {folder}, `anew`"
    assert [line.split("'")[1] for line in words_to_avoid(text)] == ["lies in", "of its own"]
