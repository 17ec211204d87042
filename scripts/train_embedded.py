"""Train the Llama that the package ships, from scratch, on the source text of Python's standard library.

    python scripts/train_embedded.py --work build/embedded --prepare
    python scripts/train_embedded.py --work build/embedded --steps 5000      # where the tokens lie; a GPU is used if there
    python scripts/train_embedded.py --work build/embedded --finish src/loraprune/models/demo

Constant learning rate after a warm-up, then a linear decay over the last 40 % of the steps; hidden matrices by Muon,
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
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraprune.data.stdlib import stdlib_texts

VOCABULARY, LENGTH, DECAY = 4096, 256, 0.4
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


def prepare(work: Path) -> None:
    """Write the tokenizer and both splits as tokens, so that the training can happen on another machine."""
    work.mkdir(parents=True, exist_ok=True)
    texts = stdlib_texts(held_out=False, tests=True)
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(work)
    splits = {"train": tokens(tokenizer, texts), "held_out": tokens(tokenizer, stdlib_texts(held_out=True))}
    save_file({name: stream.to(torch.int16) for name, stream in splits.items()}, work / "tokens.safetensors")
    print({name: len(stream) for name, stream in splits.items()})


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    model.eval()
    windows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    losses = [model(input_ids=rows, labels=rows).loss.item() * len(rows) for rows in windows.split(64)]
    model.train()
    return math.exp(sum(losses) / len(windows))


def learning_rate(step: int, steps: int) -> float:
    """Factor on the peak: 200 steps of warm-up, constant, linear to zero at the end."""
    return min(1.0, (step + 1) / 200, (steps - step) / (DECAY * steps))


def optimizers(model: LlamaForCausalLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices, lr=options.lr, momentum=0.95, weight_decay=options.decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=options.lr_embedding, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rows_of(step: int, stream: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the batch of one step: every epoch visits all windows once, shifted and in an order of its own."""
    count = len(stream) // LENGTH - 1
    epoch, place = divmod(step * batch, count - count % batch)
    generator = torch.Generator().manual_seed(epoch)
    shift = int(torch.randint(LENGTH, (1,), generator=generator))
    starts = torch.randperm(count, generator=generator)[place : place + batch] * LENGTH + shift
    return stream[(starts[:, None] + torch.arange(LENGTH)).to(stream.device)]


def train(work: Path, options: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_file(work / "tokens.safetensors")
    stream, held_out = (loaded[name].to(device, torch.long) for name in ("train", "held_out"))
    torch.manual_seed(0)
    model = build_model().to(device).train()
    print(f"{model.num_parameters():,} parameters, {len(stream):,} training and {len(held_out):,} held-out tokens")
    engines = optimizers(model, options)
    peaks = [engine.param_groups[0]["lr"] for engine in engines]
    state, start = work / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for engine, values in zip(engines, saved["optimizers"], strict=True):
            engine.load_state_dict(values)
        start = saved["step"]
    compiled = torch.compile(model)
    began, running = time.time(), None
    for step in range(start, options.steps):
        for engine, peak in zip(engines, peaks, strict=True):
            engine.param_groups[0]["lr"] = peak * learning_rate(step, options.steps)
        rows = rows_of(step, stream, options.batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss = compiled(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for engine in engines:
            engine.step()
            engine.zero_grad()
        running = loss.detach() if running is None else 0.98 * running + 0.02 * loss.detach()
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            record = {"step": step + 1, "tokens": (step + 1) * options.batch * LENGTH, "train_loss": running.item(),
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
    model.load_state_dict(torch.load(work / "state.pt", weights_only=True, map_location="cpu")["model"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.copy(work / "curve.jsonl", output / "curve.jsonl")
    held_out = load_file(work / "tokens.safetensors")["held_out"].long()
    print(f"held-out perplexity {perplexity(model.float(), held_out):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of tokenizer, tokens, checkpoint and curve")
    parser.add_argument("--prepare", action="store_true", help="write tokenizer and tokens instead of training")
    parser.add_argument("--finish", type=Path, help="write the trained model there instead of training")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=128, help="windows of 256 tokens in a step")
    parser.add_argument("--lr", type=float, default=0.01, help="peak learning rate of Muon")
    parser.add_argument("--lr-embedding", type=float, default=0.004, help="peak learning rate of AdamW")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of Muon")
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations and checkpoints")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.work)
    elif options.finish:
        finish(options.work, options.finish)
    else:
        train(options.work, options)


if __name__ == "__main__":
    main()
