"""Every GPU measurement in one call, a few minutes: kernel, memory and time of a step at the 7B shape, pruning against plain
LoRA fine-tuning at a 1.1B shape, and the speed of pruned models at the 7B shape.

    python benchmarks/gpu.py [--parts kernel steps training speed] [--tiny]

Weights are random: neither memory nor time depends on their values. --tiny runs everything that needs no GPU small, as a test.
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
import time
from typing import Any

import common
import kernel
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from loraprune import LoRAPruneCallback, LoRAPruneConfig
from loraprune.adapters import attach_lora
from loraprune.allocation.uniform import uniform_counts
from loraprune.benchmark import compare_speed
from loraprune.config import PruneConfig
from loraprune.criteria import criteria
from loraprune.families import find_groups
from loraprune.memory import peak_memory_bytes, reset_peak_memory
from loraprune.recipes import recipe
from loraprune.scoring import make_scorer
from loraprune.surgery import slice_
from loraprune.target import make_space

SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32000},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000},
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "vocab_size": 256},
}  # fmt: skip
STEP_VARIANTS = ("plain LoRA", "lora", "gate", "gradient", "whole gradients")
"""`gradient` forms G of one matrix at a time in hooks; `whole gradients` lets autograd keep all of them, as LLM-Pruner does"""


def build(shape: str, device: torch.device) -> LlamaForCausalLM:
    """Return a random model in bfloat16, made on the device."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, dtype=torch.bfloat16)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def synchronised(device: torch.device) -> float:
    """Return the time when the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def one_step(model: nn.Module, rows: torch.Tensor, scorer: Any, groups: Any) -> None:
    """Do a forward and a backward pass, and score."""
    model(input_ids=rows, labels=rows).loss.backward()
    if scorer is not None:
        scorer.collect()
    elif any(p.grad is not None for name, p in model.named_parameters() if "base_layer" in name):
        for name, parameter in model.named_parameters():
            if "base_layer" in name and parameter.grad is not None:
                (parameter.grad * parameter).square().sum(0)
    model.zero_grad(set_to_none=True)


def step_costs(shape: str, device: torch.device, *, batch: int, length: int, repeats: int) -> dict[str, Any]:
    """Return peak memory and time of a training step by criterion."""
    base = build(shape, device)
    groups = find_groups(base.config)
    model = attach_lora(base, groups, rank=8, alpha=16, dropout=0.05, seed=0).train()
    rows = torch.randint(base.config.vocab_size, (batch, length), device=device)
    found: dict[str, Any] = {}
    for name in STEP_VARIANTS:
        scorer = None
        if name in criteria.names():
            scorer = make_scorer(criteria.get(name), model, groups, power=2, normalize=False, seed=0)
        for parameter_name, parameter in model.named_parameters():
            if "base_layer" in parameter_name:
                parameter.requires_grad_(name == "whole gradients")
        one_step(model, rows, scorer, groups)
        reset_peak_memory(device)
        seconds = []
        for _ in range(repeats):
            began = synchronised(device)
            one_step(model, rows, scorer, groups)
            seconds.append(synchronised(device) - began)
        found[name] = {"seconds": common.spread(seconds), "peak_memory_bytes": peak_memory_bytes(device)}
        if scorer is not None:
            scorer.close()
    plain = found["plain LoRA"]
    for row in found.values():
        row["time_against_plain"] = row["seconds"]["median"] / plain["seconds"]["median"]
        row["memory_against_plain"] = row["peak_memory_bytes"] / plain["peak_memory_bytes"]
    return {"shape": SHAPES[shape], "batch": batch, "length": length, "rows": found}


class RandomRows(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def train(
    base: LlamaForCausalLM, config: LoRAPruneConfig | None, *, steps: int, batch: int, length: int
) -> dict[str, Any]:
    """Fine-tune a copy of a model with LoRA, pruning it or not, and return time and peak memory."""
    device = base.device
    model = copy.deepcopy(base)
    groups = find_groups(model.config)
    adapted = attach_lora(model, groups, rank=8, alpha=16, dropout=0.05, seed=0)
    callback = LoRAPruneCallback(config) if config else None
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-4, seed=0,
            use_cpu=device.type == "cpu", dataloader_pin_memory=False, logging_steps=steps, save_strategy="no",
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        rows = RandomRows(steps * batch, length, model.config.vocab_size)
        trainer = Trainer(model=adapted, args=args, train_dataset=rows, callbacks=[callback] if callback else None)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        reset_peak_memory(device)
        began = synchronised(device)
        trainer.train()
        seconds = synchronised(device) - began
    ratio = callback.pruner.ratio() if callback and callback.pruner else 0.0
    return {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes(device), "ratio": ratio}


def pruning(**options: Any) -> LoRAPruneConfig:
    """Return the callback's part of a pruning run to 50 %."""
    return PruneConfig(model="random", data="random", output="none", ratio=0.5, **options).pruning()


