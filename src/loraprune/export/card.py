"""Write the card of an exported folder: the source folder's card, and how this one is loaded and was checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.evaluation.tasks import find_task
from loraprune.export.base import Source
from loraprune.reporting.card import CARD, join_card, licence_line, metadata, split_card

LIBRARIES = {"gguf": "gguf", "onnx": "onnx", "torch": "pytorch"}
"""format -> what the hub calls the library that loads it, where that is not transformers"""


def write_card(source: Source, values: Mapping[str, Any], folder: Path) -> None:
    """Write the card of a format; `values` is its export.json."""
    about, text = split_card(source.folder / CARD)
    about = about or metadata(source.name, None, find_task(source.config).name)
    name = values["format"]
    tags = dict.fromkeys(
        [*about.get("tags", ()), name, *([values["quantization"]] * (values["quantization"] != "as it is"))]
    )
    about |= {"library_name": LIBRARIES.get(name, "transformers"), "tags": list(tags)}
    figures = ", ".join(f"{what.replace('_', ' ')} {found:.1e}" for what, found in values["verification"].items())
    own = (
        f"# {name} export\n\nThe model has {values['parameters']:,} parameters and takes {values['bytes']:,} bytes (weights: "
        f"{values['quantization']}). Load it with `{values['load']}`.\n\nVerified by {values['verified_by']}. The largest differences, "
        f"relative to the largest value, are: {figures}.\n"
    )
    before = text.strip() or f"Made from `{source.name}` by `loraprune export`.\n{licence_line(about)}"
    (folder / CARD).write_text(
        join_card(about, f"{own}\n## The model\n\n{before.replace('# ', '### ', 1)}\n"), encoding="utf-8"
    )
