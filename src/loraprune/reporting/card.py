"""Write model cards: the README.md of a folder, with the metadata that the hub reads.

Knows nothing about how anything was measured, and uses no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from loraprune.evaluation.measurement import BITS
from loraprune.evaluation.tasks import tasks
from loraprune.reporting.amounts import NEW_HEAD, UNTRAINED
from loraprune.reporting.report import Report
from loraprune.runtime.hub import OURS, is_local, parts

CARD = "README.md"
UNKNOWN = "unknown"
"""the hub's word for a licence that is not stated"""
READERS = {
    "text": (", AutoTokenizer", "tokenizer = AutoTokenizer.from_pretrained(folder)\n"),
    "causal-lm": (
        ", AutoTokenizer",
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'prompt = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))\n",
    ),
    "image-classification": (", AutoImageProcessor", "processor = AutoImageProcessor.from_pretrained(folder)\n"),
}
"""task -> what the card's example imports besides the model's class, and its lines after the model"""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def metadata(model: str, data: str | None, task: str, *, tags: Sequence[str] = ()) -> dict[str, Any]:
    """Return the metadata of a model made from `model`; names of the hub are kept and local paths are left out."""
    model, _ = parts(model)
    base = base_metadata(model)
    name = model if is_hub_name(model) else base.get("base_model")
    values: dict[str, Any] = {"base_model": name, "license": base.get("license", UNKNOWN)}
    values |= {key: base[key] for key in ("license_name", "license_link", "language") if key in base}
    values |= {
        "datasets": [data] if data and "/" in data and is_hub_name(data) else None,
        "library_name": "transformers",
    }
    pipeline = tasks.get(task).pipeline if task in tasks.names() else None
    values |= {"pipeline_tag": pipeline, "tags": ["loraprune", "pruned", *tags]}
    return {key: value for key, value in values.items() if value}


def is_hub_name(name: str) -> bool:
    """Return whether a name can be one of the hub."""
    return name not in OURS and not is_local(name) and bool(HUB_NAME.fullmatch(name))


def base_metadata(model: str) -> Mapping[str, Any]:
    """Return the metadata of a base model's card, from its folder or the hub's cache; empty if there is no card."""
    if is_hub_name(model):
        cached = try_to_load_from_cache(model, CARD)
        return split_card(Path(cached))[0] if isinstance(cached, str) else {}
    return split_card(Path(model) / CARD)[0]


def split_card(path: Path) -> tuple[dict[str, Any], str]:
    """Return metadata and text of a card; both are empty if the card is missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}, ""
    found = FRONT.match(text)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        values = None
    return (values if isinstance(values, dict) else {}), text[found.end() :] if found else text


def join_card(values: Mapping[str, Any], text: str) -> str:
    """Return the text of a card with its metadata."""
    front = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{text.lstrip()}"


def licence_line(values: Mapping[str, Any]) -> str:
    """Return the licence of a model in one or two sentences."""
    known = values.get("license", UNKNOWN)
    if known == UNKNOWN:
        return "The licence of the base model applies. Its name was unknown when this card was written."
    return f"Licence: {values.get('license_name', known)}, the licence of the base model."


def model_card(report: Report, *, output: str) -> str:
    """Return the card of a run's folder named `output`."""
    head, new = tasks.get(report.task).head, report.has_new_head
    about = metadata(report.model, report.data, report.task)
    dense_figure = f"{report.quality.dense:.3f}" + (f" ({UNTRAINED})" if new else "")
    rows = [
        ("parameters", *(f"{each:,}" for each in report.parameters)),
        (report.metric, dense_figure, f"{report.quality.pruned:.3f}"),
    ]
    if removed := report.removed:
        what = (
            "fraction of prunable weights that are zero"
            if removed.sparsity
            else "fraction of prunable parameters removed"
        )
        rows.insert(1, (what, "0", f"{removed.ratio_reached:.4f}"))
    if cut := report.vocabulary:
        rows.append(("tokens in the vocabulary", f"{cut['dense']:,}", f"{cut['kept']:,}"))
    if bits := report.quality.others.get(BITS):
        rows.append(("bits per byte", f"{bits['dense']:.3f}", f"{bits['pruned']:.3f}"))
    flag = ", trust_remote_code=True" if report.needs_code else ""
    reader = READERS.get(report.task, READERS["text"])
    table = "\n".join(f"| {name} | {dense} | {pruned} |" for name, dense, pruned in rows)
    return join_card(
        about,
        f"# {Path(output).name}\n\n"
        f"`loraprune {report.job}` made this model from `{report.model}` on `{report.data}` ({report.training.steps} steps, "
        f"seed {report.seed}).\n"
        f"{licence_line(about)}\n\n"
        f"| | dense | this model |\n|---|---|---|\n{table}\n\n"
        + (
            f"The cut is the largest within a loss of {100 * report.search.max_drop:g} %: {report.search.reason}.\n\n"
            if report.search
            else ""
        )
        + f"Verdict of the run: {report.verdict.word} ({report.verdict.reason}).\n\n"
        "The figures are on held-out data. `report.json` has the protocol."
        + (f" About the dense figure: {NEW_HEAD}." if new else "")
        + "\n\n"
        f"To load it, use {report.load}:\n\n"
        f'```python\nfrom transformers import {head}{reader[0]}\n\nfolder = "path/of/this/folder"\n'
        f"model = {head}.from_pretrained(folder{flag})\n{reader[1]}```\n\n"
        f"To repeat the run: `loraprune {report.job} --config run.yaml --output another/folder`.\n",
    )
