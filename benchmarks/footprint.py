"""The memory that `loraprune plan` predicts against what training really allocates, on the CPU.

    python benchmarks/footprint.py             predicted against measured
    python benchmarks/footprint.py --known     the prediction for well-known models

Measured: the allocator's own record of every allocation (torch.profiler) from before the model is built to the end of the
second optimiser step, the first that has AdamW's moments; its peak in the second step is what `torch.cuda.max_memory_allocated`
would say. Predicted: the same shapes on the meta device.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from helpers import common
from on_gpu.shapes import quantise_
from torch.profiler import ProfilerActivity, profile
from transformers import CONFIG_MAPPING, PreTrainedConfig

from loraprune.api import attach_lora
from loraprune.config.base import Quantize
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.evaluation.tasks import find_task
from loraprune.families import find_groups
from loraprune.models.auto_classes import auto_class
from loraprune.models.compat import enable_checkpointing
from loraprune.models.empty import empty_model
from loraprune.models.known_shapes import published, published_config
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.training.footprint import GPUS, Footprint, Setting, footprints, gpus_needed

STEP = "measured step"
KINDS: tuple[Quantize, ...] = ("none", "8bit", "4bit")
WIDE = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "vocab_size": 2048,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**WIDE, "num_key_value_heads": 4, "intermediate_size": 704}),
    "gpt2": ("gpt2", {"n_embd": 256, "n_head": 8, "n_layer": 4, "vocab_size": 2048, "bos_token_id": 1, "eos_token_id": 1}),
    "bert": ("bert", {**WIDE, "architectures": ["BertForMaskedLM"]}),
    "vit": ("vit", {**WIDE, "image_size": 96, "patch_size": 8, "architectures": ["ViTForImageClassification"]}),
    "t5": ("t5", {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024, "num_layers": 3, "vocab_size": 2048}),
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, checkpointing": {"checkpointing": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "float32, batch 8": {"batch": 8},
    "float32, gate": {"criterion": "gate"},
}
QUANTISED: dict[str, dict[str, Any]] = {
    "8bit": {"dtype": torch.bfloat16, "quantize": "8bit"},
    "8bit, checkpointing": {"dtype": torch.bfloat16, "quantize": "8bit", "checkpointing": True},
    "4bit": {"dtype": torch.bfloat16, "quantize": "4bit"},
    "4bit, checkpointing": {"dtype": torch.bfloat16, "quantize": "4bit", "checkpointing": True},
}
"""of the Llama alone"""


def config_of(shape: str) -> PreTrainedConfig:
    """Return the configuration of a shape."""
    kind, values = SHAPES[shape]
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**values)
    config.architectures = config.architectures or {"llama": ["LlamaForCausalLM"], "gpt2": ["GPT2LMHeadModel"],
                                                    "t5": ["T5ForConditionalGeneration"]}[kind]  # fmt: skip
    return config


def predicted(
    config: PreTrainedConfig, setting: Setting, options: LoRAPruneConfig, *, batch: int, length: int
) -> Footprint:
    """Return the footprint of the whole model."""
    task = find_task(config)
    model, groups = empty_model(config, head=task.head), find_groups(config)
    whole = {group.name: group.units for group in groups}
    inputs = {name: value for name, value in task.probe(config, batch, length).items() if name != "attention_mask"}
    return footprints(model, groups, whole, inputs, options=options, setting=setting).dense


def measured(config: PreTrainedConfig, setting: Setting, options: LoRAPruneConfig, *, batch: int, length: int) -> int:
    """Return the most bytes that the allocator has handed out at a time in the second of two optimiser steps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        _train(config, setting, options, batch=batch, length=length)
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    begun = next(event.start_ns() for event in events if event.name() == STEP)
    live = peak = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live) if event.start_ns() >= begun else live
    return peak


def _train(config: PreTrainedConfig, setting: Setting, options: LoRAPruneConfig, *, batch: int, length: int) -> None:
    task = find_task(config)
    model = auto_class(task.head).from_config(config).to(setting.dtype)
    groups = find_groups(config)
    if setting.quantize != "none":
        quantise_(model, groups, setting.quantize)
    adapted = attach_lora(model, options).train()
    if setting.checkpointing:
        enable_checkpointing(adapted)
    scorer = make_scorer(criteria.get(options.criterion), adapted, groups, power=2, normalize=False, seed=0)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], fused=True)
    inputs: Mapping[str, Any] = {n: v for n, v in task.probe(config, batch, length).items() if n != "attention_mask"}
    with torch.no_grad():
        labels = torch.zeros(adapted(**inputs).logits.shape[:-1], dtype=torch.long)

    def step() -> None:
        adapted(**inputs, labels=labels).loss.backward()
        scorer.collect()
        optimiser.step()
        optimiser.zero_grad()

    step()
    with torch.profiler.record_function(STEP):
        step()


def compare(shape: str, case: Mapping[str, Any], *, length: int) -> dict[str, Any]:
    """Return both figures of one case."""
    config, batch = config_of(shape), case.get("batch", 4)
    setting = Setting(
        case.get("dtype", torch.float32), quantize=case.get("quantize", "none"),
        checkpointing=case.get("checkpointing", False), cpu=True,
    )  # fmt: skip
    options = LoRAPruneConfig(criterion=case.get("criterion", "lora"), compensate=False, end_to_end=0, dropout=0.05)
    foreseen = predicted(config, setting, options, batch=batch, length=length)
    found = measured(config, setting, options, batch=batch, length=length)
    return {"shape": shape, "measured": found, "predicted": foreseen.total, "ratio": foreseen.total / found,
            "parts": dict(foreseen.parts)}  # fmt: skip


def known(*, batch: int, length: int) -> list[dict[str, Any]]:
    """Return what a step of every well-known model takes with checkpointing, by how the frozen weights are held."""
    rows = []
    for name, quantize in itertools.product(published(), KINDS):
        config = published_config(name)
        assert config is not None
        task, groups = find_task(config), find_groups(config)
        setting = Setting(torch.bfloat16, quantize=quantize, checkpointing=True)
        both = footprints(
            empty_model(config, head=task.head), groups, {group.name: group.units // 2 for group in groups},
            task.probe(config, batch, length), setting=setting,
            options=LoRAPruneConfig(criterion="lora", compensate=False, end_to_end=0, dropout=0.05),
        )  # fmt: skip
        dense = both.dense
        needed = {str(gib): gpus_needed(dense.parts, dense.blocks, trained=dense.trained, gib=gib) for gib in GPUS}
        rows.append({"model": name, "quantize": quantize, "parts": dict(dense.parts), "total": dense.total, "needed": needed,
                     "flops": {"dense": dense.flops, "half": both.pruned.flops}})  # fmt: skip
        print(f"{name}, {quantize}: {rows[-1]['total'] / 2**30:.1f} GiB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--known", action="store_true")
    options = parser.parse_args()
    if options.known:
        batch, length = 4, 512
        common.write("footprint_known", {"batch": batch, "length": length, "rows": known(batch=batch, length=length)})
        return
    rows = []
    for shape in options.shapes:
        for name, case in (CASES | QUANTISED if shape == "llama" else CASES).items():
            rows.append({"case": name, **compare(shape, case, length=options.length)})
            print(f"{shape}, {name}: {rows[-1]['ratio']:.3f} of what was measured", flush=True)
    common.write(
        "footprint",
        {"length": options.length, "shapes": {name: SHAPES[name][1] for name in options.shapes}, "rows": rows},
    )


if __name__ == "__main__":
    main()
