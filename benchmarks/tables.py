"""The README's tables, from the committed results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import common
import quality


def read(name: str) -> dict[str, Any] | None:
    """Return a result, if it has been taken."""
    path = common.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def cost() -> Iterator[str]:
    """Yield what pruning costs beside plain LoRA fine-tuning."""
    result = read("training_cost")
    if not result:
        return
    yield "| against plain LoRA fine-tuning, same steps and data | wall time | peak memory |"
    yield "|---|---|---|"
    for name, ratios in result["against_finetune"].items():
        cells = [f"{r['median']:.2f}x ({r['least']:.2f} to {r['most']:.2f})" for r in ratios.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def scoring() -> Iterator[str]:
    """Yield what scoring takes of a step."""
    result = read("scoring_cost")
    if not result:
        return
    yield "| scoring, share of an optimiser step | accumulation 1 | accumulation 8 |"
    yield "|---|---|---|"
    for criterion in dict.fromkeys(row["criterion"] for row in result["rows"]):
        cells = [f"{100 * row['share']['median']:.1f} %" for row in result["rows"] if row["criterion"] == criterion]
        yield f"| {criterion} | {' | '.join(cells)} |"


def memory() -> Iterator[str]:
    """Yield what a training step takes of memory, libraries left out."""
    result = read("memory")
    if not result:
        return
    yield "| peak memory of training | MiB | of plain LoRA | of the vanilla criterion |"
    yield "|---|---|---|---|"
    for name, run in result["runs"].items():
        plain, vanilla = (f"{result['against'][name][other]:.2f}x" for other in ("plain LoRA", "vanilla"))
        yield f"| {name} | {run['training_bytes'] / 2**20:.0f} | {plain} | {vanilla} |"


def saving() -> Iterator[str]:
    """Yield what every stage of a run holds in CPU memory."""
    result = read("saving")
    if not result:
        return
    yield "| stage | private, MiB | mapped files, MiB |"
    yield "|---|---|---|"
    for stage, peak in result["peaks"].items():
        yield f"| {stage} | {peak['private'] / 2**20:.0f} | {peak['mapped'] / 2**20:.0f} |"
    yield f"| sizes | {', '.join(f'{name} {size / 2**20:.0f}' for name, size in result['bytes'].items())} | |"


def speed() -> Iterator[str]:
    """Yield how much faster pruned models are, and how much of the promise of their MACs that is."""
    result = read("speed")
    if not result:
        return
    yield "| pruned against dense | MACs promise | batch 1 | batch 16 | of the promise |"
    yield "|---|---|---|---|---|"
    for name, ratios in result["comparison"]["ratios"].items():
        if name == "dense":
            continue
        one, many = ratios["prefill_speedup"]["1"], ratios["prefill_speedup"]["16"]
        share = f"{ratios['achieved']['1']:.2f} and {ratios['achieved']['16']:.2f}"
        yield f"| {name} | {ratios['expected_speedup']:.2f}x | {one:.2f}x | {many:.2f}x | {share} |"


def footprints() -> Iterator[str]:
    """Yield what `plan` predicts beside what was measured, and what well-known models need."""
    if result := read("footprint"):
        cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
        yield f"| predicted / measured peak | {' | '.join(cases)} |"
        yield f"|---|{'---|' * len(cases)}"
        for shape in dict.fromkeys(row["shape"] for row in result["rows"]):
            found = {row["case"]: f"{row['ratio']:.3f}" for row in result["rows"] if row["shape"] == shape}
            yield f"| {shape} | {' | '.join(found.get(case, '-') for case in cases)} |"
        yield ""
    if result := read("footprint_known"):
        sizes = list(result["rows"][0]["needed"])
        yield f"| model, base | weights | step | {' | '.join(f'{size} GB' for size in sizes)} |"
        yield f"|---|---|---|{'---|' * len(sizes)}"
        for row in result["rows"]:
            base = "bfloat16" if row["quantize"] == "none" else row["quantize"]
            gib = [f"{size / 2**30:.1f} GiB" for size in (row["parts"]["weights"], row["total"])]
            needed = [str(count or "-") for count in row["needed"].values()]
            yield f"| {row['model']}, {base} | {' | '.join([*gib, *needed])} |"


def processes() -> Iterator[str]:
    """Yield how far two processes are from one with the same rows a step."""
    result = read("processes")
    if not result:
        return
    yield f"| two processes against one, {result['model']}, {result['steps']} steps | other units | largest difference of a weight |"
    yield "|---|---|---|"
    for row in result["rows"]:
        apart = "-" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}"
        yield f"| {row['criterion']}, {row['launch']} | {row['other_units']} of {row['units_kept']} | {apart} |"


def main() -> None:
    for part in (
        cost(),
        scoring(),
        memory(),
        saving(),
        speed(),
        footprints(),
        processes(),
        quality.grids(),
        quality.accuracies(),
    ):
        print("\n".join(part), end="\n\n")


if __name__ == "__main__":
    main()
