"""The option that leaves the layers of a model on disk. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loraprune.config.base import Options, as_typed, dashed

STREAMED = "streamed"
POSSIBLE: Mapping[str, tuple[object, ...]] = {
    "criterion": ("auto", "wanda", "flap"),
    "allocation": ("auto", "uniform", "balanced", "paper", "global"),
    "end_to_end": (None, 0), "local": (0,), "depth": (False,), "layers": (None,), "speedup": (None,), "sparsity": (None,),
    "vocabulary": (None,), "sizes": (None,), "max_drop": (None,), "teacher": ("none",), "adapter": ("lora",), "quantize": ("none",),
    "trust_remote_code": (False,), "shrink": (True,), "compile": (False,), "checkpointing": (False,), "resume": (False,),
}  # fmt: skip
"""option -> its values with which one layer at a time is enough"""


@dataclass(frozen=True, kw_only=True)
class BaseOptions(Options):
    """Where the frozen weights are."""

    base: Literal["memory", "streamed"] = "memory"
    """where the weights of the layers are. streamed: in the folder of --model, from which each layer is read when it is at work, so that
    a model larger than memory can be pruned. Needs --steps 0 and the criterion wanda or flap. Left out, because they need the whole
    model: end-to-end reconstruction, the measured split (auto gives uniform) and, for report.html, example texts and speed"""

    @property
    def is_streamed(self) -> bool:
        """Return whether layers are read from disk when they are at work."""
        return self.base == STREAMED


def streaming_problems(options: Mapping[str, Any]) -> list[str]:
    """Return one sentence for every option that needs more of the model than one layer at a time."""
    found = []
    if options["steps"] != 0:
        given = "" if options["steps"] is None else f" --steps {options['steps']}"
        found.append(f"--base {STREAMED}{given}: training needs the whole model in memory; give --steps 0")
    for name, possible in POSSIBLE.items():
        value = options[name]
        if value in possible:
            continue
        others = [str(each) for each in possible if isinstance(each, str)]
        remedy = f"use {' or '.join(others)}" if len(others) > 1 else "leave one of the two out"
        found.append(
            f"--base {STREAMED} --{dashed(name)} {as_typed(value)}: it needs the whole model in memory; {remedy}"
        )
    return found
