"""A precision that was chosen for its speed must measure what float32 does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraprune.evaluation import precision_check
from loraprune.evaluation.precision_check import settle_precision_
from loraprune.runtime.device import choose_dtype
from tests.samples import tiny_llama

CPU = torch.device("cpu")


def judged(by_dtype: dict[torch.dtype, float]) -> Any:
    """Return a task whose loss depends on the precision alone."""
    return SimpleNamespace(judge=lambda model, data, batch: SimpleNamespace(loss=by_dtype[model.dtype]))


@pytest.mark.parametrize(("loss", "expected"), [(3.01, torch.bfloat16), (3.05, torch.float32), (2.95, torch.float32)])
def test_a_loss_that_differs_brings_float32_back(
    loss: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_check, "replace", lambda data, held_out: SimpleNamespace(held_out=held_out))
    monkeypatch.setattr(precision_check, "draw_rows", lambda rows, count, seed: rows[:count])
    model = tiny_llama().to(torch.bfloat16)
    task = judged({torch.bfloat16: loss, torch.float32: 3.0})
    settle_precision_(model, task, SimpleNamespace(held_out=list(range(20))), 4)  # type: ignore[arg-type]
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
