"""Accuracy of pruned image classifiers beside the dense one tuned as long: a real ViT, and a ResNet that this script trains.

    python benchmarks/vision.py [vit] [resnet]        # both unless named; goes on where it stopped

Reads ../shared (see there); the ResNet is trained from nothing on the same images, on a machine of its own in minutes.
Writes benchmarks/results/vision_<network>.json after every run, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SHARED, machine
from transformers import ResNetConfig, ResNetForImageClassification

from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.images import ImageRows, collate, load_images, load_processor
from loraprune.pipeline import finetune, prune
from loraprune.recipes import recipe

DATA, VIT = SHARED / "data" / "images" / "cifar10", SHARED / "models" / "vit-cifar10-546k"
WORK = Path("build") / "vision"
RATIOS, SEEDS = (0.2, 0.5), (0, 1, 2)
COMMON: dict[str, Any] = {"data": str(DATA), "steps": 150, "batch": 16, "lr": 1e-3, "device": "cpu", "overwrite": True}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {name: {"criterion": name} for name in ("lora", "gate", "magnitude", "movement")} | {"best": recipe("best")},
    "resnet": {name: {"criterion": name} for name in ("lora", "gate", "magnitude", "movement")},
}
"""network -> name -> options; the recipe refits projections, which convolutions cannot have"""
EPOCHS, BATCH, LEARNING_RATE = 30, 32, 2e-3
"""of the ResNet's own training"""


def train_resnet(folder: Path) -> Path:
    """Train a small ResNet on the training images, unless it is there."""
    if (folder / "config.json").is_file():
        return folder
    train, _ = load_images(str(DATA), None, seed=0)
    assert train is not None
    rows = list(ImageRows(train, load_processor(str(VIT), image_size=32)))
    names = dict(enumerate(train.classes))
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", id2label=names,
        label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    model = ResNetForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(rows), (BATCH,)).tolist()
        batch = collate([rows[place] for place in chosen])
        flipped = torch.rand(BATCH) < 0.5
        batch["pixel_values"][flipped] = batch["pixel_values"][flipped].flip(-1)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"resnet: step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(folder)
    shutil.copy(VIT / "preprocessor_config.json", folder)
    return folder


def cells(network: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the options of every run of a network."""
    for seed in SEEDS:
        yield f"finetune seed {seed}", {"seed": seed}
        for ratio in RATIOS:
            for name, options in RUNS[network].items():
                yield f"{name} {ratio} seed {seed}", {**options, "ratio": ratio, "seed": seed}


def run(network: str) -> dict[str, Any]:
    """Run what is not in the results file yet."""
    path = RESULTS / f"vision_{network}.json"
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.is_file() else {}
    model = str(VIT if network == "vit" else train_resnet(WORK / "resnet"))
    for name, options in cells(network):
        if name in found:
            continue
        output = str(WORK / f"{network}-run")
        if "ratio" in options:
            prune(PruneConfig(model=model, output=output, **COMMON, **options))
        else:
            finetune(FinetuneConfig(model=model, output=output, **COMMON, **options))
        report = json.loads((Path(output) / "report.json").read_text())
        keys = ("accuracy", "parameters", "ratio_reached", "units", "wall_seconds")
        found[name] = {key: report[key] for key in keys if key in report}
        RESULTS.mkdir(exist_ok=True)
        values = {"machine": machine(), "network": network, "common": {**COMMON, "data": DATA.name}, "cells": found}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print(f"{network}: {name}: {found[name]['accuracy']['pruned']:.4f}", file=sys.stderr)
    return found


def table(network: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield mean and deviation of the accuracy over seeds, in percent."""
    tuned = percent([found[f"finetune seed {seed}"]["accuracy"]["pruned"] for seed in SEEDS])
    first = found["finetune seed 0"]["accuracy"]
    yield f"**{network}**: {COMMON['steps']} steps, dense {100 * first['dense']:.1f} %, dense + LoRA {tuned}, {first['rows']} images"
    yield ""
    yield f"| removed | {' | '.join(RUNS[network])} |"
    yield f"|---|{'---|' * len(RUNS[network])}"
    for ratio in RATIOS:
        accuracies = [
            [found[f"{name} {ratio} seed {s}"]["accuracy"]["pruned"] for s in SEEDS] for name in RUNS[network]
        ]
        yield f"| {100 * ratio:.0f} % | {' | '.join(map(percent, accuracies))} |"


def percent(values: list[float]) -> str:
    """Return mean and sample deviation in percent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}; without any all of them"
    )
    for each in parser.parse_args().networks:
        print("\n".join(table(each, run(each))), end="\n\n")
