"""The inputs of a case: one good file of every kind, what can be done to each, and which commands read it.

Knows nothing about how a command must end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from benchmarks.fuzz.damage import BYTES, FOLDER, ODD_VALUES, TEXT, Damage, header, not_finite, rows, tree
from safetensors.torch import save_file
from tests.data.images.conftest import CLASSES, write_images
from tests.evaluation.tasks.cases import reviews, word_tokenizer, write_csv
from tests.samples import save_tiny, tiny_llama, write_text
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from loraprune.commands import parser
from loraprune.families import find_groups
from loraprune.plan import Plan

SHORT = {"steps": "1", "batch": "2", "length": "16", "rank": "2", "device": "cpu"}
TIMING = {"batches": "[1]", "length": "8", "tokens": "1", "repeats": "1", "device": "cpu"}


def make_good(root: Path) -> None:
    """Write one good file of every kind."""
    save_tiny(root / "model")
    model = tiny_llama()
    groups = find_groups(model.config)
    plan = Plan.full(groups)
    (root / "model" / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    save_file({name: model.lm_head.weight[:units, 0].clone().contiguous() for name, units in plan.units.items()},
              root / "scores.safetensors")  # fmt: skip
    write_text(root / "text.txt", 60)
    texts = {"text": (root / "text.txt").read_text(encoding="utf-8").splitlines()}
    table = datasets.Dataset.from_dict(texts)
    for suffix, write in (("jsonl", table.to_json), ("csv", table.to_csv), ("parquet", table.to_parquet)):
        write(root / f"text.{suffix}")
    turns = [{"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]}
             for line in texts["text"]]  # fmt: skip
    datasets.Dataset.from_list(turns).to_json(root / "chat.jsonl")
    run: dict[str, Any] = {
        "ratio": 0.5,
        "criterion": "magnitude",
        "allocation": "uniform",
        "seed": 0,
        "lr": 1e-3,
        "warmup": 0.1,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    grid = {"grid": {"ratio": [0.2, 0.5], "seed": [0, 1]}, "runs": {"a": {"criterion": "lora"}, "b": {"recipe": "best"}},
            "baselines": ["finetune"], "reference": "a", "steps": 2}  # fmt: skip
    (root / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    make_labelled(root)
    make_images(root)


def make_labelled(root: Path) -> None:
    """Write a classifier of texts, reviews with their labels, and a folder as GLUE's archive has it."""
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, id2label={0: "bad", 1: "good"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(root / "classifier")
    tokenizer.save_pretrained(root / "classifier")
    labelled = reviews(40)
    write_csv(root / "labelled.csv", labelled)
    datasets.Dataset.from_list(labelled).to_json(root / "labelled.jsonl")
    (root / "SST-2").mkdir()
    lines = [f"{row['text']}\t{int(row['label'] == 'good')}" for row in labelled]
    for name, part in (("train", lines[:30]), ("dev", lines[30:])):
        (root / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part, ""]), encoding="utf-8")


def make_images(root: Path) -> None:
    """Write a classifier of images and folders of images for its classes."""
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(root / "seeing")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "seeing")
    write_images(root / "images", each=4)


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    file: str
    damages: tuple[Damage, ...]
    commands: tuple[str, ...]
    """those that read it"""
    data: str = "text.txt"
    model: str = "model"


