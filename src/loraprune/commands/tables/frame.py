"""The style of all tables. No word is broken: where a table is too wide for the terminal, each row becomes a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

BESIDE = 3
"""characters that a column takes besides its text"""


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True) -> None:
    """Print one table; the first column is text, and the others are right-aligned if they are `figures`.

    In a terminal that is too narrow for the longest word of every column, each row is a list of column and value.
    """
    console = Console()
    widths = _widths(columns, rows, console.width - BESIDE * len(columns) - 1)
    if widths is None and len(columns) > 2:
        _as_lists(console, title, columns, rows)
        return
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if place and figures else "left"
        table.add_column(column, justify=side, overflow="fold", width=widths[place] if widths else None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the width of every column, of which the widest ones give way; None if a word would be broken."""
    cells = [[column, *(row[place] for row in rows)] for place, column in enumerate(columns)]
    widths = [max(len(line) for text in texts for line in text.split("\n")) for texts in cells]
    least = [max((len(word) for text in texts for word in _words(text)), default=0) for texts in cells]
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max((place for place in range(len(widths)) if widths[place] > least[place]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _words(text: str) -> list[str]:
    """Return the parts between which a line may break; a number stays with its unit."""
    return text.split("\n") if text[:1].isdigit() else text.split()


def _as_lists(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row under its first cell, a line for every further column."""
    console.print(Text(title, style="italic"))
    for row in rows:
        console.print(f"{columns[0]} {row[0]}".strip(), style="bold", markup=False, highlight=False)
        lines = Table.grid(padding=(0, 2))
        for column, text in zip(columns[1:], row[1:], strict=True):
            if text:
                lines.add_row(f"  {column}", text)
        console.print(lines)
