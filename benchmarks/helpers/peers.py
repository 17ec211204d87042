"""Peers that prune FFN channels of a causal language model: OptiPFair's MAW and Torch-Pruning's Taylor scores, on given token rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCH = 4
"""rows at a time"""


def optipfair(model: Any, rows: Tensor, share: float) -> Any:
    """Return the model without `share` of its FFN channels, chosen by OptiPFair's data-driven MAW score on `rows`."""
    from optipfair import prune_model

    examples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    loader = DataLoader(examples, batch_size=BATCH)  # type: ignore[arg-type]
    return prune_model(
        model, neuron_selection_method="MAW", pruning_percentage=100 * share, dataloader=loader, show_progress=False
    )


def torch_pruning(model: Any, rows: Tensor, share: float) -> Any:
    """Return the model without `share` of its FFN channels, chosen by Torch-Pruning's first-order Taylor score on `rows`."""
    import torch_pruning as tp

    for part in rows.split(BATCH):
        loss = model(input_ids=part, labels=part).loss
        (loss * len(part) / len(rows)).backward()
    gates: list[nn.Module] = [layer.mlp.gate_proj for layer in model.model.layers]
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": rows[:1, :16]},
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=0.0,
        pruning_ratio_dict=dict.fromkeys(gates, share),
        ignored_layers=[
            layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "mlp" not in name
        ],
        output_transform=lambda output: output.logits,
    )
    pruner.step()
    model.zero_grad()
    model.config.intermediate_size = gates[0].out_features
    return model


PEERS: dict[str, Callable[[Any, Tensor, float], Any]] = {"optipfair": optipfair, "torch-pruning": torch_pruning}
