"""The command `demo`: prune the small model that ships with the package, offline, and compare it with the dense model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from loraprune.config.commands import DemoConfig
from loraprune.evaluation.benchmark import compare_speed
from loraprune.evaluation.completions import complete
from loraprune.models.loading import load_model
from loraprune.models.opening import load_tokenizer, resolve
from loraprune.pipeline import prune
from loraprune.reporting.report import Report
from loraprune.runtime.hub import DEMO

PROMPT = 'def read(self, size=-1):\n    """Read up to size bytes'


def demo(options: DemoConfig) -> Report:
    """Prune the embedded model and measure it together with the dense one.

    Raises:
        LoraPruneError: as `prune`.
    """
    report = prune(options.recipe())
    device = torch.device("cpu")
    models = {name: load_model(name, device=device, dtype=torch.float32) for name in (DEMO, options.output)}
    tokenizer = load_tokenizer(DEMO)
    folders = {name: Path(resolve(name)) for name in models}
    speed = compare_speed(models, batches=(1, 16), length=256, repeats=5, folders=folders)
    prompt = tokenizer(PROMPT)["input_ids"]
    texts = {name: PROMPT + complete(model, tokenizer, prompt) for name, model in models.items()}
    return replace(report, shown=replace(report.shown, speed=speed.to_json(), completions=texts))
