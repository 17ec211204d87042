"""Statistics of a comparison: the results of its cells, mean and spread of each recipe over seeds, and tables of both.

Knows nothing about processes or plots.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraprune.commands.compare.grid import SEED, Cell, recipe_name
from loraprune.evaluation.measurement import PERPLEXITY, loss_of
from loraprune.reporting.knee import MARKS, RULE

COLUMNS = ("recipe", "removed", "parameters", "perplexity", "seeds", "gap", "of reference", "training", "of reference",
           "peak memory")  # fmt: skip
QUALITY, COST = (0, 1, 3, 4, 5, 6), (0, 2, 7, 8, 9)
"""columns of the two narrow tables for a terminal"""
NOTE = (
    "Metric, gap and seconds: mean ± sample deviation over seeds. Gap: log-perplexity minus that of the dense model tuned with the "
    "same options and seed, or of the untuned dense model without baselines; for an accuracy, the dense model's minus this one. "
    "Of reference: multiple of the reference's value."
)
PENDING = "not run yet"
"""error of a cell that has not run yet"""
COPIED = (
    "ratio_reached",
    "parameters",
    "steps",
    "wall_seconds",
    "total_seconds",
    "peak_memory_bytes",
    "units",
    "versions",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of a comparison, as JSON values."""

    values: Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, float | None] | None:
    """Return mean and sample deviation; the deviation of one value is None, and so is the result for no values."""
    if not values:
        return None
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def entry(cell: Cell, folder: Path, error: str | None) -> dict[str, Any]:
    """Return the results of a cell, or the reason why it has none."""
    options = {name: value for name, value in asdict(cell.config).items() if name not in ("output", "overwrite")}
    known = {"recipe": cell.recipe, "labels": dict(cell.labels), "seed": cell.config.seed, "job": cell.job,
             "key": cell.key, "baseline": cell.baseline, "options": options}  # fmt: skip
    if error is not None:
        return known | {"error": error}
    report = json.loads((folder / cell.key / "report.json").read_text(encoding="utf-8"))
    machine = folder / cell.key / "machine.json"
    metric = report.get("metric", PERPLEXITY)  # missing in old reports
    measured = report[metric]
    return (
        known
        | {name: report[name] for name in COPIED if name in report}
        | {
            "metric": metric,
            metric: {name: measured[name] for name in ("dense", "pruned")},
            "protocol": measured["protocol"],
        }
        | {"machine": json.loads(machine.read_text(encoding="utf-8")) if machine.is_file() else None}
    )


def summarise(entries: Sequence[Mapping[str, Any]], reference: str | None) -> dict[str, dict[str, Any]]:
    """Return recipe -> statistics; they are relative to the recipe that differs only in the label of the reference."""
    log_dense = {e["key"]: _loss(e, "pruned") for e in entries if e["job"] != "prune" and "error" not in e}
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for one in entries:
        by_recipe.setdefault(one["recipe"], []).append(one)
    recipes = {name: _statistics(cells, log_dense) for name, cells in by_recipe.items()}
    axes = (axis for one in entries for axis, words in one["labels"].items() if words == reference and axis != SEED)
    axis = next(axes, None)
    for name, values in recipes.items():
        other = reference_of(values["labels"], axis, reference)
        values["reference"] = other if other in recipes else None
        known = recipes.get(other) if other else None
        gap, of = _mean(values["gap"]), _mean(known["gap"]) if known else None
        values["relative_gap"] = gap / of if gap is not None and of is not None and of > 0 else None
        values["wall_ratio"] = _wall_ratio(by_recipe[name], by_recipe[other]) if known and other else None
    return recipes


def reference_of(labels: Mapping[str, str], axis: str | None, reference: str | None) -> str | None:
    """Return the recipe whose labels are `labels`, except that `axis` is `reference`."""
    if axis is None or reference is None or axis not in labels:
        return None
    return recipe_name({**labels, axis: reference})


def _statistics(cells: Sequence[Mapping[str, Any]], log_dense: Mapping[str, float]) -> dict[str, Any]:
    """Return the statistics of the cells of one recipe."""
    done = [cell for cell in cells if "error" not in cell]
    logs = [(_loss(cell, "pruned"), _compared_with(cell, log_dense)) for cell in done]
    metric = metric_of(done)
    return {
        "labels": {axis: words for axis, words in cells[0]["labels"].items() if axis != SEED},
        "job": cells[0]["job"],
        "seeds": len(done),
        "failed": len(cells) - len(done),
        metric: spread([cell[metric]["pruned"] for cell in done]),
        "dense": _mean(spread([cell[metric]["dense"] for cell in done])),
        "gap": spread([pruned - dense for pruned, dense in logs if dense is not None]),
        "ratio_reached": _mean(spread([cell.get("ratio_reached", 0.0) for cell in done])),
        "parameters": _mean(spread([float(cell["parameters"]["pruned"]) for cell in done])),
        "wall_seconds": spread([cell["wall_seconds"] for cell in done]),
        "peak_memory_bytes": max((cell["peak_memory_bytes"] for cell in done), default=None),
    }


