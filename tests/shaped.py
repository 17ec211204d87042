"""Which modules have their annotated shapes checked at every call while the tests run."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
HOT = frozenset({"loraprune.models.adapters", "loraprune.training.footprint.live"})
"""left out with what is below them. The small functions of adapters, few of which see a tensor, are called so often that checking
them took a fifth of the suite's time, and what they give to criteria is checked where it is taken. live counts every operation."""


def shaped_modules() -> list[str]:
    """Return the modules that annotate shapes; plain types are mypy's."""
    found = []
    for path in sorted((SOURCE / "loraprune").rglob("*.py")):
        if "from jaxtyping import" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(SOURCE).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return [name for name in found if not name.startswith(tuple(HOT))]
