"""Tables of the parts of a model, and of the predictions for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.commands.inspect import Description
from loraprune.commands.tables.frame import show
from loraprune.config.sizes import in_percent
from loraprune.reporting.amounts import change, size
from loraprune.reporting.asked import asked_and_reached

INSTEAD = " (--kinds query,ffn)"
WORDS = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "intermediate_size": "FFN",
    "num_hidden_layers": "layers",
}
"""key of config.json -> its short name, for columns that list several shapes"""


def inspection(result: Description) -> None:
    """Print the groups of a model."""
    values = result.values
    rows = [
        (
            f"{k['kind']}{INSTEAD if 'instead_of' in k else ''}\n{k['where']}",
            str(k["groups"]),
            str(k["units"]),
            f"{k['parameters_a_unit']:,}",
            f"{k['parameters']:,}",
            "\n".join(k["spans"]),
        )
        for k in values["kinds"]
    ]
    share = 100 * values["prunable_fraction"]
    title = f"{values['model']}: {values['family']}, {values['parameters']:,} parameters, {share:.1f} % prunable"
    show(title, ("kind", "groups", "units each", "parameters a unit", "parameters", "spans"), rows)
    show(
        "",
        ("", ""),
        [
            ("never pruned", ", ".join(values["never_pruned"])),
            *([("vocabulary", _vocabulary(values))] if values["vocabulary"] else []),
            ("loads with no flag", values["formats"]["stock"]),
            ("loads with modelling code", values["formats"]["layerwise"]),
        ],
    )


def _vocabulary(values: dict[str, Any]) -> str:
    """Describe how much a vocabulary takes, and the option that cuts it."""
    tokens, parameters = values["vocabulary"]["tokens"], values["vocabulary"]["parameters"]
    share = 100 * parameters / values["parameters"]
    return f"{tokens:,} tokens in {parameters:,} parameters ({share:.1f} %); --vocabulary removes tokens"


def dry_run(result: Description) -> None:
    """Print the predictions for a run, or the table of known models."""
    if "models" in result.values:
        known_models(result.values["models"])
        return
    values = result.values
    if "sizes" in values:
        planned_sizes(values)
        return
    parameters, files, memory = values["parameters"], values["file_bytes"], values["memory_bytes"]
    flops, total = values["step_flops"], memory["dense"]["total"]
    rows = [
        ("parameters", f"{parameters['dense']:,}", f"{parameters['pruned']:,}", change(parameters["dense"], parameters["pruned"])),
        ("  in prunable groups", f"{parameters['prunable_dense']:,}", f"{parameters['prunable_pruned']:,}",
         change(parameters["prunable_dense"], parameters["prunable_pruned"])),
        ("file", size(files["dense"]), size(files["pruned"]), change(files["dense"], files["pruned"])),
        ("TFLOPs per step", f"{flops['dense'] / 1e12:.3g}", f"{flops['pruned'] / 1e12:.3g}", change(flops["dense"], flops["pruned"])),
    ]  # fmt: skip
    # The total comes first: its parts below it are indented.
    rows += [
        (_memory_name(values) if name == "total" else f"  {name}", size(part), size(memory["pruned"].get(name, 0)),
         change(part, memory["pruned"].get(name, 0)) if part else "")
        for name, part in sorted(memory["dense"].items(), key=lambda entry: entry[0] != "total")
    ]  # fmt: skip
    show(f"{values['model']}: {values['family']}", ("", "dense", "pruned", "change"), rows)
    pair = (parameters["dense"], parameters["pruned"])
    facts = [("ratio reached", f"{values['ratio_reached']:.4f}"), *asked_and_reached(values["target"], values["reached"], pair),
             *([("vocabulary", f"{values['vocabulary']:,} tokens")] if values["vocabulary"] else []),
             ("shapes", ", ".join(f"{key} {value}" for key, value in values["shapes"].items())),
             ("saved as", str(values["saved_as"]))]  # fmt: skip
    for place, available in values["machine_memory_bytes"].items():
        facts.append(
            (f"this machine, {place}", f"{size(available)}: {'fits' if total < available else 'does not fit'}")
        )
    facts += [(f"GPUs of {gib} GB", count_of(needed)) for gib, needed in values["gpus"]["needed"].items()]
    show("", ("", "plan"), facts)


def _memory_name(values: dict[str, Any]) -> str:
    """Return what the predicted memory is of."""
    return "memory of training" if values["gpus"]["count"] == 1 else "memory of each GPU"


def planned_sizes(values: dict[str, Any]) -> None:
    """Print the predictions for several sizes of a model, a row for each."""
    dense, memory = values["parameters"]["dense"], values["memory_bytes"]["dense"]["total"]
    rows = [("dense", f"{dense:,}", "", size(values["file_bytes"]["dense"]), size(memory), "")]
    rows += [
        (
            in_percent(one["size"]), f"{one['parameters']['pruned']:,}", f"{100 * one['ratio_reached']:.1f} %",
            size(one["file_bytes"]["pruned"]), size(one["memory_bytes"]["pruned"]["total"]),
            ", ".join(f"{WORDS.get(key, key)} {value}" for key, value in one["shapes"].items()),
        )
        for one in values["sizes"]
    ]  # fmt: skip
    columns = ("size", "parameters", "removed of prunable", "file", _memory_name(values), "shape")
    show(f"{values['model']}: {values['family']}", columns, rows)


def known_models(models: Sequence[dict[str, Any]]) -> None:
    """Print for known models the memory of a step in GiB, and how many GPUs of each size are needed."""
    sizes = list(models[0]["gpus"]["needed"])
    rows = []
    for values in models:
        memory = values["memory_bytes"]
        parts = (memory["dense"]["weights"], memory["dense"]["total"], memory["pruned"]["total"])
        needed = [str(values["gpus"]["needed"][gib] or "-") for gib in sizes]
        rows.append((values["model"], *(f"{part / 2**30:.1f}" for part in parts), *needed))
    title = (
        f"GiB of a training step, and how many GPUs of {', '.join(sizes)} GB it needs (several with FSDP; -: too small)"
    )
    show(title, ("", "weights", "step", "pruned", *sizes), rows)


def count_of(needed: int | None) -> str:
    """Return how many GPUs are needed, as text."""
    return "too small" if needed is None else "1" if needed == 1 else f"{needed}, FSDP"
