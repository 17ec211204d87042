"""Pruning to 50 % while tuning against plain LoRA fine-tuning: wall time and peak memory, same steps, same data.

    python benchmarks/training_cost.py

Each run is a process of its own, in the order A B A B; the Llama shape has over 80 % of its parameters in its blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers import common
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraprune.data.stdlib import stdlib_texts

SHAPE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 2048,
}  # fmt: skip
"""wide enough that matrix products take the time, as in real models"""
VARIANTS: dict[str, list[str]] = {
    "finetune": ["finetune"],
    "prune": ["prune", "--ratio", "0.5"],
    "prune gate": ["prune", "--ratio", "0.5", "--criterion", "gate"],
    "prune best": ["prune", "--ratio", "0.5", "--recipe", "best", "--calibration", "8192"],
    "prune masked": ["prune", "--ratio", "0.5", "--shrink", "false"],
}


def build(folder: Path, text: Path, shape: dict[str, int] = SHAPE) -> None:
    """Write a random model of a shape, by default the benchmark's, its tokenizer, and a text."""
    texts = stdlib_texts(held_out=False)[:80]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=shape["vocab_size"], special_tokens=["</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True)).save_pretrained(
        folder
    )
    text.write_text("\n".join(texts), encoding="utf-8")
    text.with_name("held_out.txt").write_text(
        stdlib_texts(held_out=True)[0][:20000], encoding="utf-8"
    )  # judged, not timed


def measure(work: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a process of its own and return its report."""
    output = work / "out"
    command = [
        sys.executable, "-m", "loraprune", *VARIANTS[name], "--model", str(work / "model"), "--data", str(work / "text.txt"),
        "--eval", str(work / "held_out.txt"), "--output", str(output), "--overwrite", "--steps", str(options.steps),
        "--batch", str(options.batch), "--length", str(options.length), "--accumulate", str(options.accumulate), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    print(f"{name}: {report['wall_seconds']:.1f} s, {report['peak_memory_bytes'] / 2**20:.0f} MiB", flush=True)
    return {key: report[key] for key in ("wall_seconds", "peak_memory_bytes", "parameters", "steps")} | {
        "ratio_reached": report.get("ratio_reached", 0.0)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build(work / "model", work / "text.txt")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.variants}
        for _ in range(options.repeats):
            for name in options.variants:
                runs[name].append(measure(work, name, options))
    ratios = {}
    for name in options.variants:
        pairs = list(zip(runs[name], runs["finetune"], strict=True))
        ratios[name] = {
            key: common.spread([run[key] / base[key] for run, base in pairs])
            for key in ("wall_seconds", "peak_memory_bytes")
        }
    parameters = runs["finetune"][0]["parameters"]["dense"]
    blocks = 1 - SHAPE["vocab_size"] * SHAPE["hidden_size"] / parameters
    common.write(
        "training_cost",
        {
            "shape": SHAPE,
            "parameters": parameters,
            "in_blocks": blocks,
            "options": vars(options),
            "against_finetune": ratios,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
