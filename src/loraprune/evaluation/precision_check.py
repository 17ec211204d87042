"""Check that a precision chosen for speed gives the same loss as float32."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from loraprune.data import draw_rows
from loraprune.evaluation.tasks import Prepared, Task
from loraprune.models.precision import wider_weights

ROWS = 8
"""held-out rows that are measured in both precisions"""
NATS = 0.02
"""largest difference of the mean loss in nats: two per cent of a perplexity"""

logger = logging.getLogger(__name__)


def settle_precision_(model: PreTrainedModel, task: Task, data: Prepared, batch: int) -> None:
    """Convert a bfloat16 model to float32 if its loss on some held-out rows differs between the two.

    Only for a precision that `--dtype auto` chose: a requested precision is kept.
    """
    few = replace(data, held_out=draw_rows(data.held_out, ROWS, seed=0))
    narrow = task.judge(model, few, batch).loss
    with wider_weights(model):
        wide = task.judge(model, few, batch).loss
    if abs(narrow - wide) <= NATS:
        logger.info(
            "computing in bfloat16, as this CPU multiplies it natively: loss %.3f, in float32 %.3f", narrow, wide
        )
        return
    logger.warning(
        "computing in float32: on %d held-out rows the loss is %.3f in bfloat16 and %.3f in float32",
        len(few.held_out),
        narrow,
        wide,
    )
    placed: torch.nn.Module = model
    placed.float()
