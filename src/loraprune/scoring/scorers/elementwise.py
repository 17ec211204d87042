"""Elementwise saliencies of a projection, tile by tile, reduced to sums of rows and columns, and these to units.

No out x in temporary is ever formed: a tile is at most TILE_BYTES. Knows nothing about criteria.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraprune.groups import Group, Side, Span
from loraprune.models.adapters import Projection

TILE_BYTES = {"cpu": 1 << 19}
"""tile size: fits the second-level cache of a CPU core, so that a tile's five passes read memory once"""
TILE_BYTES_DEVICE = 1 << 26
PRECISE = {"mps": torch.float32}
"""devices without float64, and what scores are averaged in there"""

Rows: TypeAlias = Callable[[int, int], Float[Tensor, "rows in_"]]
"""first and last + 1 row of a projection -> signed saliencies"""


def working_dtype(proj: Projection) -> torch.dtype:
    """Return the dtype that saliencies are computed in: float32 or wider."""
    return torch.promote_types(torch.float32, proj.lora_a.dtype)


def tiles(proj: Projection, rows: Rows, *, power: int) -> Iterator[tuple[int, Float[Tensor, "rows in_"]]]:
    """Yield the first row and the saliencies' power of every tile of a projection."""
    count, columns = proj.shape
    step = max(
        1, TILE_BYTES.get(proj.lora_a.device.type, TILE_BYTES_DEVICE) // (columns * working_dtype(proj).itemsize)
    )
    for start in range(0, count, step):
        saliency = rows(start, min(start + step, count))
        yield start, saliency.square() if power == 2 else saliency.abs()


def side_sums(proj: Projection, rows: Rows, *, power: int, wanted: set[Side]) -> dict[Side, Float[Tensor, " entries"]]:
    """Return the sums over rows (`in`, by input channel) and over columns (`out`, by row) of the saliencies' power."""
    count, columns = proj.shape
    device, dtype = proj.lora_a.device, working_dtype(proj)
    out = torch.empty(count, dtype=dtype, device=device)
    in_ = torch.zeros(columns, dtype=dtype, device=device)
    for start, saliency in tiles(proj, rows, power=power):
        if "out" in wanted:
            torch.sum(saliency, dim=1, out=out[start : start + len(saliency)])
        if "in" in wanted:
            in_ += saliency.sum(0)
    return {"out": out, "in": proj.by_channel(in_)}


def wanted_sides(group: Group, path: str) -> set[Side]:
    """Return the sides of a projection on which a group's units own rows or columns."""
    return {span.side for span in group.spans if span.module == path}


def unit_totals(
    group: Group,
    sums: Mapping[str, Mapping[Side, Float[Tensor, " entries"]]],
    *,
    kept: Sequence[int] | Int[Tensor, " left"] | None,
    normalize: bool,
) -> Float[Tensor, " units"]:
    """Return each unit's share of the sums, over all spans of its group; `kept` selects units.

    Source: Eq 4; with `normalize`, each span's scores are divided by their L2 norm first, as in the authors' code.
    """
    total: Tensor | None = None
    for span in group.spans:
        if span.side not in ("out", "in"):
            continue
        part = span_units(sums[span.module][span.side], span, group.units)
        if kept is not None:
            part = part[torch.as_tensor(kept, device=part.device)]
        if normalize:
            norm = part.norm()
            part = part / torch.where(norm > 0, norm, torch.ones_like(norm))
        total = part if total is None else total + part
    assert total is not None, f"{group.name} has no projection"
    return total


def span_units(values: Float[Tensor, " entries"], span: Span, units: int) -> Float[Tensor, " units"]:
    """Sum the entries of each unit of a span."""
    return values[span.offset : span.offset + units * span.width].view(units, span.width).sum(1)


def precise(scores: Mapping[str, Float[Tensor, " units"]]) -> dict[str, Float[Tensor, " units"]]:
    """Return scores in float64, where they are, in one pass over all of them."""
    flat = torch.cat(list(scores.values()))
    flat = flat.to(PRECISE.get(flat.device.type, torch.float64))
    return dict(zip(scores, flat.split([len(score) for score in scores.values()]), strict=True))
