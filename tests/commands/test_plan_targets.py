"""`plan` answers every kind of target beforehand, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraprune.commands.plan import dry_run
from loraprune.commands.tables.shapes import dry_run as print_plan
from loraprune.config.commands import PlanConfig
from tests.samples import save_tiny

CASES: list[tuple[dict[str, Any], str]] = [
    ({"size": 0.8}, "% of the parameters (asked 80 %)"),
    ({"file_size": "60kB"}, "bytes in bfloat16 (asked 60kB)"),
    ({"memory": "60kB", "context": 32}, "cache of 32 tokens"),
    ({"speedup": 1.3}, "prefill of 64 tokens, expected from the multiplications; `prune` measures it (asked 1.3)"),
    ({"speedup": 1.3, "timed": "decoding"}, "decoding of 32 tokens, expected from the multiplications"),
]


def test_plan_says_what_a_target_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fixed: dict[str, Any] = {"model": str(save_tiny(tmp_path / "model")), "length": 16, "batch": 1, "round": 1}
    for options, words in CASES:
        result = dry_run(PlanConfig(**fixed, **options))
        print_plan(result)
        assert words in capsys.readouterr().out
        reached = result.values["reached"]
        if "speedup" in options:
            assert 1.3 <= reached["speedup"] < 1.4
            assert reached["dense_seconds"] is None
        elif "size" not in options:
            assert max(value for value in reached.values() if isinstance(value, int)) <= 60_000
    plain = dry_run(PlanConfig(**fixed, ratio=0.3))  # the control: a ratio has no other figures
    print_plan(plain)
    assert "asked" not in capsys.readouterr().out
    assert (plain.values["target"], plain.values["reached"]) == (None, {})