JUDGED = ("prune", "evaluate")
LABELLED, SEEING = {"model": "classifier"}, {"model": "seeing", "data": "images"}
KINDS: Mapping[str, Kind] = {
    "config.json": Kind("model/config.json", (*TEXT, *[tree] * 14), ("inspect", "plan", "prune", "evaluate", "export")),
    "tokenizer": Kind("model/tokenizer.json", (*TEXT, *[tree] * 8), JUDGED),
    "tokenizer_config": Kind("model/tokenizer_config.json", (*TEXT, *[tree] * 8), ("finetune", "evaluate")),
    "weights": Kind("model/model.safetensors", (*BYTES, *[header] * 5, *[not_finite] * 3), (*JUDGED, "benchmark", "export")),
    "plan.json": Kind("model/plan.json", (*TEXT, *[tree] * 8), ("export",)),
    "run.yaml": Kind("run.yaml", (*TEXT, *[tree] * 12), ("prune", "finetune", "plan")),
    "grid.yaml": Kind("grid.yaml", (*TEXT, *[tree] * 12), ("compare",)),
    "scores": Kind("scores.safetensors", (*BYTES, *[header] * 4, *[not_finite] * 4), ("prune", "plan")),
    "txt": Kind("text.txt", TEXT, JUDGED),
    "jsonl": Kind("text.jsonl", (*TEXT, *[rows] * 6), JUDGED, data="text.jsonl"),
    "chat": Kind("chat.jsonl", (*TEXT, *[rows] * 10), ("finetune", "evaluate"), data="chat.jsonl"),
    "csv": Kind("text.csv", TEXT, JUDGED, data="text.csv"),
    "parquet": Kind("text.parquet", BYTES, JUDGED, data="text.parquet"),
    "labelled csv": Kind("labelled.csv", TEXT, JUDGED, data="labelled.csv", **LABELLED),
    "labelled jsonl": Kind("labelled.jsonl", (*TEXT, *[rows] * 10), JUDGED, data="labelled.jsonl", **LABELLED),
    "GLUE": Kind("SST-2/train.tsv", TEXT, ("prune", "finetune", "compare"), data="SST-2", **LABELLED),
    "classifier": Kind("classifier/config.json", (*TEXT, *[tree] * 14), ("inspect", *JUDGED), data="labelled.csv", **LABELLED),
    "image": Kind(f"images/{CLASSES[0]}/0.png", BYTES, ("prune", "evaluate", "compare"), **SEEING),
    "image folder": Kind("images", FOLDER, ("prune", "finetune", "evaluate"), **SEEING),
    "preprocessor": Kind("seeing/preprocessor_config.json", (*TEXT, *[tree] * 10), JUDGED, **SEEING),
    "seeing": Kind("seeing/config.json", (*TEXT, *[tree] * 14), ("inspect", "plan", *JUDGED), **SEEING),
}  # fmt: skip
"""kind of input -> its file, ways to spoil it, commands that read it, and what else they are given"""


def arguments(command: str, root: Path, *, model: str = "model", data: str = "text.txt") -> dict[str, str]:
    """Return good options of a command."""
    given = {"model": str(root / model)}
    read, output = given | {"data": str(root / data)}, {"output": str(root / "out")}
    return {
        "inspect": given,
        "plan": given | {"ratio": "0.5"},
        "prune": read | output | SHORT | {"criterion": "magnitude"},
        "finetune": read | output | SHORT,
        "evaluate": read | {"length": "16", "batch": "64", "device": "cpu"},
        "benchmark": given | TIMING,
        "export": given | output,
        "compare": read | output | SHORT,
        "compare-models": output
        | {"models": f"[{root / model},{root / model}/.]", "data": str(root / data), "length": "16"}
        | {"repeats": "1", "tokens": "2", "device": "cpu"},
        "resume": output,
        "report": given,
        "push": given | {"repo": "org/name"},
        "demo": output | {"steps": "-1"},
    }[command]  # fmt: skip


def spoil(root: Path, number: int, draw: random.Random) -> tuple[str, str, str, list[str]]:
    """Spoil a good folder; return kind, command, how, and the command line."""
    names = [*KINDS, "options"]
    kind = names[number % len(names)]
    if kind == "options":
        command = draw.choice(list(parser.COMMANDS))
        options = arguments(command, root)
        known = [
            field for field in parser.COMMANDS[command].options.__dataclass_fields__ if field not in ("model", "data")
        ]
        chosen = {draw.choice(known): str(draw.choice(ODD_VALUES)) for _ in range(draw.choice([1, 1, 2, 3]))}
        for name in set(chosen) & {"output", "eval", "against"}:  # stay below the folder that is watched
            chosen[name] = str(root / (chosen[name].strip("./") or "x"))
        options |= chosen
        how = ", ".join(f"{name} = {value[:30]!r}" for name, value in chosen.items())
    else:
        one = KINDS[kind]
        command = draw.choice(one.commands)
        options = arguments(command, root, model=one.model, data=one.data)
        file = one.file
        how = draw.choice(one.damages)(root / file, draw)
        if kind in ("run.yaml", "grid.yaml"):
            options = {"config": str(root / file)} | options
            options.pop("ratio", None)
            options.pop("criterion", None)
        if kind == "scores":
            options |= {"scores": str(root / file)}
    line = [command, *(part for name, value in options.items() for part in (f"--{name}={value}",))]
    return kind, command, how, line
