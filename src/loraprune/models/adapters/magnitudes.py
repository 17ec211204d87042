"""DoRA's magnitudes m, one a row: a projection computes c (W0 + s B A) x with c = m / n, where n are the norms of the rows.

Without some columns the norms are smaller. The magnitudes follow, m' = c n', so that a removal changes the rows' factors c no more than
those of plain LoRA. While units are only masked, their columns do not count in the norms either: masked and cut models train alike.
Source: Liu et al., DoRA (arXiv 2402.09353); the magnitudes of a cut model are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from loraprune.models.adapters.cuts import ADAPTER
from loraprune.models.adapters.lora import COUNTED, projection_of
from loraprune.models.adapters.modules import channels_first, channels_last


def magnitudes(model: nn.Module) -> list[nn.Parameter]:
    """Return DoRA's magnitudes of all projections of a model; none with plain LoRA."""
    return [
        holder.get_parameter("weight")
        for module in model.modules()
        if isinstance(module, LoraLayer) and (holder := _holder(module)) is not None
    ]


def has_magnitudes(module: nn.Module) -> bool:
    """Return whether a projection carries DoRA."""
    return _holder(module) is not None


def _holder(module: nn.Module) -> nn.Module | None:
    """Return PEFT's layer that holds the magnitudes of a projection; None with plain LoRA, and for other layers."""
    if not isinstance(module, LoraLayer) or ADAPTER not in module.lora_magnitude_vector:
        return None
    holder = module.lora_magnitude_vector[ADAPTER]
    assert isinstance(holder, nn.Module)
    return holder


@contextmanager
def factors_kept(module: nn.Module) -> Iterator[None]:
    """Let what DoRA multiplies the rows by be the same after the block, which changes columns; nothing to do with plain LoRA."""
    if _holder(module) is None:
        yield
        return
    with torch.no_grad():
        before = projection_of(module, "").row_factors()
        yield
        after = projection_of(module, "")
        assert after.magnitude is not None
        after.magnitude.copy_((before * after.row_norms()).view_as(after.magnitude))


def count_columns_(module: nn.Module, counted: Bool[Tensor, " channels"]) -> None:
    """Count only some input channels in DoRA's norms from now on; the rows' factors stay. Call it again with all of them in the end."""
    holder = _holder(module)
    if holder is None:
        return
    with factors_kept(module):
        if COUNTED in holder._buffers:
            delattr(holder, COUNTED)
        if not counted.all():
            holder.register_buffer(COUNTED, counted.clone(), persistent=False)


def norm_counted(module: nn.Module, _: Any, output: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
    """Forward hook of a projection: divide its output by the norms of the counted columns, where PEFT divides by those of all.

    With dropout, the noise that it puts into the frozen weight's part is scaled too; it is zero on average.
    """
    holder = _holder(module)
    if holder is None or COUNTED not in holder._buffers:
        return None
    with torch.no_grad():
        proj = projection_of(module, "")
        ratio = (proj.row_norms(every=True) / proj.row_norms()).to(output.dtype)
    bias = getattr(proj.layer, "bias", None)
    last = channels_last(module, output)
    return channels_first(module, last * ratio if bias is None else (last - bias) * ratio + bias)
