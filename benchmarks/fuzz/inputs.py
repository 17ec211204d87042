"""The inputs of a case: one good file of every kind, what can be done to each, and which commands read it.

Knows nothing about how a command must end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import yaml
from benchmarks.fuzz.damage import BYTES, ODD_VALUES, TEXT, Damage, header, not_finite, rows, tree
from safetensors.torch import save_file
from tests.samples import save_tiny, tiny_llama, write_text

from loraprune import cli
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


KINDS: Mapping[str, tuple[str, tuple[Damage, ...], tuple[str, ...]]] = {
    "config.json": ("model/config.json", (*TEXT, *[tree] * 14), ("inspect", "plan", "prune", "evaluate", "export")),
    "tokenizer": ("model/tokenizer.json", (*TEXT, *[tree] * 8), ("prune", "evaluate")),
    "tokenizer_config": ("model/tokenizer_config.json", (*TEXT, *[tree] * 8), ("finetune", "evaluate")),
    "weights": ("model/model.safetensors", (*BYTES, *[header] * 5, *[not_finite] * 3), ("prune", "evaluate", "benchmark", "export")),
    "plan.json": ("model/plan.json", (*TEXT, *[tree] * 8), ("export",)),
    "run.yaml": ("run.yaml", (*TEXT, *[tree] * 12), ("prune", "finetune", "plan")),
    "grid.yaml": ("grid.yaml", (*TEXT, *[tree] * 12), ("compare",)),
    "scores": ("scores.safetensors", (*BYTES, *[header] * 4, *[not_finite] * 4), ("prune", "plan")),
    "txt": ("text.txt", TEXT, ("prune", "evaluate")),
    "jsonl": ("text.jsonl", (*TEXT, *[rows] * 6), ("prune", "evaluate")),
    "chat": ("chat.jsonl", (*TEXT, *[rows] * 10), ("finetune", "evaluate")),
    "csv": ("text.csv", TEXT, ("prune", "evaluate")),
    "parquet": ("text.parquet", BYTES, ("prune", "evaluate")),
}  # fmt: skip
"""kind of input -> file, ways to spoil it, commands that read it"""
TEXTS = ("txt", "jsonl", "chat", "csv", "parquet")


def arguments(command: str, root: Path, *, text: str = "text.txt") -> dict[str, str]:
    """Return good options of a command."""
    model, data, output = ({"model": str(root / "model")}, {"data": str(root / text)}, {"output": str(root / "out")})
    return {
        "inspect": model,
        "plan": model | {"ratio": "0.5"},
        "prune": model | data | output | SHORT | {"criterion": "magnitude"},
        "finetune": model | data | output | SHORT,
        "evaluate": model | data | {"length": "16", "batch": "64", "device": "cpu"},
        "benchmark": model | TIMING,
        "export": model | output,
        "compare": model | data | output | SHORT,
        "demo": output | {"steps": "-1"},
    }[command]


def spoil(root: Path, number: int, draw: random.Random) -> tuple[str, str, str, list[str]]:
    """Spoil a good folder; return kind, command, how, and the command line."""
    names = [*KINDS, "options"]
    kind = names[number % len(names)]
    if kind == "options":
        command = draw.choice(list(cli.COMMANDS))
        options = arguments(command, root)
        known = [
            field for field in cli.COMMANDS[command].options.__dataclass_fields__ if field not in ("model", "data")
        ]
        chosen = {draw.choice(known): str(draw.choice(ODD_VALUES)) for _ in range(draw.choice([1, 1, 2, 3]))}
        for name in set(chosen) & {"output", "eval", "against"}:  # stay below the folder that is watched
            chosen[name] = str(root / (chosen[name].strip("./") or "x"))
        options |= chosen
        how = ", ".join(f"{name} = {value[:30]!r}" for name, value in chosen.items())
    else:
        file, damages, commands = KINDS[kind]
        command = draw.choice(commands)
        options = arguments(
            command,
            root,
            text=file if "/" not in file and kind in ("txt", "jsonl", "chat", "csv", "parquet") else "text.txt",
        )
        how = draw.choice(damages)(root / file, draw)
        if kind in ("run.yaml", "grid.yaml"):
            options = {"config": str(root / file)} | options
            options.pop("ratio", None)
            options.pop("criterion", None)
        if kind == "scores":
            options |= {"scores": str(root / file)}
    line = [command, *(part for name, value in options.items() for part in (f"--{name}={value}",))]
    return kind, command, how, line
