"""A precision that was chosen for its speed must measure what float32 does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from loraprune.data.rows import Collator, Row, TokenRows
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.precision import settle_precision_
from loraprune.evaluation.tasks import Prepared, Task, tasks
from loraprune.runtime.device import choose_dtype
from tests.samples import byte_tokenizer, tiny_llama

CPU = torch.device("cpu")


def judged(by_dtype: dict[torch.dtype, float]) -> Task:
    """Return a task whose loss depends on the precision alone."""

    def evaluate(model: PreTrainedModel, data: Prepared, batch: int) -> Measured:
        return Measured("perplexity", math.exp(by_dtype[model.dtype]), "lower", None, {"rows": len(data.held_out)}, {})

    return replace(tasks.get("causal-lm"), evaluate=evaluate)


@pytest.mark.parametrize(("loss", "expected"), [(3.01, torch.bfloat16), (3.05, torch.float32), (2.95, torch.float32)])
def test_a_loss_that_differs_brings_float32_back(loss: float, expected: torch.dtype) -> None:
    model, ids = tiny_llama().to(torch.bfloat16), [1, 2, 3]
    data = Prepared(None, TokenRows((Row(ids, ids),) * 20, {}), Collator(0), byte_tokenizer())
    settle_precision_(model, judged({torch.bfloat16: loss, torch.float32: 3.0}), data, 4)
    assert model.dtype == expected


@pytest.mark.parametrize(
    ("flags", "stored", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.bfloat16, torch.float32),
        ({"avx512_bf16": True}, torch.float16, torch.float32),
        ({"avx512_bf16": True}, torch.float32, torch.float32),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_multiplies_it_and_the_checkpoint_has_it(
    flags: dict[str, bool], stored: torch.dtype, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert choose_dtype("auto", CPU, stored) == expected
    assert choose_dtype("float32", CPU, stored) == torch.float32
    assert choose_dtype("auto", torch.device("cuda"), stored) is None
