"""Train the Llama that the package ships, from scratch, on the source text of Python's standard library.

    python scripts/train_embedded.py --work build/embedded --steps 9000
    python scripts/train_embedded.py --work build/embedded --finish src/loraprune/demo/model

Constant learning rate after a warm-up, then a linear decay over the last 30 % of the steps; hidden matrices by Muon,
the rest by AdamW. Resumes from the newest checkpoint in --work. The curve is written to --work/curve.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraprune.demo.stdlib import stdlib_texts

VOCABULARY, LENGTH, BATCH, DECAY = 4096, 256, 16, 0.3
BOS, EOS = "<s>", "</s>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS, EOS], initial_alphabet=alphabet),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    encoded = tokenizer(texts)["input_ids"]
    return torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    model.eval()
    windows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    losses = [model(input_ids=rows, labels=rows).loss.item() * len(rows) for rows in windows.split(32)]
    model.train()
    return math.exp(sum(losses) / len(windows))


def learning_rate(step: int, steps: int) -> float:
    """Factor on the peak: 200 steps of warm-up, constant, linear to zero over the last 30 %."""
    return min(1.0, (step + 1) / 200, (steps - step) / (DECAY * steps))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=0.005, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rows_of(step: int, stream: torch.Tensor) -> torch.Tensor:
    """Return the batch of one step: every epoch visits all windows once, shifted and in an order of its own."""
    count = len(stream) // LENGTH - 1
    epoch, place = divmod(step * BATCH, count - count % BATCH)
    generator = torch.Generator().manual_seed(epoch)
    shift = int(torch.randint(LENGTH, (1,), generator=generator))
    starts = torch.randperm(count, generator=generator)[place : place + BATCH] * LENGTH + shift
    return torch.stack([stream[s : s + LENGTH] for s in starts.tolist()])


def train(work: Path, steps: int, every: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    texts = stdlib_texts(held_out=False, tests=True)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(texts).save_pretrained(work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    stream, held_out = tokens(tokenizer, texts), tokens(tokenizer, stdlib_texts(held_out=True))
    torch.manual_seed(0)
    model = build_model().train()
    print(f"{model.num_parameters():,} parameters, {len(stream):,} training and {len(held_out):,} held-out tokens")
    engines = optimizers(model)
    peaks = [engine.param_groups[0]["lr"] for engine in engines]
    state, start = work / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for engine, values in zip(engines, saved["optimizers"], strict=True):
            engine.load_state_dict(values)
        start = saved["step"]
    compiled = torch.compile(model)
    began, running = time.time(), 0.0
    for step in range(start, steps):
        for engine, peak in zip(engines, peaks, strict=True):
            engine.param_groups[0]["lr"] = peak * learning_rate(step, steps)
        rows = rows_of(step, stream)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for engine in engines:
            engine.step()
            engine.zero_grad()
        running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            record = {"step": step + 1, "tokens": (step + 1) * BATCH * LENGTH, "train_loss": running,
                      "held_out_perplexity": perplexity(model, held_out[: 400 * LENGTH]),
                      "seconds": time.time() - began}  # fmt: skip
            print(json.dumps(record), flush=True)
            with (work / "curve.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            saved = {"model": model.state_dict(), "optimizers": [e.state_dict() for e in engines], "step": step + 1}
            torch.save(saved, work / "state.new")
            (work / "state.new").replace(state)


def finish(work: Path, output: Path) -> None:
    """Write the model in bfloat16 with its tokenizer and curve, and print its perplexity on all held-out modules."""
    model = build_model()
    model.load_state_dict(torch.load(work / "state.pt", weights_only=True)["model"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.copy(work / "curve.jsonl", output / "curve.jsonl")
    print(f"held-out perplexity {perplexity(model.float(), tokens(tokenizer, stdlib_texts(held_out=True))):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of tokenizer, checkpoint and curve")
    parser.add_argument("--steps", type=int, default=9000, help="optimiser steps of 4,096 tokens")
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations and checkpoints")
    parser.add_argument("--finish", type=Path, help="write the trained model there instead of training")
    options = parser.parse_args()
    if options.finish:
        finish(options.work, options.finish)
    else:
        train(options.work, options.steps, options.every)


if __name__ == "__main__":
    main()
