"""Peak memory of training steps: scoring against plain LoRA, quantised bases, and the vanilla criterion that keeps all weight gradients;
and of whole runs: plain LoRA, the recommended recipe, and a run with its layers on disk (`--base streamed`).

    python benchmarks/memory.py

Each variant is measured in a process of its own, forked before any model is made: what the libraries take there is measured first,
then the peak while the model is loaded and trained, and the difference is what the variant needs. Of several rounds the median
counts, as a process's heap differs by a percent from run to run. Weights are random.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from helpers import common
from torch import nn
from training_cost import build as build_run
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.families import find_groups
from loraprune.models.adapters import Projection, attach_lora, linear_paths
from loraprune.models.loading import load_with_head
from loraprune.models.quantised import Quantisation
from loraprune.runtime.memory import peak_memory_bytes, reset_peak_memory
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.scoring.scorers.saliency import saliency_sums

SHAPE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": 2048,
}  # fmt: skip
"""a Llama of 96M parameters, 98 % of them in its blocks: 385 MB in float32"""
VARIANTS: dict[str, tuple[str, str | None]] = {
    "plain LoRA": ("none", None),
    "lora": ("none", "lora"),
    "gate": ("none", "gate"),
    "gradient": ("none", "gradient"),
    "vanilla": ("none", "vanilla"),
    "lora, 8bit": ("8bit", "lora"),
    "lora, 4bit": ("4bit", "lora"),
}
"""how the base is held, and what scores: `vanilla` lets autograd keep the gradient of every projection, as LLM-Pruner does"""
RUNS: dict[str, dict[str, Any]] = {
    "plain LoRA": {},
    "recommended": {"ratio": 0.2},
    "streamed": {"ratio": 0.2, "steps": 0, "base": "streamed"},
}
"""whole runs, with their options"""
CPU = torch.device("cpu")


def vanilla_scores(model: nn.Module) -> None:
    """Reduce (dL/dW * W)^2 of Eq 3 to rows and columns, from the gradients that autograd has kept."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "base_layer" in name and parameter.grad is not None:
                saliency = (parameter.grad * parameter).square()
                saliency.sum(0), saliency.sum(1)


def give_back_freed_memory() -> None:
    """Make glibc hand freed tensors back to the system at once, so that the peak counts what is in use."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def measure(folder: str, variant: str, options: argparse.Namespace, answer: Any) -> None:
    """Send back how much memory some steps of a variant took, and what the process took before."""
    torch.set_num_threads(1)
    give_back_freed_memory()
    gc.collect()
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    kind, scored_by = VARIANTS[variant]
    groups = find_groups(LlamaConfig.from_pretrained(folder))
    how = Quantisation(kind, frozenset(linear_paths(groups))) if kind != "none" else None
    base, _ = load_with_head(folder, None, device=CPU, dtype=torch.float32, quantisation=how)
    loaded = peak_memory_bytes(CPU)
    reset_peak_memory(CPU)
    model = attach_lora(base, groups, rank=8, alpha=16, dropout=0.05, seed=0).train()
    if scored_by == "vanilla":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "base_layer" in name)
    scorer = None
    if scored_by in criteria.names():
        scorer = make_scorer(criteria.get(str(scored_by)), model, groups, power=2, normalize=False, seed=0)
    rows = torch.randint(base.config.vocab_size, (options.batch, options.length))
    optimizer = torch.optim.AdamW(p for name, p in model.named_parameters() if "lora_" in name)
    for _ in range(options.steps):
        model(input_ids=rows, labels=rows).loss.backward()
        if scorer:
            scorer.collect()
        elif scored_by == "vanilla":
            vanilla_scores(model)
        optimizer.step()
        model.zero_grad(set_to_none=True)
    answer.put({
        "libraries_bytes": before, "loading_bytes": loaded - before, "training_bytes": peak_memory_bytes(CPU) - before,
    })  # fmt: skip


def measure_run(work: str, name: str, options: argparse.Namespace, answer: Any) -> None:
    """Send back how much memory a whole run took, from loading to verification; libraries that it imports on its way count too."""
    torch.set_num_threads(1)
    give_back_freed_memory()
    chosen: dict[str, Any] = {
        "model": f"{work}/model", "data": f"{work}/text.txt", "eval": f"{work}/held_out.txt", "output": f"{work}/out", "overwrite": True,
        "steps": options.steps, "batch": options.batch, "length": options.length, "rows": 64, "device": "cpu", "dtype": "float32",
        "html": False, "max_shard_size": "50MB",
    }  # fmt: skip
    if name != "plain LoRA":
        chosen["calibration"] = options.calibration
    config = (FinetuneConfig if name == "plain LoRA" else PruneConfig)(**(chosen | RUNS[name]))
    gc.collect()
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    pipeline.run(config)
    answer.put({"libraries_bytes": before, "run_bytes": peak_memory_bytes(CPU) - before})


def measure_runs(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of every whole run, the median of several rounds, and its share of plain LoRA's."""
    in_process(
        lambda work, answer: answer.put(build_run(Path(work), folder / "text.txt", SHAPE)), str(folder / "model")
    )
    taken: dict[str, list[float]] = {name: [] for name in RUNS}
    for _ in range(options.rounds):
        for name, found in taken.items():
            found.append(in_process(measure_run, str(folder), name, options)["run_bytes"])
    peaks = {name: statistics.median(found) for name, found in taken.items()}
    for name, peak in peaks.items():
        print(f"whole run, {name}: {peak / 2**20:.0f} MiB", flush=True)
    return {"bytes": peaks, "against": {name: peak / peaks["plain LoRA"] for name, peak in peaks.items()}}


