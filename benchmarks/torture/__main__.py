"""Kill it, fill its disk, feed it rubbish: is anything ever lost?

    python -m benchmarks.torture            every part, written to benchmarks/results/torture.json
    python -m benchmarks.torture --short    a few cases of each, written nowhere

A part is a module of this folder with a function `run(root, *, short)` that returns rows. Exit code 1 if a row has a loss.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import tempfile

# Read when the libraries are imported.
os.environ |= {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"
}  # fmt: skip
from dataclasses import asdict
from pathlib import Path

from benchmarks import torture
from benchmarks.helpers.common import machine
from benchmarks.torture.cases import Row

RESULT = Path(__file__).resolve().parents[1] / "results" / "torture.json"
NO_PARTS = ("__main__", "cases", "children")


def parts() -> list[str]:
    """Return the names of all parts, in order."""
    return sorted(found.name for found in pkgutil.iter_modules(torture.__path__) if found.name not in NO_PARTS)


def table(rows: list[Row]) -> str:
    """Return rows as Markdown."""
    lines = [f"| {row.part} | {row.case} | {row.tried} | {len(row.losses)} |" for row in rows]
    return "\n".join(["| part | case | tried | lost |", "|---|---|---|---|", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--part", choices=parts(), action="append", help="only this part (again for more)")
    options = parser.parse_args()
    chosen = options.part or parts()
    rows: list[Row] = []
    for name in chosen:
        part = importlib.import_module(f"benchmarks.torture.{name}")
        with tempfile.TemporaryDirectory() as folder:
            rows += part.run(Path(folder), short=options.short)
    print(table(rows))
    for row in rows:
        for loss in row.losses:
            print(f"LOST: {row.part}: {row.case}: {loss}", file=sys.stderr)
    if not options.short:
        write(rows, chosen)
    return 1 if any(row.losses for row in rows) else 0


def write(rows: list[Row], chosen: list[str]) -> None:
    """Write the rows of the parts that ran beside those of the others."""
    former = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    kept = [row for row in former if row["part"] not in chosen]
    values = {"machine": machine(), "rows": sorted([*kept, *map(asdict, rows)], key=lambda row: str(row["part"]))}
    RESULT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    sys.exit(main())