def metric_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the metric, which all cells share."""
    return next((cell["metric"] for cell in cells if "metric" in cell), PERPLEXITY)


def _loss(cell: Mapping[str, Any], which: str) -> float:
    """Return a figure as a loss."""
    metric = metric_of([cell])
    return loss_of(metric, cell[metric][which])


def columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the column headings, with the name of the metric."""
    return tuple(metric_of(values["cells"]).replace("_", " ") if name == PERPLEXITY else name for name in COLUMNS)


def _compared_with(cell: Mapping[str, Any], log_dense: Mapping[str, float]) -> float | None:
    """Return the loss that the gap of a cell refers to: the tuned dense model's, or without baselines the dense model's."""
    if cell["job"] != "prune":
        return None
    return log_dense.get(cell["baseline"]) if cell["baseline"] else _loss(cell, "dense")


def _mean(values: Mapping[str, float | None] | None) -> float | None:
    return values["mean"] if values else None


def _wall_ratio(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean ratio of the seconds of cells to those of others with the same seed."""
    seconds = {cell["seed"]: cell["wall_seconds"] for cell in others if "error" not in cell}
    return _mean(spread([
        cell["wall_seconds"] / seconds[cell["seed"]] for cell in cells if "error" not in cell and cell["seed"] in seconds
    ]))  # fmt: skip


def rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table as text; the dense models come first."""
    recipes: Mapping[str, Any] = values["recipes"]
    chosen = {(each[mark], mark) for each in values["recommendations"].values() for mark in MARKS}
    metric = metric_of(values["cells"])
    dense = {f"{e[metric]['dense']:.3f}": e for e in values["cells"] if "error" not in e}
    found: list[tuple[str, ...]] = [
        ("dense", "", f"{e['parameters']['dense']:,}", words, "", "", "", "", "", "") for words, e in dense.items()
    ]
    for name, r in recipes.items():
        share = "" if r["ratio_reached"] is None or r["job"] != "prune" else f"{100 * r['ratio_reached']:.1f} %"
        failed = f" of {r['seeds'] + r['failed']}" if r["failed"] else ""
        parameters = f"{r['parameters']:,.0f}" if r["parameters"] is not None else "-"
        memory = f"{r['peak_memory_bytes'] / 2**20:,.0f} MiB" if r["peak_memory_bytes"] else "-"
        marks = ", ".join(mark for mark in MARKS if (name, mark) in chosen)
        title = f"{name} ({marks})" if marks else name
        found.append((
            title, share, parameters, _plus(r.get(metric), 3), f"{r['seeds']}{failed}", _plus(r["gap"], 3),
            _times(r["relative_gap"]), _plus(r["wall_seconds"], 1, unit=" s"), _times(r["wall_ratio"]), memory,
        ))  # fmt: skip
    return found


def _plus(values: Mapping[str, float | None] | None, digits: int, *, unit: str = "") -> str:
    """Return mean ± deviation as text."""
    if not values:
        return "-"
    deviation = values["deviation"]
    return f"{values['mean']:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "") + unit


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio is not None else ""


def failures(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and error of every failed cell, and how many have not run."""
    errors = [(f"{e['recipe']}, seed {e['seed']}", e["error"]) for e in values["cells"] if "error" in e]
    pending = sum(error == PENDING for _, error in errors)
    return [(name, error) for name, error in errors if error != PENDING] + [(f"{pending} cells", PENDING)] * (
        pending > 0
    )


def advice(values: Mapping[str, Any]) -> list[str]:
    """Return a line for every curve that says which size is recommended, and the rule; nothing without curves."""
    found = [f"Sizes of {curve}: {each['reason']}." for curve, each in values["recommendations"].items()]
    return [*found, RULE] if found else []


def markdown(values: Mapping[str, Any]) -> str:
    """Return the text of a table.md."""
    lines = [f"**{values['model']}** on {values['data']}", "", f"| {' | '.join(columns(values))} |",
             "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]  # fmt: skip
    lines += [f"| {' | '.join(row)} |" for row in rows(values)]
    lines += [
        "",
        NOTE,
        *(f"\n{line}" for line in advice(values)),
        *(f"\nNo result: {name}: {error}" for name, error in failures(values)),
    ]
    return "\n".join(lines) + "\n"
