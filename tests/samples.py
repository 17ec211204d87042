"""A byte-level tokenizer, a text and a random Llama folder, small enough to be made anew by every test module.

No BPE merges: a token is a byte, so decoding gives exactly the text that was encoded.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraprune.data import TokenRows

TEXT = "a cat dog ran to the big red house and saw one small tree near its old friend who was very happy"
WORDS = TEXT.split()
VOCABULARY = 264


def byte_tokenizer(*, bos: bool = True, eos: bool = True, extra: int = 0) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and its special tokens; `extra` words raise its largest token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>" if eos else None,
        pad_token="<pad>", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.add_tokens([f"<extra{number}>" for number in range(extra)])
    return fast


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Return sentences that each begin with their own number."""
    draw = random.Random(seed)
    return [f"[{number:04d}] {' '.join(draw.choices(WORDS, k=draw.randint(4, 12)))}." for number in range(count)]


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    """Return a random float32 Llama with 4 query and 2 KV heads, the same at every call."""
    values: dict[str, object] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(values | changes)))  # type: ignore[arg-type]
    return model.eval()


def save_tiny(folder: Path, **changes: object) -> Path:
    """Write a tiny Llama and its tokenizer."""
    tiny_llama(**changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path, count: int = 300, *, seed: int = 0) -> Path:
    """Write sentences, one a line."""
    path.write_text("\n".join(sentences(count, seed=seed)), encoding="utf-8")
    return path


def jsonl(*rows: object) -> str:
    """Return rows as the text of a .jsonl file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def documents(count: int) -> list[str]:
    """Return short texts that differ."""
    return [f"document number {index} says {index * index}" for index in range(count)]


def joined(rows: TokenRows) -> list[int]:
    """Return the tokens of all rows in one list."""
    return [token for row in rows.rows for token in row.input_ids]


def save_inputs(root: Path) -> Path:
    """Write a tiny random model and a text into a folder, and return it."""
    save_tiny(root / "model")
    write_text(root / "text.txt", 200)
    return root
