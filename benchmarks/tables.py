"""Print the tables of docs/results.md from the committed results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from helpers import common, quality
from on_gpu.tables import TABLES as GPU_TABLES


def cost(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what pruning costs beside plain LoRA fine-tuning."""
    yield "| against plain LoRA fine-tuning, same steps and data | wall time | peak memory |"
    yield "|---|---|---|"
    for name, ratios in result["against_finetune"].items():
        cells = [f"{r['median']:.2f}x ({r['least']:.2f} to {r['most']:.2f})" for r in ratios.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def scoring(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what scoring takes of a step."""
    yield "| criterion | accumulation 1 | accumulation 8 |"
    yield "|---|---|---|"
    for criterion in dict.fromkeys(row["criterion"] for row in result["rows"]):
        cells = [f"{100 * row['share']['median']:.1f} %" for row in result["rows"] if row["criterion"] == criterion]
        yield f"| {criterion} | {' | '.join(cells)} |"


def memory(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a training step takes of memory, libraries left out."""
    yield "| peak memory of training | MiB | of plain LoRA | of the vanilla criterion |"
    yield "|---|---|---|---|"
    for name, run in result["runs"].items():
        plain, vanilla = (f"{result['against'][name][other]:.2f}x" for other in ("plain LoRA", "vanilla"))
        yield f"| {name} | {run['training_bytes'] / 2**20:.0f} | {plain} | {vanilla} |"


def saving(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what every stage of a run holds in CPU memory."""
    yield "| stage | private, MiB | mapped files, MiB |"
    yield "|---|---|---|"
    for stage, peak in result["peaks"].items():
        yield f"| {stage} | {peak['private'] / 2**20:.0f} | {peak['mapped'] / 2**20:.0f} |"
    yield f"| sizes | {', '.join(f'{name} {size / 2**20:.0f}' for name, size in result['bytes'].items())} | |"


def speed(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the speed-up of pruned models, measured and expected from their MACs."""
    yield "| pruned against dense | expected from MACs | batch 1 | batch 16 | measured / expected |"
    yield "|---|---|---|---|---|"
    for name, ratios in result["comparison"]["ratios"].items():
        if name == "dense":
            continue
        one, many = ratios["prefill_speedup"]["1"], ratios["prefill_speedup"]["16"]
        share = f"{ratios['achieved']['1']:.2f} and {ratios['achieved']['16']:.2f}"
        yield f"| {name} | {ratios['expected_speedup']:.2f}x | {one:.2f}x | {many:.2f}x | {share} |"


def predicted(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `plan` predicts beside what was measured."""
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    yield f"| predicted / measured peak | {' | '.join(cases)} |"
    yield f"|---|{'---|' * len(cases)}"
    for shape in dict.fromkeys(row["shape"] for row in result["rows"]):
        found = {row["case"]: f"{row['ratio']:.3f}" for row in result["rows"] if row["shape"] == shape}
        yield f"| {shape} | {' | '.join(found.get(case, '-') for case in cases)} |"


def known(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what well-known models need."""
    sizes = list(result["rows"][0]["needed"])
    yield f"| model, base | weights | step | {' | '.join(f'{size} GB' for size in sizes)} |"
    yield f"|---|---|---|{'---|' * len(sizes)}"
    for row in result["rows"]:
        base = "bfloat16" if row["quantize"] == "none" else row["quantize"]
        gib = [f"{size / 2**30:.1f} GiB" for size in (row["parts"]["weights"], row["total"])]
        needed = [str(count or "-") for count in row["needed"].values()]
        yield f"| {row['model']}, {base} | {' | '.join([*gib, *needed])} |"


def processes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far two processes are from one with the same rows a step."""
    yield f"| two processes against one, {result['model']}, {result['steps']} steps | different units | largest difference of a weight |"
    yield "|---|---|---|"
    for row in result["rows"]:
        apart = "-" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}"
        yield f"| {row['criterion']}, {row['launch']} | {row['other_units']} of {row['units_kept']} | {apart} |"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "training_cost": cost,
    "scoring_cost": scoring,
    "memory": memory,
    "saving": saving,
    "speed": speed,
    "footprint": predicted,
    "footprint_known": known,
    "processes": processes,
    **GPU_TABLES,
}
"""name of a result -> the lines of its table"""


def main() -> None:
    for name, table in TABLES.items():
        path = common.RESULTS / f"{name}.json"
        if path.exists():
            print("\n".join(table(json.loads(path.read_text()))), end="\n\n")
    for part in (quality.grids(), quality.real_models(), quality.saved_scores(), quality.accuracies()):
        print("\n".join(part), end="\n\n")


if __name__ == "__main__":
    main()
