"""Does an exported model say what transformers says? A model cut to half, uniformly and layer by layer, in every format.

    python benchmarks/exporting.py --model ../shared/models/llama-stories-3m

Keeps the units with the largest weights, without training: how good the model is does not matter here. Differences are of logits, relative
to the largest; tokens are those of one greedy continuation of 48, and how many of them are the same before the first other one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import common
from transformers import PreTrainedModel

from loraprune.config.export import ExportConfig
from loraprune.export.gguf.llamacpp import LlamaCpp, llamacpp_version
from loraprune.export.onnx_session import Session
from loraprune.export.run import export
from loraprune.families import find_groups
from loraprune.groups import consumers
from loraprune.models.loading import from_pretrained
from loraprune.models.opening import load_tokenizer
from loraprune.models.saving import save_model
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_

FORMATS = ("gguf:f32", "gguf:f16", "gguf:q8_0", "gguf:q4_0", "onnx", "torch", "torchao:int8", "safetensors:bf16")
PROMPT, NEW = "Once upon a time there was a little", 48


def prune(model: str, folder: Path, *, layerwise: bool) -> None:
    """Write the model with half of its units, or more in some layers and fewer in others."""
    loaded = from_pretrained(model, dtype=torch.float32)
    config, groups = from_pretrained(model).config, find_groups(loaded.config)
    kept = {}
    for place, group in enumerate(groups):
        span = consumers(group)[0]
        scores = loaded.get_parameter(f"{span.module}.weight").detach().pow(2).sum(0).view(group.units, -1).sum(1)
        count = group.units // 2 + (layerwise and (place % 3 - 1) * max(1, group.units // 8))
        count = max(1, count // 8 * 8 if group.kind == "ffn" else count)
        kept[group.name] = tuple(sorted(scores.topk(count).indices.tolist()))
    plan = Plan({group.name: group.units for group in groups}, kept)
    slice_(loaded, groups, plan.kept)
    save_model(loaded, folder, config=config, groups=groups, counts={name: len(units) for name, units in kept.items()})
    load_tokenizer(model).save_pretrained(folder)
    (folder / "plan.json").write_text(plan.to_json())


def continuation(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Return the greedy tokens of transformers."""
    ids = torch.tensor([prompt])
    settings: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return tokens[0, len(prompt) :].tolist()


def measure(source: Path, room: Path) -> dict[str, Any]:
    """Export a folder to every format, and compare what is written."""
    prompt = load_tokenizer(str(source))(PROMPT)["input_ids"]
    expected, found = continuation(from_pretrained(source, dtype=torch.float32), prompt), {}
    for name in FORMATS:
        format_, _, quantization = name.partition(":")
        output = room / f"{source.name}-{format_}-{quantization}"
        options = ExportConfig(model=str(source), output=str(output), format=format_, quantization=quantization or None)
        values = export(options).values
        tokens = None
        if format_ == "gguf" and llamacpp_version():
            tokens = LlamaCpp(next(output.glob("*.gguf")), context=128).generate(prompt, new_tokens=NEW)
        elif format_ == "onnx":
            tokens = Session(output / "model.onnx").generate(np.array([prompt]), new_tokens=NEW)[0].tolist()
        same = (
            next((n for n, (a, b) in enumerate(zip(expected, tokens, strict=True)) if a != b), NEW) if tokens else None
        )
        kept = ("architecture", "bytes", "verification", "verified_by")
        found[name] = {key: values.get(key) for key in kept} | {"same_tokens": same}
        print(source.name, name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as room:
        for kind in ("uniform", "layerwise"):
            prune(options.model, Path(room) / kind, layerwise=kind == "layerwise")
            results[kind] = measure(Path(room) / kind, Path(room))
    common.write(
        f"exporting_{Path(options.model).name}", {"model": Path(options.model).name, "tokens": NEW, "results": results}
    )


if __name__ == "__main__":
    main()
