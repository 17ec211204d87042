"""Tiny BERTs in folders, with a word-piece tokenizer of their own, and data with labels to train them on."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from tests.samples import WORDS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = ("happy", "red", "big"), ("old", "small", "near")
SHORT = ["--steps", "40", "--batch", "16", "--length", "24", "--lr", "0.005", "--rank", "4", "--device", "cpu",
         "--html", "false"]  # fmt: skip


def word_tokenizer(words: Iterable[str] = WORDS) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words with BERT's special tokens."""
    known = dict.fromkeys([*SPECIAL, *sorted(set(words)), "."])
    vocabulary = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def save_bert(folder: Path, *, head: bool = True, tokenizer: Any = None, **changes: Any) -> Path:
    """Write a random BERT, as a masked language model or without any head."""
    tokenizer = tokenizer or word_tokenizer()
    values = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(**(values | changes))
    (BertForMaskedLM(config) if head else BertModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reviews(count: int = 240, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return sentences whose words tell their label."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = draw.random() < 0.5
        words = [draw.choice(GOOD if label else BAD), *draw.choices(["a", "cat", "dog", "house", "tree", "saw"], k=5)]
        draw.shuffle(words)
        found.append({"text": " ".join(words), "label": "good" if label else "bad"})
    return found


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as a table with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
