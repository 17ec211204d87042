"""Print the runs that a search tried, and why one of them was kept."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from loraprune.commands.tables.frame import show
from loraprune.reporting.search import Search, Try


def tries(metric: str, found: Search) -> None:
    """Print one row for every try, and the reason."""
    name, limit = metric.replace("_", " "), f"{100 * found.max_drop:g} %"
    rows = [("reference", "-", "-", "-", f"{found.reference_of_choice:.4f}", "-", "-")]
    rows += [
        (
            f"{one.ratio:g}", f"{one.ratio_reached:.4f}", f"{one.parameters:,}", _words(one), f"{one.value:.4f}",
            f"{100 * one.drop:.2f} %", "yes" if one.holds else "no",
        )
        for one in found.tries
    ]  # fmt: skip
    columns = ("ratio", "reached", "parameters", "units a layer", name, "loss", f"at most {limit}")
    show(f"tries, on the held-out rows that choose; reference: {found.reference_name}", columns, rows)
    console = Console()
    for word, text in (("kept", found.reason), ("loss", found.outcome)):
        console.print(Text(f"{word:8} {text}"), soft_wrap=True)


def _words(one: Try) -> str:
    """Return the shape of a try: the units that every group of a kind keeps, or the fewest and the most of them."""
    return ", ".join(
        f"{kind} {kept if isinstance(kept, int) else f'{min(kept)} to {max(kept)}'}" for kind, kept in one.shape.items()
    )
