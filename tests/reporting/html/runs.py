"""The folder of a run whose figures are made up, with names and texts that try to break out of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HOSTILE = '<script>document.title="broken"</script><img src=x onerror="document.title=\'broken\'">"\'&$x_1$'
LAYERS, HEADS, CHANNELS = 3, 4, 48


def speed(prefill: float, decode: float, parameters: int) -> dict[str, Any]:
    return {
        "parameters": parameters, "weight_bytes": 4 * parameters, "file_bytes": 4 * parameters + 100,
        "macs_per_token": parameters // 2, "prefill_seconds": {"1": {"median": prefill}},
        "decode_seconds": {"median": decode}, "decode_tokens_per_second": 16 / decode, "peak_memory_bytes": None,
    }  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    names = [f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in ("self_attn", "mlp")]
    sizes = {"self_attn": HEADS, "mlp": CHANNELS}
    kinds = {"self_attn": "attention", "mlp": "ffn"}
    parts = {name: name.split(".")[-1] for name in names}
    units = {
        name: {"kind": kinds[part], "dense": sizes[part], "kept": sizes[part] // 2} for name, part in parts.items()
    }
    return {
        "format": 1, "finished": "2026-11-30T01:54:38+00:00", "job": "prune", "model": f"org/{HOSTILE}", "data": HOSTILE,
        "parameters": {"dense": 4_000_000, "pruned": 2_500_000, "prunable_dense": 3_000_000, "prunable_pruned": 1_500_000},
        "ratio_requested": 0.5, "ratio_reached": 0.5012, "ratio_of_whole_model": 0.375, "units": units,
        "perplexity": {"dense": 10.0, "pruned": 15.0, "nll": {"dense": 2.303, "pruned": 2.708}, "tokens": 5000,
                       "standard_error": {"dense": 0.02, "pruned": 0.03}, "protocol": {"source": HOSTILE, "length": 128}},
        "verification": {"masked_vs_sliced": 0.0, "sliced_vs_reloaded": 1e-7, "tolerance": 1e-4},
        "saved_as": {"model_type": "llama", "load": "AutoModelForCausalLM.from_pretrained(folder)"},
        "steps": 40, "wall_seconds": 12.5, "total_seconds": 3723.0, "peak_memory_bytes": 2**30, "seed": 0,
        "training_data": {}, "versions": {"loraprune": "0.1.0", "torch": "2.13.0", "python": HOSTILE},
        "curve": [{"step": step, "loss": 3 - step / 40, "lr": 1e-4} for step in range(1, 41)],
        "removals": [{"step": step, "ratio": step / 60} for step in (5, 15, 30)],
        "evaluations": [{"step": step, "perplexity": 30 - step / 3, "nll": 3.0, "standard_error": 0.1, "ratio": 0.5}
                        for step in (10, 20, 30, 40)],
        "kept_step": 30,
        "examples": [{"prompt": HOSTILE, "dense": HOSTILE, "pruned": f"{HOSTILE}\n\n{'word ' * 40}"}],
        "speed": {"rows": {"dense": speed(0.02, 0.2, 4_000_000), "pruned": speed(0.012, 0.15, 2_500_000)},
                  "ratios": {"dense": {}, "pruned": {"prefill_speedup": {"1": 1.67}, "decode_speedup": 1.33, "expected_speedup": 1.6}},
                  "protocol": {"repeats": 3, "device": "cpu", "length": 128, "new_tokens": 16}},
    } | changes  # fmt: skip


def evaluation() -> dict[str, Any]:
    names = [f"/dense/{HOSTILE}", f"/{'a-very-long-folder-name-' * 4}/pruned"]
    figure = {"value": 0.6543, "standard_error": 0.0123}
    rows = [
        {"task": task, "metric": "acc", "documents": 1000, "models": dict.fromkeys(names, figure), "difference": figure}
        for task in ("piqa", "boolq", HOSTILE)
    ]
    return {
        "names": names, "tasks": {"rows": rows, "protocol": {"harness": "lm-eval 0", "shots": 0, "limit": 10}},
        "measurements": [{"data": "/some/where/wikitext-2/test.txt", "length": 128, "metric": "perplexity", "difference": None,
                          "models": {name: {"perplexity": 12.3456} for name in names}}],
    }  # fmt: skip


def write_run(folder: Path, *, judged: bool = True, **changes: Any) -> Path:
    """Write the files of a run, without its model."""
    folder.mkdir(parents=True)
    values = report(**changes)
    (folder / "report.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "run.yaml").write_text(f"model: '{HOSTILE}'\nratio: 0.5\n", encoding="utf-8")
    if judged:
        (folder / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    units = values.get("units", {})
    if units:
        torch.manual_seed(0)
        scores = {name: torch.rand(sizes["dense"], dtype=torch.float64) for name, sizes in units.items()}
        save_file(scores, folder / "scores.safetensors")
        groups = {name: {"units": sizes["dense"], "kept": list(range(sizes["kept"]))} for name, sizes in units.items()}
        (folder / "plan.json").write_text(json.dumps({"format": 1, "groups": groups}), encoding="utf-8")
    return folder
