"""The README's tables, from the committed results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
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


def accuracies() -> Iterator[str]:
    """Yield accuracies in per cent and how far Eq 10 is ahead, a table for each result of encoder.py and vision.py."""
    for path in sorted(common.RESULTS.glob("accuracy_*.json")):
        result = json.loads(path.read_text())
        cells, options = list(result["cells"].values()), result["options"]
        parameters, rows = cells[0]["parameters"], cells[0]["rows"]
        error = 100 * statistics.mean(cell["standard_error"]["pruned"] for cell in cells)
        dense = "its head new" if cells[0]["trained_whole"] else f"dense {100 * cells[0]['dense']:.1f} %"
        trained = 100 * parameters["trainable"] / parameters["dense"]
        tuned = percent(list(by_seed(cells, "finetune", 0.0).values()))
        yield (
            f"**{path.stem.partition('_')[2]}**: {options['steps']} steps, learning rate {options['lr']}, rank {options['rank']} "
            f"({trained:.1f} % trainable), {dense}, dense + LoRA {tuned} %; {rows} rows, standard error {error:.1f}"
        )
        yield ""
        runs = list(dict.fromkeys(cell["run"] for cell in cells if cell["ratio"]))
        yield f"| removed | {' | '.join(runs)} |"
        yield f"|---|{'---|' * len(runs)}"
        for ratio in sorted({cell["ratio"] for cell in cells if cell["ratio"]}):
            found = {run: by_seed(cells, run, ratio) for run in runs}
            yield f"| {100 * ratio:.0f} % | {' | '.join(percent(list(each.values())) for each in found.values())} |"
            ahead = [
                [found["lora"][seed] - value for seed, value in each.items() if seed in found["lora"]]
                for each in found.values()
            ]
            yield f"| lora ahead by | {' | '.join('' if not any(each) else percent(each) for each in ahead)} |"
        yield ""


def by_seed(cells: Sequence[Mapping[str, Any]], run: str, ratio: float) -> dict[int, float]:
    """Return the accuracies of a run."""
    return {cell["seed"]: cell["pruned"] for cell in cells if cell["run"] == run and cell["ratio"] == ratio}


def percent(values: Sequence[float]) -> str:
    """Return mean and sample deviation in per cent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{round(100 * statistics.mean(values), 1) + 0.0:.1f}{deviation}"  # no minus before a zero


def words(values: dict[str, float | None] | None) -> str:
    """Return mean and deviation of a perplexity."""
    if not values or values["mean"] is None:
        return "-"
    deviation = values["deviation"]
    return f"{values['mean']:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def main() -> None:
    for part in (
        cost(),
        scoring(),
        memory(),
        saving(),
        speed(),
        footprints(),
        processes(),
        comparisons(),
        accuracies(),
    ):
        print("\n".join(part), end="\n\n")


if __name__ == "__main__":
    main()
