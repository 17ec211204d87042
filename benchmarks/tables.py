"""The README's tables, from the committed results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import common


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


def comparisons() -> Iterator[str]:
    """Yield perplexity and gap of every recipe, a table for each results.json of `loraprune compare` kept as GRID_<name>.json."""
    for path in sorted(path for grid in ("bounds", "compare") for path in common.RESULTS.glob(f"{grid}_*.json")):
        result = json.loads(path.read_text())
        recipes, cells = result["recipes"], result["cells"]
        steps, lr = (next(cell["options"][name] for cell in cells) for name in ("steps", "lr"))
        tuned = recipes.get("finetune", {}).get("perplexity")
        dense = next(cell["perplexity"]["dense"] for cell in cells if "error" not in cell)
        beside = f", dense + LoRA {words(tuned)}" if tuned else ""
        yield f"**{path.stem.partition('_')[2]}**: {steps} steps, learning rate {lr}, dense {dense:.2f}{beside}"
        yield ""
        pruned = {name: recipe for name, recipe in recipes.items() if recipe["job"] == "prune"}
        runs = list(dict.fromkeys(name.split(", ")[0] for name in pruned))
        yield f"| removed | {' | '.join(runs)} |"
        yield f"|---|{'---|' * len(runs)}"
        for ratio in dict.fromkeys(name.split(", ")[-1] for name in pruned):
            found = [pruned.get(f"{run}, {ratio}") for run in runs]
            percent = f"{100 * float(ratio.removeprefix('ratio ')):.0f} %"
            yield f"| {percent} | {' | '.join(words(each['perplexity']) if each else '-' for each in found)} |"
            gaps = [f"{each['relative_gap']:.2f}x" if each and each["relative_gap"] else "-" for each in found]
            yield f"| gap, of lora's | {' | '.join(gaps)} |"
        yield ""


def words(values: dict[str, float | None] | None) -> str:
    """Return mean and deviation of a perplexity."""
    if not values or values["mean"] is None:
        return "-"
    deviation = values["deviation"]
    return f"{values['mean']:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def main() -> None:
    for part in (cost(), scoring(), speed(), footprints(), comparisons()):
        print("\n".join(part), end="\n\n")


if __name__ == "__main__":
    main()
