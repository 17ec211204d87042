"""Tables of runs, measurements and exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich.console import Console
from rich.text import Text

from loraprune.commands import compare_models
from loraprune.commands.benchmark import Speed
from loraprune.commands.compare import summary
from loraprune.commands.compare.summary import Comparison
from loraprune.commands.compare_models import Lineup
from loraprune.commands.evaluate import Evaluation
from loraprune.commands.report import Drawn
from loraprune.commands.tables.candidates import candidates
from loraprune.commands.tables.ending import ending
from loraprune.commands.tables.frame import show
from loraprune.commands.tables.tries import tries
from loraprune.evaluation.measurement import BITS, DENSITY, PERPLEXITY
from loraprune.export.push import Pushed
from loraprune.export.run import Export
from loraprune.reporting import amounts
from loraprune.reporting.amounts import NEW_HEAD, UNTRAINED, change, size
from loraprune.reporting.asked import asked_and_reached
from loraprune.reporting.html.page import heads, task_rows
from loraprune.reporting.report import Report
from loraprune.reporting.sizes import Sizes


def report(result: Report) -> None:
    """Print the figures of a run, all sizes, the shapes and the tries of a search, its verdict and what to do next."""
    figures(result)
    if result.sizes:
        all_sizes(result.sizes)
    if result.removed and result.removed.shapes:
        candidates(result.removed.shapes)
    if result.search:
        tries(result.metric, result.search)
    ending(result)


def all_sizes(found: Sizes) -> None:
    """Print one row for every size of a run, and which one is recommended."""
    show(f"all sizes, {found.steps} steps and {found.total_seconds:.1f} s together", found.columns, found.rows())
    Console().print(Text(f"recommended  {found.outcome}"), soft_wrap=True)


def figures(result: Report) -> None:
    """Print the figures of a run."""
    (dense, pruned), quality, training = result.parameters, result.quality, result.training
    rows = [("parameters", f"{dense:,}", f"{pruned:,}", change(dense, pruned))]
    if removed := result.removed:
        before, after = removed.prunable_dense, removed.prunable_pruned
        left = "  not zero, in prunable groups" if removed.sparsity else "  in prunable groups"
        rows.append((left, f"{before:,}", f"{after:,}", change(before, after)))
    metric = result.metric.replace("_", " ")
    new = result.has_new_head
    rows.append((
        metric, f"{quality.dense:.3f}" + (f" ({UNTRAINED})" if new else ""), f"{quality.pruned:.3f}",
        "-" if new else change(quality.dense, quality.pruned),
    ))  # fmt: skip
    for name, words in ((BITS, "bits per byte"), (DENSITY, "tokens per byte")):
        if pair := quality.others.get(name):
            rows.append((words, f"{pair['dense']:.4f}", f"{pair['pruned']:.4f}", change(pair["dense"], pair["pruned"])))
    if cut := result.vocabulary:
        rows.append(
            ("tokens in the vocabulary", f"{cut['dense']:,}", f"{cut['kept']:,}", change(cut["dense"], cut["kept"]))
        )
    what = "pruned" if result.job == "prune" else "tuned"
    show(f"{result.model} on {result.data}", ("", "dense", what, "change"), rows)
    trained, checks = training.trainable, result.verification
    facts = [("trainable parameters", f"{trained:,} ({100 * trained / dense:.2f} % of the dense model's)"),
             ("steps", str(training.steps)), ("training", f"{training.seconds:.1f} s"),
             ("total", f"{result.total_seconds:.1f} s"), ("peak memory", size(training.peak_memory_bytes)),
             ("masked against sliced", f"{checks.masked_vs_sliced:.1e}"),
             ("sliced against reloaded", f"{checks.sliced_vs_reloaded:.1e}"), ("loads with", result.load)]  # fmt: skip
    if cut := result.vocabulary:
        facts.insert(0, ("held-out tokens that are kept", f"{100 * cut['held_out_coverage']:.2f} %"))
    if new:
        facts.append(("dense model to compare with", NEW_HEAD))
    if removed:
        asked = f" (asked {removed.ratio_requested:g})" if removed.ratio_requested is not None else ""
        targets = asked_and_reached(removed.target, removed.reached, result.parameters)
        facts = [("ratio reached", f"{removed.ratio_reached:.4f}{asked}"), *targets, *facts]
    show("", ("", "run"), facts)


def evaluation(result: Evaluation) -> None:
    """Print the quality of models at their task, and accuracies on tasks of lm-eval in per cent."""
    for entry in result.values["measurements"]:
        metric = entry["metric"]
        title = f"{metric.replace('_', ' ')} on {entry['data']}"
        if metric == PERPLEXITY:
            rows = [
                (
                    name, f"{m[metric]:.3f}", f"{m['nll']:.4f}" + _plus_minus(m), f"{m[BITS]:.4f}" if BITS in m else "-",
                    f"{m['tokens']:,}", str(entry["length"]),
                )
                for name, m in entry["models"].items()
            ]  # fmt: skip
            show(title, ("model", "perplexity", "nats a token", "bits a byte", "tokens", "window"), rows)
        else:
            figures = [(n, f"{m[metric]:.4f}" + _plus_minus(m), f"{m['rows']:,}") for n, m in entry["models"].items()]
            show(title, ("model", metric, "rows"), figures)
        if entry["difference"]:
            unit = "nats a token" if metric == PERPLEXITY else metric
            words = f"{entry['difference']['value']:+.4f}{_plus_minus(entry['difference'])} {unit}"
            Console().print(f"difference: {words}, paired by row")
    if "tasks" in result.values:
        names = heads(result.values)
        columns = ["task", "metric", "rows", *names, *["difference"] * (len(names) > 1)]
        title = "accuracy, per cent ± standard error" + "; differences are paired" * (len(names) > 1)
        show(title, columns, list(task_rows(result.values)))


def _plus_minus(measured: Mapping[str, Any]) -> str:
    error = measured["standard_error"]
    return f" ± {error:.4f}" if error is not None else ""


def drawn(result: Drawn) -> None:
    """Print which files were written."""
    rows = [("page", result.values["page"]), *(("plot", file) for file in result.values["plots"])]
    show("written", ("", "file"), rows, figures=False)


def comparison(result: Speed) -> None:
    """Print sizes and speeds, and how much smaller and faster each model is than the first."""
    models: Mapping[str, Any] = result.values["rows"]
    ratios, names = result.values["ratios"], list(models)

    def line(what: str, cell: Callable[[Any], str | None], factor: Callable[[Any], float | None]) -> list[str]:
        found = [what]
        for place, name in enumerate(names):
            text, times = cell(models[name]), factor(ratios[name]) if place else None
            found.append("-" if text is None else text + (f"\n{times:.2f}x" if times else ""))
        return found

    rows = [
        line("parameters", lambda row: f"{row['parameters']:,}", lambda ratio: 1 / ratio["parameters"]),
        line("MACs a token", lambda row: f"{row['macs_per_token']:,}", lambda ratio: ratio["expected_speedup"]),
        line(
            "file",
            lambda row: size(row["file_bytes"]),
            lambda ratio: 1 / ratio["file_bytes"] if ratio["file_bytes"] else None,
        ),
        line("weights in memory", _weights, lambda ratio: 1 / ratio["weight_bytes"]),
    ]
    if any(models[name]["peak_memory_bytes"] for name in names):
        rows.append(line("peak memory", _peak, lambda ratio: None))
    for batch in models[names[0]]["prefill_seconds"]:
        rows.append(
            line(
                f"prefill, batch {batch}",
                partial(_prefill, batch),
                partial(_prefill_speedup, batch),
            )
        )
    if any(models[name]["decode_tokens_per_second"] for name in names):
        rows.append(line("tokens a second", _rate, lambda ratio: ratio["decode_speedup"]))
    pairs = ", speed-ups by pairs of neighbouring runs" if result.values["protocol"]["order"] == "in turns" else ""
    show(f"size and speed; below: times smaller or faster than the first{pairs}", ["", *names], rows)


def _weights(row: Mapping[str, Any]) -> str | None:
    return size(row["weight_bytes"]) if row["engine"] == "transformers" else None


def _peak(row: Mapping[str, Any]) -> str | None:
    return size(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else None


def _prefill(batch: str, row: Mapping[str, Any]) -> str | None:
    return milliseconds(row["prefill_seconds"][batch]) if batch in row["prefill_seconds"] else None


def _prefill_speedup(batch: str, ratio: Mapping[str, Any]) -> float | None:
    found: float | None = ratio["prefill_speedup"].get(batch)
    return found


def _rate(row: Mapping[str, Any]) -> str | None:
    return f"{row['decode_tokens_per_second']:.0f}" if row["decode_tokens_per_second"] else None


def milliseconds(spread: Mapping[str, float]) -> str:
    """Return the time of a call with its spread."""
    return f"{1e3 * spread['median']:.1f} ms ({1e3 * spread['minimum']:.1f} to {1e3 * spread['maximum']:.1f})"


def export(result: Export) -> None:
    """Print what an export wrote."""
    values = result.values
    facts = [("written", values["output"]), ("size", size(values["bytes"])), ("loads with", values["load"])]
    facts += [(name.replace("_", " "), f"{found:.1e}") for name, found in values["verification"].items()]
    facts += _beside_float32(values["int8"]) if "int8" in values else []
    if left := values.get("not_quantized"):
        facts.append(
            ("not quantised", f"{len(left)} tensors whose width is not a multiple of the block, such as {left[0]}")
        )
    facts.append(("verified by", values["verified_by"]))
    show(f"{values['model']} as {values['format']}", ("", "export"), facts, figures=False)


def _beside_float32(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what an int8 graph is beside the float32 one, in words."""
    facts = [
        ("size, float32 -> int8", " -> ".join(size(found["bytes"][name]) for name in ("float32", "int8"))),
        (
            "a batch, float32 -> int8",
            " -> ".join(amounts.call_time(found["seconds"][name]) for name in ("float32", "int8")),
        ),
        ("same class on random inputs", f"{found['same_class']:.1%}"),
    ]
    if "metric" in found:
        metric = found["metric"]
        facts.append(
            (f"{metric}, float32 -> int8", " -> ".join(f"{found[metric][name]:.4f}" for name in ("float32", "int8")))
        )
    return facts


