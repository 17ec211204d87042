"""Tables of how good pruned models are, from the committed results of grids and of `encoder.py` and `vision.py`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from helpers import common

GRIDS = ("bounds", "oneshot", "criteria", "schedule", "interval", "decay", "rank", "rows")
"""grids of configs/, whose results.json is kept as GRID_MODEL.json"""


def grids() -> Iterator[str]:
    """Yield perplexity and gap of every recipe, a table for each result of a grid."""
    for grid in GRIDS:
        for path in sorted(common.RESULTS.glob(f"{grid}_*.json")):
            yield from comparison(grid, path.stem.removeprefix(f"{grid}_"), json.loads(path.read_text()))


def comparison(grid: str, model: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a grid has found: recipes below each other, ratios side by side."""
    recipes, options = result["recipes"], [cell["options"] for cell in result["cells"] if cell["job"] == "prune"]
    tuned = {
        name.partition(", ")[2]: words(each["perplexity"])
        for name, each in recipes.items()
        if each["job"] == "finetune"
    }
    dense = next(cell["perplexity"]["dense"] for cell in result["cells"] if "error" not in cell)
    beside = "".join(f", dense + LoRA {found}{f' ({how})' if how else ''}" for how, found in tuned.items())
    steps, ratios = options[0]["steps"], list(dict.fromkeys(each["ratio"] for each in options))
    shared = f"{steps} steps, learning rate {options[0]['lr']}" if steps else "no training"
    yield f"**{grid}, {model}**: {shared}, dense {dense:.2f}{beside}"
    yield ""
    yield f"| {grid} | {' | '.join(f'{100 * ratio:.0f} % | gap' for ratio in ratios)} |"
    yield f"|---|{'---|' * 2 * len(ratios)}"
    pruned = {name: recipe for name, recipe in recipes.items() if recipe["job"] == "prune"}
    for run in dict.fromkeys(name.split(", ratio ")[0] for name in pruned):
        found = [pruned.get(f"{run}, ratio {ratio}", pruned.get(run)) for ratio in ratios]
        cells = [f"{words(each['perplexity'])} | {gap(each)}" for each in found if each]
        yield f"| {run} | {' | '.join(cells)} |"
    yield ""


def saved_scores() -> Iterator[str]:
    """Yield perplexities at a second ratio by the scores of a run to a first one, a table for each result of saved_scores.py."""
    for path in sorted(common.RESULTS.glob("saved_scores_*.json")):
        result = json.loads(path.read_text())
        options, found = result["options"], result["perplexity"]
        first, second = (f"{100 * options[name]:.0f} %" for name in ("first", "second"))
        yield f"**saved scores, {result['model']}**: {options['steps']} steps, learning rate {options['lr']}, pruned to {second}"
        yield ""
        yield f"| scores of | a run to {second} | a run to {first} | random |"
        yield "|---|---|---|---|"
        for criterion, each in found.items():
            yield f"| {criterion} | {' | '.join(words(each[name]) for name in ('own', 'saved', 'random'))} |"
        yield ""


def gap(recipe: Mapping[str, Any]) -> str:
    """Return a gap in nats, and as a multiple of the reference's."""
    if not recipe["gap"]:
        return "-"
    times = f" ({recipe['relative_gap']:.2f}x)" if recipe["relative_gap"] else ""
    return f"{recipe['gap']['mean']:.3f}{times}"


def words(values: Mapping[str, float | None] | None) -> str:
    """Return mean and deviation of a perplexity."""
    if not values or values["mean"] is None:
        return "-"
    deviation = values["deviation"]
    return f"{values['mean']:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def accuracies() -> Iterator[str]:
    """Yield accuracies in per cent and how far Eq 10 is ahead, a table for each result of encoder.py, vision.py and real_encoders.py."""
    for path in sorted(common.RESULTS.glob("accuracy_*.json")):
        result = json.loads(path.read_text())
        cells, options = list(result["cells"].values()), result["options"]
        parameters, rows = cells[0]["parameters"], cells[0]["rows"]
        errors = [cell["standard_error"]["pruned"] for cell in cells if cell["standard_error"]]
        error = f", standard error {100 * statistics.mean(errors):.1f}" if errors else ""
        dense = "untrained head" if cells[0]["trained_whole"] else f"dense {100 * cells[0]['dense']:.1f} %"
        trained = 100 * parameters["trainable"] / parameters["dense"]
        tuned = percent(list(by_seed(cells, "finetune", 0.0).values()))
        yield (
            f"**{path.stem.partition('_')[2]}**: {options['steps']} steps, learning rate {options['lr']}, rank {options['rank']} "
            f"({trained:.1f} % trainable), {dense}, dense + LoRA {tuned} %; {rows} rows{error}"
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


def real_models() -> Iterator[str]:
    """Yield perplexities of pruned real models, a table for each result of real_models.py and number of steps.

    The gap is the log-perplexity above the dense model that was tuned as long, in nats, on the first text.
    """
    for path in sorted(common.RESULTS.glob("real_*.json")):
        cells = json.loads(path.read_text())["cells"]
        texts = list(cells[0]["perplexity"])
        for steps in sorted({cell["steps"] for cell in cells}):
            chosen = [cell for cell in cells if cell["steps"] == steps]
            dense = {cell["seed"]: cell for cell in chosen if cell["method"] == "dense"}
            yield f"**{path.stem.partition('_')[2]}**, {steps} steps, seeds {sorted(dense)}"
            yield ""
            yield f"| method | removed | {' | '.join(texts)} | gap | seconds |"
            yield f"|---|---|{'---|' * len(texts)}---|---|"
            for method, ratio in dict.fromkeys((cell["method"], cell["ratio"]) for cell in chosen):
                runs = [cell for cell in chosen if (cell["method"], cell["ratio"]) == (method, ratio)]
                means = [statistics.mean(cell["perplexity"][text] for cell in runs) for text in texts]
                gaps = [
                    math.log(cell["perplexity"][texts[0]] / dense[cell["seed"]]["perplexity"][texts[0]])
                    for cell in runs
                    if cell["seed"] in dense
                ]
                gap = f"{statistics.mean(gaps):.3f}" if gaps else "-"
                seconds = statistics.mean(cell["seconds"] for cell in runs)
                values = " | ".join(f"{mean:.2f}" for mean in means)
                yield f"| {method} | {100 * ratio:.0f} % | {values} | {gap} | {seconds:.0f} |"
            yield ""
