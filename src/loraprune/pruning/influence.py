"""The order in which layers go: block influence makes a short list, and the outputs without a layer decide."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from loraprune.groups import Group, Stream, layer_of
from loraprune.models.adapters import find_module
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.end_to_end import Outputs
from loraprune.pruning.recovery.rows import Rows, on_device, present_tokens, run
from loraprune.runtime.processes import from_first
from loraprune.runtime.progress import shown

SHORT = 4
"""layers of the least influence that the model is run without, to choose the next one"""

logger = logging.getLogger(__name__)


def layer_order(model: nn.Module, groups: Sequence[Group], outputs: Outputs, most: int) -> list[str]:
    """Return the paths of `most` layers in the order in which they go; the model stays as it is.

    Each time it is one of the `SHORT` layers left that influence their input least: the one without which, and without those before it,
    the outputs of the rows kept aside change least. Nothing is reconstructed meanwhile.
    """
    influence = block_influence(model, groups, outputs.some(outputs.aside.nonzero().flatten()))
    full, masks = Plan.full(tuple(groups)).kept, Masks(model, groups)
    order: list[str] = []

    def error_without(layer: str) -> float:
        gone = (*order, layer)
        masks.set({group.name: () if layer_of(group) in gone else full[group.name] for group in groups})
        return outputs.distance(model).error

    try:
        for _ in shown(range(most), "measuring layers"):
            left = sorted((layer for layer in influence if layer not in order), key=lambda layer: influence[layer])
            errors = {layer: error_without(layer) for layer in left[:SHORT]}
            order.append(from_first(min(errors, key=lambda layer: errors[layer])))
            logger.debug("without %s the outputs change by %.3f", ", ".join(order), errors.get(order[-1], torch.nan))
    finally:
        masks.remove()
    return order


def block_influence(model: nn.Module, groups: Sequence[Group], rows: Rows) -> dict[str, float]:
    """Return the path of every layer -> 1 minus the cosine between its input and output hidden states, averaged over tokens.

    Source: ShortGPT, Men et al. (arXiv 2403.03853).
    """
    rows = on_device(model, rows)
    present, streams = present_tokens(rows), {layer: group.stream for group in groups if (layer := layer_of(group))}
    found: dict[str, float] = {}

    def watcher(layer: str, stream: Stream) -> Callable[[nn.Module, Any, Any, Any], None]:
        def after(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            given = output[0] if isinstance(output, tuple) else output  # a tuple in older versions of transformers
            first, last = (each.flatten(0, -2)[present[stream]].float() for each in (before, given))
            found[layer] = 1 - cosine_similarity(first, last, dim=-1).mean().item()

        return after

    hooks = [
        find_module(model, layer).register_forward_hook(watcher(layer, stream), with_kwargs=True)
        for layer, stream in streams.items()
    ]
    run(model, rows, hooks)
    return found