def pushed(result: Pushed) -> None:
    """Print what was uploaded."""
    values = result.values
    facts = [("repository", values["repo"]), ("files", str(values["files"])), ("size", size(values["bytes"])),
             ("licence", values["license"]), ("commit", values["url"])]  # fmt: skip
    show(f"{values['model']} on the hub", ("", "push"), facts, figures=False)


def demo(result: Report) -> None:
    """Compare the dense and the pruned model: size, quality, speed, and a completion of the same prompt."""
    figures(result)
    comparison(Speed(dict(result.shown.speed or {})))
    show("the same prompt, continued", ("", "text"), list((result.shown.completions or {}).items()), figures=False)
    ending(result)


def compared(result: Comparison) -> None:
    """Print mean and spread of every recipe, and the cells without a result."""
    values = result.values
    rows, title = summary.rows(values), f"{values['model']} on {values['data']}"
    for part in (summary.QUALITY, summary.COST):
        show(title, [summary.columns(values)[i] for i in part], [[row[i] for i in part] for row in rows])
        title = ""
    Console().print(summary.NOTE)
    for line in summary.advice(values):
        Console().print(Text(line), soft_wrap=True)
    failed = summary.failures(values)
    if failed:
        show("no result", ("cell", "why"), failed, figures=False)


def lined_up(result: Lineup) -> None:
    """Print one row per model."""
    show("models", compare_models.columns(result.values), compare_models.rows(result.values))
