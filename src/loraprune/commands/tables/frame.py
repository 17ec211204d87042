"""The style of all tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True) -> None:
    """Print one table; the first column is text, and the others are right-aligned if they are `figures`."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place and figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
