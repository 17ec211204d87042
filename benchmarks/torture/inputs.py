"""Bad input: damaged files of every kind through every command, a row for each kind and end; see benchmarks/fuzz.

"Still good" is what the damage left valid; a changed weight that is a finite number is so, and cannot be told from training.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz.inputs import KINDS
from benchmarks.fuzz.run import outcomes_of
from benchmarks.torture.cases import Row

CASES, SHORT_CASES = 30 * (len(KINDS) + 1), 2 * (len(KINDS) + 1)


def run(root: Path, *, short: bool) -> list[Row]:
    """Try all cases, or the first few."""
    rows: dict[str, Row] = {}
    for number, one in enumerate(outcomes_of(root, SHORT_CASES if short else CASES)):
        case = f"{one.kind}: {one.end}"
        row = rows.setdefault(case, Row("inputs", case))
        row.tried += 1
        if one.lost:
            row.losses.append(f"case {number}, {one.command}: {one.damage}: {one.lost}: {one.error}")
            print(f"LOST: {row.losses[-1]}", flush=True)
    return [rows[case] for case in sorted(rows)]
