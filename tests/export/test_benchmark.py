"""`loraprune benchmark` beside an adapter that is not merged, and beside exported formats: plausible, never how fast."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from loraprune.commands.benchmark import benchmark
from loraprune.commands.tables.results import comparison
from loraprune.config.commands import BenchmarkConfig
from loraprune.evaluation import timing


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(ticks)))


def options(model: Path, **changes: object) -> BenchmarkConfig:
    values = {"model": str(model), "batches": [1, 2], "length": 8, "tokens": 3, "repeats": 2, "device": "cpu"}
    return BenchmarkConfig(**(values | changes))  # type: ignore[arg-type]


def test_an_adapter_apart_costs_macs_and_parameters(layerwise: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = benchmark(options(layerwise, unmerged=4))
    merged, apart = result.values["rows"].values()
    assert apart["parameters"] > merged["parameters"]
    assert apart["macs_per_token"] - merged["macs_per_token"] == apart["parameters"] - merged["parameters"]
    assert apart["prefill_seconds"].keys() == merged["prefill_seconds"].keys() == {"1", "2"}
    comparison(result)
    told = capfd.readouterr().out
    assert "prefill, batch 2" in told
    assert "weights in memory" in told
    assert "peak memory" not in told  # of a CPU no model has one of its own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "gguf"])
def test_a_format_is_timed_beside_its_model(name: str, layerwise: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "llama_cpp" if name == "gguf" else "onnxruntime", reason=f"nothing that runs {name} is installed"
    )
    result = benchmark(options(layerwise, formats=name))
    model, engine = result.values["rows"].values()
    assert engine["engine"].startswith("onnxruntime" if name == "onnx" else "llama.cpp")
    assert engine["parameters"] == model["parameters"]
    assert engine["file_bytes"] > 0
    assert engine["decode_tokens_per_second"] > 0
    assert set(engine["prefill_seconds"]) == ({"1", "2"} if name == "onnx" else {"1"})
    comparison(result)
    assert "prefill, batch 2" in capfd.readouterr().out
