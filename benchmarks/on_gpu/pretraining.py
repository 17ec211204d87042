"""A small Llama of real English: its tokenizer and its weights are trained here, in about a minute on a GPU.

Sources of the texts are the folder's; docs/log.md names them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from on_gpu.shapes import Chosen, synchronised

TRAINING = ("wikitext-2/train.txt", "tinystories/lowercase.txt", "c4/train.jsonl")
HELD_OUT = "wikitext-2/valid.txt"
END = "</s>"


@dataclass(frozen=True)
class Sizes:
    """How large and how long."""

    shape: dict[str, int]
    seconds: float
    batch: int
    length: int
    characters: int
    """of every text, at most"""


LARGE = Sizes(
    {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 12,
     "num_key_value_heads": 12, "vocab_size": 8192}, seconds=60, batch=32, length=512, characters=12_000_000,
)  # fmt: skip
"""120M parameters, 95 % of them in the blocks"""
TINY = Sizes(
    {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
     "num_key_value_heads": 4, "vocab_size": 512}, seconds=3, batch=8, length=64, characters=60_000,
)  # fmt: skip


def texts_of(folder: Path, characters: int) -> dict[str, str]:
    """Return the training texts by name."""
    found = {}
    for name in TRAINING:
        path = folder / name
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            text = "\n".join(str(json.loads(line)["text"]) for line in lines)
        else:
            text = path.read_text(encoding="utf-8")
        found[name] = text[:characters]
    return found


def pieces(texts: dict[str, str], size: int = 4000) -> Iterator[str]:
    """Yield the texts in pieces."""
    for text in texts.values():
        yield from (text[start : start + size] for start in range(0, len(text), size))


def train_tokenizer(texts: dict[str, str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the texts, learnt on every second piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(list(pieces(texts))[::2], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def token_rows(texts: dict[str, str], tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
    """Return all texts as rows of tokens."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(pieces(texts)))
    ids = torch.tensor([token for piece in encoded for token in piece.ids])
    return ids[: len(ids) // length * length].view(-1, length)


def rate(progress: float) -> float:
    """Return the share of the learning rate after some share of the time: a short rise, then a cosine."""
    return min(progress / 0.03, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))) + 1e-3


def pretrain(rows: Tensor, sizes: Sizes, device: torch.device) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Return a model trained for so many seconds in bfloat16 with float32 weights, and how that went."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = LlamaConfig(**sizes.shape, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0,
                         eos_token_id=0, pad_token_id=0)  # fmt: skip
    with device:
        model = LlamaForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    began, order, step, losses = synchronised(device), torch.randperm(len(rows)), 0, []
    while (progress := (synchronised(device) - began) / sizes.seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * rate(progress)
        start = step * sizes.batch % max(1, len(rows) - sizes.batch)
        batch = rows[order[start : start + sizes.batch]].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 50 == 1:
            losses.append({"step": step, "loss": float(loss.detach())})
    tokens = step * sizes.batch * sizes.length
    return model.to(torch.bfloat16), {"steps": step, "tokens": tokens, "rows": len(rows), "losses": losses}


def make_model(folder: Path, sizes: Sizes, chosen: Chosen) -> dict[str, Any]:
    """Write the model, a text to prune on and one to evaluate on; return how the training went."""
    texts = texts_of(chosen.texts, sizes.characters)
    tokenizer = train_tokenizer(texts, sizes.shape["vocab_size"])
    print("tokenizer trained", flush=True)
    model, told = pretrain(token_rows(texts, tokenizer, sizes.length), sizes, chosen.device)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    held_out = (chosen.texts / HELD_OUT).read_text(encoding="utf-8")
    (folder / "train.txt").write_text(texts[TRAINING[0]][: sizes.characters // 4], encoding="utf-8")
    (folder / "held_out.txt").write_text(held_out[: sizes.characters // 30], encoding="utf-8")
    whole = model.num_parameters()
    blocks = sum(each.numel() for each in model.model.layers.parameters())
    return told | {"parameters": whole, "in_blocks": blocks / whole}
