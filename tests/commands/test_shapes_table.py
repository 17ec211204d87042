"""The table of `plan`: what is indented belongs to the line above."""

from __future__ import annotations

import pytest

from loraprune.commands.inspect import Description
from loraprune.commands.tables.shapes import dry_run

MEMORY = {"weights": 40, "optimiser": 20, "total": 60}
VALUES = {
    "model": "m", "family": "llama", "parameters": {"dense": 10, "pruned": 8, "prunable_dense": 5, "prunable_pruned": 3},
    "file_bytes": {"dense": 40, "pruned": 32}, "memory_bytes": {"dense": MEMORY, "pruned": MEMORY},
    "step_flops": {"dense": 4e12, "pruned": 3e12}, "ratio_reached": 0.4, "shapes": {"heads": 2}, "saved_as": "llama",
    "machine_memory_bytes": {"cpu": 100}, "gpus": {"count": 1, "needed": {}}, "vocabulary": None, "target": None, "reached": {},
}  # fmt: skip


def test_parts_of_the_memory_are_below_the_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    dry_run(Description(VALUES))
    names = [line.strip("\u2502")[1:].partition("\u2502")[0] for line in capsys.readouterr().out.splitlines()]
    found = [
        name.rstrip()
        for name in names
        if name.strip() in ("weights", "optimiser", "memory of training", "TFLOPs per step")
    ]
    assert found == ["TFLOPs per step", "memory of training", "  weights", "  optimiser"]
    dry_run(Description({**VALUES, "gpus": {"count": 2, "needed": {}}}))
    assert "memory of each GPU" in capsys.readouterr().out
    assert list(MEMORY)[-1] == "total"  # the order in which the parts come, which the table is not to keep
