"""Bad input: damaged files of every kind through every command, a row for each kind; see benchmarks/fuzz."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz.run import outcomes_of
from benchmarks.torture.cases import Row

CASES, SHORT_CASES = 560, 42


def run(root: Path, *, short: bool) -> list[Row]:
    """Try all cases, or the first few."""
    rows: dict[str, Row] = {}
    for number, one in enumerate(outcomes_of(root, SHORT_CASES if short else CASES)):
        row = rows.setdefault(one.kind, Row("inputs", one.kind))
        row.tried += 1
        if one.lost:
            row.losses.append(f"case {number}, {one.command}: {one.damage}: {one.lost}: {one.error}")
    return list(rows.values())
