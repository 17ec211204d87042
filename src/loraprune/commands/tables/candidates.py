"""Print the shapes that a run tried, and why one of them was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from loraprune.commands.tables.frame import show

STAGES = {"removed": "masked", "refitted": "least squares", "end_to_end": "end to end"}
KINDS = {"attention": "heads", "query": "query heads"}


def candidates(found: Mapping[str, Any]) -> None:
    """Print one row for every shape, the correlation of the rankings, and the reason."""
    rows = [
        (
            one["shape"], KINDS.get(one["kind"], one["kind"]), f"{100 * one['ratio']:.2f} %",
            *(_distance(one, stage) for stage in STAGES), "yes" if one["kept"] else "no",
        )
        for one in found["tried"]
    ]  # fmt: skip
    columns = ("kept units", "search", "removed", *STAGES.values(), "kept")
    show("shapes: distance from the dense model's outputs on rows kept aside (loss)", columns, rows)
    console = Console()
    for one in found["rank_correlation"]:
        value = "not defined" if one["spearman"] is None else f"{one['spearman']:.2f}"
        pair = " and ".join(STAGES[stage] for stage in one["stages"])
        console.print(Text(f"rank correlation, {pair}: {value}"), soft_wrap=True)
    console.print(Text(f"{'kept':8} {found['reason']}"), soft_wrap=True)
    console.print(Text(f"{'cost':8} {found['seconds']:.1f} s"), soft_wrap=True)


def _distance(one: Mapping[str, Any], stage: str) -> str:
    if stage not in one["errors"]:
        return "-"
    error, loss = one["errors"][stage], one["losses"][stage]
    return ("NaN" if error is None else f"{error:.4f}") + ("" if loss is None else f" ({loss:.3f})")