def in_process(target: Any, *arguments: Any) -> Any:
    """Call a function in a forked process and return what it puts into its last argument, a queue."""
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=target, args=(*arguments, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def build(folder: str, answer: Any) -> None:
    """Write a random model of the benchmark's shape, and send back its parameters and the share of its blocks."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    model.save_pretrained(folder)
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    answer.put({"parameters": model.num_parameters(), "in_blocks": blocks / model.num_parameters()})


def throughput(repeats: int, answer: Any) -> None:
    """Send back how many weights a second `lora` scores, and Eq 3 with forming G = dY^T X for as many tokens."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out, in_, tokens = SHAPE["intermediate_size"], SHAPE["hidden_size"], 512
    layer = nn.Linear(in_, out, bias=False)
    a, b = nn.Parameter(torch.randn(8, in_)), nn.Parameter(torch.randn(out, 8))
    a.grad, b.grad = torch.randn_like(a), torch.randn_like(b)
    x, grad = torch.randn(tokens, in_), torch.randn(tokens, out)
    proj = Projection("", layer, a, b, 2.0)

    def by_lora() -> None:
        saliency_sums(criteria.get("lora"), proj, torch.Generator(), power=2, wanted={"out"})

    def by_gradient() -> None:
        ((grad.T @ x) * layer.weight).square().sum(1)

    seconds: dict[str, list[float]] = {"lora": [], "forming G": []}
    with torch.no_grad():
        for _ in range(repeats):
            for name, function in (("lora", by_lora), ("forming G", by_gradient)):
                began = time.process_time()
                function()
                seconds[name].append(time.process_time() - began)
    answer.put({name: out * in_ / statistics.median(values) for name, values in seconds.items()} | {"tokens": tokens})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--calibration", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = in_process(build, str(Path(folder) / "model"))
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
        for _ in range(options.rounds):
            for name, found in taken.items():
                found.append(in_process(measure, str(Path(folder) / "model"), name, options))
        runs = {
            name: sorted(found, key=lambda run: run["training_bytes"])[len(found) // 2] for name, found in taken.items()
        }
        for name, run in runs.items():
            print(f"{name}: {run['training_bytes'] / 2**20:.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = measure_runs(Path(folder), options)
    against = {
        name: {other: run["training_bytes"] / runs[other]["training_bytes"] for other in ("plain LoRA", "vanilla")}
        for name, run in runs.items()
    }
    common.write("memory", {
        "shape": SHAPE, **model, "options": vars(options), "runs": runs, "against": against, "whole_runs": whole,
        "weights_a_second": in_process(throughput, options.repeats),
    })  # fmt: skip


if __name__ == "__main__":
    main()
