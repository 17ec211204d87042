"""The results of `benchmarks/gpu.py` as tables, also of runs that ended early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def gib(size: float) -> str:
    """Return bytes in words."""
    return f"{size / 2**30:.2f} GiB"


def kernel(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how much of a device copy's bandwidth the fused kernel reaches."""
    yield "| weight | shape | worst error | rows, share of a copy | columns | both |"
    yield "|---|---|---|---|---|---|"
    for row in result.get("rows", []):
        shares = " | ".join(f"{row[side]['share_of_copy']:.2f}" for side in ("rows", "columns", "both") if side in row)
        yield f"| {row['form']} | {row['out']} x {row['in']} | {row['worst_error']:.1e} | {shares} |"


def steps(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield memory and time of a step by base and criterion."""
    yield "| base, checkpointing, batch | criterion | peak | of plain LoRA | predicted / measured | step | of plain | scoring alone |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in result.get("rows", []):
        base = "bfloat16" if row["base"] == "none" else row["base"]
        case = f"{base}, {'on' if row['checkpointing'] else 'off'}, {row['batch']} | {row['variant']}"
        if "out_of_memory" in row:
            yield f"| {case} | {row['out_of_memory']} | | | | | |"
            continue
        predicted = row.get("predicted_against_measured")
        foreseen = "-" if predicted is None else f"{predicted:.3f}"
        against = [f"{row[key]:.2f}x" if key in row else "-" for key in ("memory_against_plain", "time_against_plain")]
        scoring = f"{100 * row['scoring_share']:.1f} %"
        yield (
            f"| {case} | {gib(row['peak_memory_bytes'])} | {against[0]} | {foreseen} | {row['seconds']['median']:.3f} s | "
            f"{against[1]} | {scoring} |"
        )


def training(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what pruning costs beside plain LoRA fine-tuning."""
    yield "| 7B shape, against plain LoRA | wall time | peak memory | ratio | a step, first and last | removals |"
    yield "|---|---|---|---|---|---|"
    for name, row in result.get("runs", {}).items():
        ratio = result["against_finetune"][name]
        each = row["step_seconds"]
        yield (
            f"| {name} | {row['seconds']:.1f} s, {ratio['seconds']:.2f}x | {gib(row['peak_memory_bytes'])}, "
            f"{ratio['peak_memory_bytes']:.2f}x | {row['ratio']:.3f} | {each['first']:.3f} s, {each['last']:.3f} s | "
            f"{row['removal_seconds']:.1f} s |"
        )


def speed(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how fast pruned models are."""
    yield "| model | parameters | memory | prefill, batch 1 | batch 8 | a decode step, batch 1 | batch 8 |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in result.get("comparison", {}).get("rows", {}).items():
        cells = [
            f"{1e3 * each[key]:.1f} ms ({100 * each['latency_change']:+.1f} %)"
            for table, key in (("prefill", "seconds"), ("decode", "step_seconds"))
            for each in result.get(table, [])
            if each["model"] == name
        ]
        memory = "-" if row["peak_memory_bytes"] is None else gib(row["peak_memory_bytes"])
        yield f"| {name} | {row['parameters'] / 1e9:.2f}B | {memory} | {' | '.join(cells)} |"


def pretrained(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield perplexities by criterion."""
    made = result.get("pretraining", {})
    yield f"| {made.get('parameters', 0) / 1e6:.0f}M parameters, {made.get('tokens', 0) / 1e6:.0f}M tokens | dense | result | parameters |"
    yield "|---|---|---|---|"
    for row in result.get("rows", []):
        found = row["perplexity"]
        parameters = f"{row['parameters']['pruned'] / 1e6:.1f}M"
        yield f"| {row['name']} | {found['dense']:.2f} | {found['pruned']:.2f} | {parameters} |"
    for name, why in result.get("failed", {}).items():
        yield f"| {name} | {why} | | |"


def compiled(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what torch.compile gains."""
    if "seconds" not in result:
        return
    yield "| masked step, 1.1B widths | seconds | against eager | loss |"
    yield "|---|---|---|---|"
    for name, row in result["seconds"].items():
        ratio = row["median"] / result["seconds"]["eager"]["median"]
        yield f"| {name} | {row['median']:.4f} | {ratio:.2f}x | {result['losses'][name]:.4f} |"


def suite(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the tests went."""
    yield "| tests | exit code | passed | failed | skipped |"
    yield "|---|---|---|---|---|"
    for name, row in result.get("rows", {}).items():
        counts = f"{row.get('passed', '?')} | {len(row.get('failed', []))} | {sum(row.get('skipped', {}).values())}"
        yield f"| {name} | {row['exit_code']} | {counts} |"
    for row in result.get("rows", {}).values():
        yield from row.get("end", [])
        for each in row.get("failed", []):
            yield "\n".join(["", each["test"], *each["end"]])


def launched(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how runs under launchers ended."""
    yield "| one process | exit code | nccl | ratio | sliced against reloaded |"
    yield "|---|---|---|---|---|"
    for name, row in result.get("rows", {}).items():
        same = row.get("verification", {}).get("sliced_vs_reloaded", "-")
        yield f"| {name} | {row['exit_code']} | {row['nccl']} | {row.get('ratio_reached', '-')} | {same} |"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "gpu_kernel": kernel,
    "gpu_speed": speed,
    "gpu_steps": steps,
    "gpu_training": training,
    "gpu_compile": compiled,
    "gpu_pretrained": pretrained,
    "gpu_tests": suite,
    "gpu_distributed": launched,
}
"""name of a result -> the lines of its table"""
