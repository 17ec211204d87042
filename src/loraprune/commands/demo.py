"""The command `demo`: prune the small model that ships with the package, offline, and compare it with the dense model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from loraprune.config import recipes
from loraprune.config.commands import DemoConfig
from loraprune.config.training import PruneConfig
from loraprune.evaluation.benchmark import compare_speed
from loraprune.evaluation.completions import complete
from loraprune.models.loading import load_model
from loraprune.models.opening import load_tokenizer, resolve
from loraprune.pipeline import prune
from loraprune.reporting.report import Report
from loraprune.runtime.hub import DEMO, STDLIB

CALIBRATION = 8192
"""tokens for recovery: a quarter of the default, so that the demo takes minutes on two cores"""
PROMPT = 'def read(self, size=-1):\n    """Read up to size bytes'


def recipe(options: DemoConfig) -> PruneConfig:
    """Return the options of the demo: the recommended recipe, with a learning rate and calibration tokens that suit a small model."""
    return PruneConfig(
        model=DEMO, data=STDLIB, output=options.output, overwrite=options.overwrite, ratio=options.ratio,
        steps=options.steps, seed=options.seed, batch=8, length=256, lr=3e-3, device="cpu",
        **(recipes.recipe("best") | {"calibration": CALIBRATION}),
    )  # fmt: skip


def demo(options: DemoConfig) -> Report:
    """Prune the embedded model and measure it together with the dense one.

    Raises:
        LoraPruneError: as `prune`.
    """
    report = prune(recipe(options))
    device = torch.device("cpu")
    models = {name: load_model(name, device=device, dtype=torch.float32) for name in (DEMO, options.output)}
    tokenizer = load_tokenizer(DEMO)
    folders = {name: Path(resolve(name)) for name in models}
    speed = compare_speed(models, batches=(1, 16), length=256, repeats=5, folders=folders)
    prompt = tokenizer(PROMPT)["input_ids"]
    texts = {name: PROMPT + complete(model, tokenizer, prompt) for name, model in models.items()}
    return replace(report, shown=replace(report.shown, speed=speed.to_json(), completions=texts))
