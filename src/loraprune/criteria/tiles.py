"""An elementwise criterion on a projection, some rows at a time: no out x in temporary is ever formed.

Knows nothing about what becomes of the saliencies.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loraprune.adapters import Projection
from loraprune.criteria.base import Criterion, Tile
from loraprune.errors import ConfigError

TILE_BYTES = {"cpu": 1 << 19}
"""tile size: fits the second-level cache of a CPU core, so that a tile's five passes read memory once"""
TILE_BYTES_DEVICE = 1 << 26


def saliency_tiles(
    criterion: Criterion, proj: Projection, *, power: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row and the (rows, in) power-transformed saliencies of every tile of a projection, in float32 or wider."""
    assert criterion.saliency is not None
    rows, columns = proj.shape
    device = proj.lora_a.device
    dtype = torch.promote_types(torch.float32, proj.lora_a.dtype)
    a, b = proj.lora_a.detach().to(dtype), proj.lora_b.detach().to(dtype)
    grad_a, grad_b = (_gradient(criterion, factor, proj.path).to(dtype) for factor in (proj.lora_a, proj.lora_b))
    step = max(1, TILE_BYTES.get(device.type, TILE_BYTES_DEVICE) // (columns * dtype.itemsize))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        tile = Tile(
            base=proj.base_rows(start, stop).to(dtype), a=a, b=b[start:stop], grad_a=grad_a,
            grad_b=grad_b[start:stop], scaling=proj.scaling, generator=generator,
        )  # fmt: skip
        saliency = criterion.saliency(tile)
        yield start, saliency.square() if power == 2 else saliency.abs()


def _gradient(criterion: Criterion, parameter: nn.Parameter, path: str) -> Tensor:
    if parameter.grad is not None:
        return parameter.grad.detach()
    if criterion.needs_gradient:
        raise ConfigError(
            f"the criterion {criterion.name!r} needs gradients, but LoRA on {path!r} has none: "
            "is the adapter frozen, or was the step skipped?"
        )
    return torch.zeros_like(parameter)
