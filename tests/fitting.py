"""A short run of transformers' Trainer on a tiny model, as tests need it: no files, no dropout, the same rows always."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from loraprune import LoRAPruneCallback, LoRAPruneConfig, attach_lora
from loraprune.models.adapters import merge_lora
from tests.published import by_the_paper
from tests.tiny import tiny_model, tokens

SAME_RUN = 2e-4
"""largest relative difference of merged weights after 30 steps of AdamW: sums over fewer terms round differently, and
AdamW divides small gradients by their own size; another seed or schedule gives more than 1e-2"""


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Sequences that repeat one random phrase each, so that there is something to learn."""

    def __init__(self, count: int = 64, length: int = 16, *, seed: int = 0) -> None:
        self.ids = tokens(count, length // 4, seed=seed).repeat(1, 4)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def arguments(folder: Path, *, steps: int = 30, seed: int = 0, **changes: Any) -> TrainingArguments:
    """Return the arguments of a short run on the CPU."""
    values: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "max_grad_norm": 1.0, "weight_decay": 0.1, "seed": seed, "use_cpu": True, "dataloader_pin_memory": False,
        "logging_steps": 5, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**values | changes)


def config(**changes: Any) -> LoRAPruneConfig:
    """Return the settings of a run by the published method, without dropout, whose random numbers depend on shapes."""
    values: dict[str, Any] = {"ratio": 0.5, "rank": 4, "dropout": 0.0, "interval": 3}
    return LoRAPruneConfig(**by_the_paper(**values | changes))


def adapted(settings: LoRAPruneConfig, *, variant: str = "llama", dtype: torch.dtype = torch.float32) -> PeftModel:
    """Return a tiny model with LoRA."""
    return attach_lora(tiny_model(variant).to(dtype), settings)


def fit(
    model: PeftModel, args: TrainingArguments, callbacks: Sequence[TrainerCallback], *, rows: Rows | None = None
) -> Trainer:
    """Train and return the Trainer."""
    trainer = Trainer(model=model, args=args, train_dataset=rows or Rows(), callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def prune(
    folder: Path,
    settings: LoRAPruneConfig,
    *,
    variant: str = "llama",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[PeftModel, LoRAPruneCallback, Trainer]:
    """Run the callback on a tiny model and return what is left."""
    model, callback = adapted(settings, variant=variant, dtype=dtype), LoRAPruneCallback(settings)
    return model, callback, fit(model, arguments(folder, **changes), [callback])


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the merged weights; the model must not be used afterwards."""
    return {name: tensor.detach().float() for name, tensor in merge_lora(model).state_dict().items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of weights of equal shapes, relative to each tensor's largest."""
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    return max(((one[n] - other[n]).abs().max() / one[n].abs().max()).item() for n in one)