def training_costs(
    shape: str, device: torch.device, *, steps: int, batch: int, length: int, rounds: int
) -> dict[str, Any]:
    """Return wall time and peak memory of pruning to 50 % against plain LoRA fine-tuning, in turns."""
    base = build(shape, device)
    variants = {
        "finetune": None,
        "lora": pruning(),
        "gate": pruning(criterion="gate"),
        "best": pruning(**recipe("best")),
    }
    train(base, variants["lora"], steps=4, batch=batch, length=length)  # compiles the kernels
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, config in variants.items():
            runs[name].append(train(base, config, steps=steps, batch=batch, length=length))
            gc.collect()
    against = {
        name: {
            key: common.spread([run[key] / plain[key] for run, plain in zip(each, runs["finetune"], strict=True)])
            for key in ("seconds", "peak_memory_bytes")
        }
        for name, each in runs.items()
    }
    return {"shape": SHAPES[shape], "parameters": base.num_parameters(), "steps": steps, "batch": batch, "length": length,
            "against_finetune": against, "runs": runs}  # fmt: skip


def speeds(shape: str, device: torch.device, *, length: int, repeats: int) -> dict[str, Any]:
    """Return how fast models cut to 20 % and 50 % are beside the dense one."""
    dense = build(shape, device).eval()
    groups = find_groups(dense.config)
    models = {"dense": dense}
    for ratio in (0.2, 0.5):
        counts = uniform_counts(make_space(dense, groups, LoRAPruneConfig(ratio=ratio)), ratio)
        models[f"ratio {ratio}"] = copy.deepcopy(dense)
        slice_(models[f"ratio {ratio}"], groups, {name: range(count) for name, count in counts.items()})
    compared = compare_speed(models, batches=(1, 8), length=length, new_tokens=16, repeats=repeats)
    return {"shape": SHAPES[shape], "comparison": compared.to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["kernel", "steps", "training", "speed"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("no CUDA device: nothing to measure; --tiny runs the script small on a CPU")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large, middle = ("tiny", "tiny") if options.tiny else ("7B", "1.1B")
    length = 32 if options.tiny else 512
    jobs: dict[str, Any] = {
        "kernel": lambda: kernel.run(device),
        "training": lambda: training_costs(middle, device, steps=8 if options.tiny else 40, batch=8, length=length, rounds=2),
        "steps": lambda: step_costs(large, device, batch=2 if options.tiny else 8, length=length, repeats=3),
        "speed": lambda: speeds(large, device, length=64 if options.tiny else 2048, repeats=3 if options.tiny else 10),
    }  # fmt: skip
    for name, job in jobs.items():
        if name not in options.parts or (name == "kernel" and device.type == "cpu"):
            continue
        began = time.perf_counter()
        result = job()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if not options.tiny:
            common.write(f"gpu_{name}", result)
        gc.collect()
        torch.cuda.empty_cache() if device.type == "cuda" else None


if __name__ == "__main__":
    main()
