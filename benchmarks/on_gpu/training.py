"""Wall time and peak memory of pruning to 50 % against plain LoRA fine-tuning at the 7B shape: same steps, same rows, in turns.

What `best` does once, refitting and letting blocks learn, is kept small for so short a run and told apart: `removal_seconds` is what
steps with a removal took beyond the others.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from loraprune import LoRAPruneCallback, LoRAPruneConfig
from loraprune.api import attach_lora
from loraprune.config.recipes import recipe
from loraprune.config.training import PruneConfig
from loraprune.runtime.memory import peak_memory_bytes, reset_peak_memory
from on_gpu.shapes import Chosen, build, config_of, let_go, synchronised

CHANGED = {"local": 20, "calibration": 4096}
"""what differs from the recipe `best`: 400 steps for each of 64 blocks would take longer than all others here together"""


class RandomRows(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Clock(TrainerCallback):
    """Notes when each step had ended on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [0.0]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self.times = [synchronised(self.device)]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(synchronised(self.device))

    def steps(self) -> list[float]:
        """Return the seconds of every step."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def train(
    shape: str, chosen: Chosen, config: LoRAPruneConfig, *, prunes: bool, steps: int, batch: int, length: int
) -> dict[str, Any]:
    """Fine-tune a random model with LoRA, pruning it or not, and return time and peak memory."""
    device = chosen.device
    let_go(device)
    adapted = attach_lora(build(config_of(shape), device), config)
    callback, clock = LoRAPruneCallback(config) if prunes else None, Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-4, seed=0,
            use_cpu=device.type == "cpu", dataloader_pin_memory=False, logging_steps=steps, save_strategy="no",
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        rows = RandomRows(steps * batch, length, config_of(shape).vocab_size)
        trainer = Trainer(
            model=adapted, args=args, train_dataset=rows, callbacks=[*([callback] if callback else []), clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        reset_peak_memory(device)
        began = synchronised(device)
        trainer.train()
        seconds = synchronised(device) - began
    pruner = callback.pruner if callback else None
    each = clock.steps()
    removals = [entry["step"] for entry in callback.history] if callback else []
    others = [took for step, took in enumerate(each, 1) if step not in removals] or each
    fifth = max(1, len(others) // 5)
    first = others[1 : 1 + fifth] or others  # without the very first, which warms up
    return {
        "seconds": seconds, "peak_memory_bytes": peak_memory_bytes(device), "ratio": pruner.ratio() if pruner else 0.0,
        "step_seconds": {"first": statistics.median(first), "last": statistics.median(others[-fifth:])},
        "removal_seconds": sum(each[step - 1] for step in removals) - len(removals) * statistics.median(others),
        "removals": callback.history if callback else [], "steps": each,
    }  # fmt: skip


def pruning(**options: Any) -> LoRAPruneConfig:
    """Return the callback's part of a pruning run to 50 %."""
    return PruneConfig(model="random", data="random", output="none", ratio=0.5, **options).pruning()


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield the runs so far."""
    shape = "tiny" if chosen.tiny else "7B"
    sizes = {"steps": 8, "batch": 4, "length": 32} if chosen.tiny else {"steps": 40, "batch": 4, "length": 512}
    variants = {
        "finetune": LoRAPruneConfig(ratio=0.0),
        "lora": pruning(),
        "gate": pruning(criterion="gate"),
        "best": pruning(**recipe("best") | CHANGED),
    }
    train(shape, chosen, variants["lora"], prunes=True, **sizes | {"steps": 4})  # compiles the kernels
    result: dict[str, Any] = {
        "definition": __doc__, "shape": shape, **sizes, "changed_in_best": CHANGED,
        "options": {name: asdict(config) for name, config in variants.items()}, "runs": {}, "against_finetune": {},
    }  # fmt: skip
    for name, config in variants.items():
        found = train(shape, chosen, config, prunes=name != "finetune", **sizes)
        result["runs"][name] = found
        plain = result["runs"]["finetune"]
        result["against_finetune"][name] = {key: found[key] / plain[key] for key in ("seconds", "peak_memory_bytes")}
        print(name, found, flush=True)
        yield result
