"""Real pre-trained language models: what a ratio costs by this project's recipes and by a peer, at equal shape budget, tokens and steps.

    python benchmarks/real_models.py FOLDER --train TRAIN.txt --eval wikitext=A.txt ptb=B.txt [--ratios 0.2] [--steps 0] [--seeds 0]

FOLDER holds a model in Hugging Face format. Every cell is written as it ends, and one that is there is not computed again. `optipfair`
prunes FFN channels by its data-driven MAW score on the same tokens (`pip install optipfair`), and is tuned by `loraprune finetune`.
Torch-Pruning is not among the peers yet.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import common
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune.commands.evaluate import evaluate
from loraprune.config.commands import EvaluateConfig
from loraprune.config.recipes import recipe
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.pipeline import finetune, prune

METHODS = ("dense", "recommended", "no-blocks", "paper", "layerwise", "optipfair")
OWN: dict[str, dict[str, Any]] = {"recommended": {}, "no-blocks": {"local": 0}}
"""methods that are no recipe: options of `prune`; the recommended recipe is its default"""
TOKENS = 32_768
"""calibration tokens for every method"""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cells share."""

    model: Path
    train: Path
    texts: Mapping[str, Path]
    length: int
    batch: int
    lr: float
    tokens: int

    def shared(self, seed: int, steps: int) -> dict[str, Any]:
        """Return the options that every run has."""
        return {
            "data": str(self.train), "eval": str(next(iter(self.texts.values()))), "length": self.length, "batch": self.batch,
            "lr": self.lr, "seed": seed, "steps": steps, "html": False,
        }  # fmt: skip

    def perplexities(self, folder: Path) -> dict[str, float]:
        """Measure a model on every text, each row a window of its own."""
        found = {}
        for name, text in self.texts.items():
            options = EvaluateConfig(model=str(folder), data=str(text), length=self.length, batch=self.batch)
            (entry,) = evaluate(options).values["measurements"]
            found[name] = entry["models"][str(folder)]["value"]
        return found


def cell(bench: Bench, method: str, ratio: float, steps: int, seed: int, room: Path) -> dict[str, Any]:
    """Make one model and measure it."""
    out, began = room / "out", time.perf_counter()
    shared = bench.shared(seed, steps) | {"output": str(out)}
    if method == "dense":
        if steps:
            finetune(FinetuneConfig(model=str(bench.model), **shared))
        else:
            out = bench.model
    elif method == "optipfair":
        pruned = optipfair(bench, ratio, room / "pruned", seed=seed)
        if steps:
            finetune(FinetuneConfig(model=str(pruned), **shared))
        else:
            out = pruned
    else:
        chosen = OWN[method] if method in OWN else recipe(method)
        chosen = chosen if method == "paper" else chosen | {"calibration": bench.tokens}
        # Without training the scores are of one pass over as many tokens as everything else sees.
        rows = {"rows": bench.tokens // bench.length} if steps == 0 else {}
        prune(PruneConfig(model=str(bench.model), **(shared | chosen | rows | {"ratio": ratio})))
    seconds = time.perf_counter() - began
    found = {
        "method": method,
        "ratio": ratio,
        "steps": steps,
        "seed": seed,
        "perplexity": bench.perplexities(out),
        "seconds": seconds,
    }
    if (out / "report.json").is_file():
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        found |= {
            name: report[name]
            for name in ("verification", "wall_seconds", "recovery", "ratio_reached")
            if name in report
        }
    return found | {"parameters": AutoModelForCausalLM.from_pretrained(out).num_parameters()}


def optipfair(bench: Bench, ratio: float, folder: Path, *, seed: int) -> Path:
    """Prune FFN channels until `ratio` of the parameters of heads and channels is gone."""
    from optipfair import prune_model

    model = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    ids = tokenizer(bench.train.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // bench.length * bench.length]).view(-1, bench.length)
    draw = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=draw)[: bench.tokens // bench.length]]
    loader = DataLoader(
        [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=bench.batch
    )
    layers = [p for name, p in model.named_parameters() if "proj" in name]
    ffn = sum(p.numel() for name, p in model.named_parameters() if "mlp" in name and "proj" in name)
    share = 100 * ratio * sum(p.numel() for p in layers) / ffn
    prune_model(
        model, neuron_selection_method="MAW", pruning_percentage=share, dataloader=loader, show_progress=False
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cells(options: argparse.Namespace) -> Iterator[tuple[str, float, int, int]]:
    """Yield method, ratio, steps and seed of every cell."""
    for seed in options.seeds:
        for steps in options.steps:
            for method in options.methods:
                yield from ((method, ratio, steps, seed) for ratio in ([0.0] if method == "dense" else options.ratios))


def main() -> None:
    """Compute what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--eval", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args()
    texts = {name: Path(file) for name, _, file in (entry.partition("=") for entry in options.eval)}
    bench = Bench(options.model, options.train, texts, options.length, options.batch, options.lr, options.tokens)
    name = f"real_{options.model.name}"
    path = common.RESULTS / f"{name}.json"
    done: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    for method, ratio, steps, seed in cells(options):
        if any((c["method"], c["ratio"], c["steps"], c["seed"]) == (method, ratio, steps, seed) for c in done):
            continue
        with tempfile.TemporaryDirectory() as room:
            found = cell(bench, method, ratio, steps, seed, Path(room))
            shutil.rmtree(room, ignore_errors=True)
            Path(room).mkdir()
        done.append(found)
        gaps = {text: round(math.log(value), 3) for text, value in found["perplexity"].items()}
        print(
            method,
            ratio,
            steps,
            seed,
            found["perplexity"],
            gaps,
            f"{found['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        protocol = {"length": bench.length, "batch": bench.batch, "lr": bench.lr, "tokens": bench.tokens}
        common.write(name, {"protocol": protocol, "cells": done})


if __name__ == "__main__":
    main()
