"""Accuracy of pruned image classifiers beside the dense one tuned as long: a real ViT, and a ResNet that this script trains.

    python benchmarks/vision.py [vit-cifar10] [vit-caltech101] [resnet-cifar10]

Reads ../shared (see there). The ViT was trained on CIFAR-10; Caltech-101 is new to it: it gets a new head, and the task is trained
and evaluated by the protocol of VTAB-1k (1,000 images to train on, the test images to evaluate on). The ResNet is trained from nothing
on the images of CIFAR-10. `python benchmarks/tables.py` prints the tables.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import accuracy
from helpers.common import SHARED
from transformers import ResNetConfig, ResNetForImageClassification

from loraprune.data.images import ImageRows, collate, load_images, load_processor

IMAGES, VIT = SHARED / "data" / "images", SHARED / "models" / "vit-cifar10-546k"
WORK = Path("build") / "vision"
CIFAR = str(IMAGES / "cifar10")
SUBJECTS: dict[str, dict[str, Any]] = {
    "vit-cifar10": {"data": CIFAR, "steps": 150},
    "vit-caltech101": {"data": f"vtab-caltech101:test={IMAGES / 'caltech101'}", "steps": 300},
    "resnet-cifar10": {"data": CIFAR, "steps": 150},
}
"""model and images -> options of its runs"""
COMMON: dict[str, Any] = {"batch": 16, "lr": 1e-3, "rank": 8, "device": "cpu"}
EPOCHS, BATCH, LEARNING_RATE = 30, 32, 2e-3
"""of the ResNet's own training"""


def train_resnet(folder: Path) -> Path:
    """Train a small ResNet on the training images, unless it is there."""
    if (folder / "config.json").is_file():
        return folder
    train, _ = load_images(CIFAR, None, seed=0)
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


def main() -> None:
    """Take every subject that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; without any all of them")
    accuracy.add_options(parser)
    options = parser.parse_args()
    for subject in options.subjects or SUBJECTS:
        model = train_resnet(WORK / "resnet") if subject.startswith("resnet") else VIT
        if subject.startswith("resnet"):  # the recipe refits projections, which convolutions cannot have
            options.criteria = [name for name in options.criteria if name != "best"]
        accuracy.measure(
            subject, model, common={**COMMON, **SUBJECTS[subject]}, grid=accuracy.grid(options), work=WORK / subject
        )


if __name__ == "__main__":
    main()
