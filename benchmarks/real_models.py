"""Real pre-trained language models: what a ratio costs by this project's recipes and by a peer, at equal shape budget, tokens and steps.

    python benchmarks/real_models.py FOLDER --train TRAIN.txt --eval wikitext=A.txt ptb=B.txt [--ratios 0.2] [--steps 0] [--seeds 0]

FOLDER holds a model in Hugging Face format. Every cell is written as it ends, and one that is there is not computed again. `optipfair`
and `torch-pruning` prune FFN channels by their scores of the same tokens (`pip install optipfair torch-pruning`), and are tuned by
`loraprune finetune`. `scratch` trains a model of that shape from random weights; it has no cell without steps.
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
from helpers.peers import PEERS
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loraprune.commands.evaluate import evaluate
from loraprune.config.commands import EvaluateConfig
from loraprune.config.recipes import recipe
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.pipeline import finetune, prune

METHODS = ("dense", "recommended", "late", "three-passes", "least-squares", "paper", "layerwise", *PEERS, "scratch")
OWN: dict[str, dict[str, Any]] = {
    "recommended": {},
    "late": {"cooldown": 0.25, "calibration": 98_304, "end_to_end": 336},
    "three-passes": {"end_to_end": 336},
    "least-squares": {"end_to_end": 0},
}
"""methods that are no recipe: options of `prune`; the recommended recipe is its default. `three-passes` reconstructs in as many
over 32,768 tokens in rows of 256, also where one is the default"""
TOKENS = 32_768
"""calibration tokens for every method but `late`, which reads three times as many once"""
SCRATCH_LR = 1e-3
"""peak learning rate of a model with random weights, all of which learn"""


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

    def rows(self, seed: int) -> Tensor:
        """Return the training text in rows of `length` tokens, shuffled."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        ids = tokenizer(self.train.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        rows = torch.tensor(ids[: len(ids) // self.length * self.length]).view(-1, self.length)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]

    def perplexities(self, folder: Path) -> dict[str, float]:
        """Measure a model on every text, each row a window of its own."""
        found = {}
        for name, text in self.texts.items():
            options = EvaluateConfig(model=str(folder), data=str(text), length=self.length, batch=self.batch)
            (entry,) = evaluate(options).values["measurements"]
            found[name] = entry["models"][str(folder)]["perplexity"]
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
    elif method == "scratch":
        out = scratch(bench, ratio, steps, room / "scratch", seed=seed)
    elif method in PEERS:
        pruned = peer(bench, method, ratio, room / "pruned", seed=seed)
        if steps:
            finetune(FinetuneConfig(model=str(pruned), **shared))
        else:
            out = pruned
    else:
        chosen = OWN[method] if method in OWN else recipe(method)
        chosen = chosen if method == "paper" else {"calibration": bench.tokens} | chosen
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
    trained = {"batch": bench.batch, "lr": bench.lr} if steps else {}
    return found | trained | {"parameters": AutoModelForCausalLM.from_pretrained(out).num_parameters()}


def peer(bench: Bench, method: str, ratio: float, folder: Path, *, seed: int) -> Path:
    """Prune FFN channels by another tool until `ratio` of the parameters of heads and channels is gone."""
    model = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32)
    chosen = bench.rows(seed)[: bench.tokens // bench.length]
    pruned = PEERS[method](model, chosen, ratio / _ffn_share(model))
    _save(pruned.to(AutoConfig.from_pretrained(bench.model).dtype), bench, folder)
    return folder


def scratch(bench: Bench, ratio: float, steps: int, folder: Path, *, seed: int) -> Path:
    """Train all weights of a model with fewer FFN channels from random ones, on as many tokens as the others are tuned on."""
    config = AutoConfig.from_pretrained(bench.model)
    with torch.device("meta"):
        share = ratio / _ffn_share(AutoModelForCausalLM.from_config(config))
    config.intermediate_size = round(config.intermediate_size * (1 - share) / 8) * 8
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=SCRATCH_LR, weight_decay=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rows = bench.rows(seed)
    for step in range(steps):
        batch = rows[torch.arange(step * bench.batch, (step + 1) * bench.batch) % len(rows)]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay.step()
    _save(model, bench, folder)
    return folder


def _ffn_share(model: Any) -> float:
    """Return the fraction of the parameters of heads and channels that channels own."""
    projections = [(name, p.numel()) for name, p in model.named_parameters() if "proj" in name]
    return sum(count for name, count in projections if "mlp" in name) / sum(count for _, count in projections)


def _save(model: Any, bench: Bench, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bench.model).save_pretrained(folder)


def cells(options: argparse.Namespace) -> Iterator[tuple[str, float, int, int]]:
    """Yield method, ratio, steps and seed of every cell."""
    for seed in options.seeds:
        for steps in options.steps:
            for method in (name for name in options.methods if steps or name != "scratch"):
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
    parser.add_argument("--name", default="", help="what the name of the result's file ends with")
    options = parser.parse_args()
    texts = {name: Path(file) for name, _, file in (entry.partition("=") for entry in options.eval)}
    bench = Bench(options.model, options.train, texts, options.length, options.batch, options.lr, options.tokens)
    name = f"real_{options.model.name}{options.name}"
    path = common.RESULTS / f"{name}.json"
    protocol = {"length": bench.length, "tokens": bench.tokens}
    former = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"protocol": protocol, "cells": []}
    if former["protocol"] != protocol:
        sys.exit(f"{path} has {former['protocol']}, and these cells would have {protocol}; move it away")
    done: list[dict[str, Any]] = former["cells"]
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
        common.write(name, {"protocol": protocol, "cells": done})


if __name__ == "__main__":
    main()
