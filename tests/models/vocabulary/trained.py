"""Tokenizers of every kind, trained on a few sentences, and what a cut leaves of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from loraprune.models.vocabulary import Choice, choose_tokens, save_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "Quickly jumping foxes overtake lazily sleeping dogs; nobody minded the foxes.",
    "Structured pruning removes heads and channels, and unstructured pruning removes weights.",
    "She sells sea shells by the sea shore, and the shells she sells are seashells for sure.",
    "Numbers such as 1234, 56789 and 3.14159 are split, too; so are naïve cafés and smörgåsbords.",
] * 4
KNOWN = "the lazy fox jumps over sea shells, and pruning removes the weights"
"""a text of the words above"""
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def _wrapped(tokenizer: Tokenizer, *, late: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts <s> before texts; `late` are special tokens added behind the others."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in late])
    number = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False, chat_template="{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}",
    )  # fmt: skip


def byte_level(*, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Return byte-level BPE, as of SmolLM2 and GPT-2, or of Llama 3 with `ignore_merges`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer, late=["<turn>"])


def byte_fallback() -> PreTrainedTokenizerFast:
    """Return BPE over characters with spaces as U+2581 and bytes for unknown characters, as of Llama 2 and Gemma."""
    fallback = [f"<0x{number:02X}>" for number in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    saved = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *fallback, *saved["vocab"]]
    merges = [tuple(merge) for merge in saved["merges"]]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)}, merges=merges, unk_token="<unk>", fuse_unk=True,
        byte_fallback=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return _wrapped(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Return Unigram with extra tokens behind the others, as of T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer, late=[f"<extra_id_{number}>" for number in range(100)])


def wordpiece() -> PreTrainedTokenizerFast:
    """Return WordPiece with lower case, as of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer)


KINDS = {
    "byte-level BPE": byte_level, "BPE that looks words up": lambda: byte_level(ignore_merges=True),
    "BPE with byte fallback": byte_fallback, "Unigram": unigram, "WordPiece": wordpiece,
}  # fmt: skip
ANY_TEXT = ["byte-level BPE", "BPE that looks words up", "BPE with byte fallback"]
"""kinds that encode any text"""


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    return KINDS[kind]()


def ids_of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def chosen(tokenizer: PreTrainedTokenizerBase, *texts: str, amount: int | None = None) -> Choice:
    """Return the tokens to keep for some texts, of a model with ten rows more than the tokenizer has tokens."""
    counts = Counter(token for ids in ids_of(tokenizer, *texts) for token in ids)
    config = LlamaConfig(vocab_size=len(tokenizer) + 10, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    return choose_tokens(tokenizer, config, counts, amount)


def saved(tokenizer: PreTrainedTokenizerBase, choice: Choice, folder: Path) -> PreTrainedTokenizerBase:
    """Return the cut tokenizer as plain transformers loads it."""
    save_tokenizer(tokenizer, choice, folder)
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return found


def t5_tokenizer() -> PreTrainedTokenizerBase:
    """Return Unigram that ends every text, as T5's does."""
    found = unigram()
    number = found.convert_tokens_to_ids("</s>")
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", number)]
    )
    return found


def bert_tokenizer() -> PreTrainedTokenizerBase:
    """Return WordPiece between two special tokens and with a mask, as BERT's is."""
    found = wordpiece()
    found.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"})
    marks = [(token, found.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    return found


TEXTS: dict[str, list[str]] = {"text.txt": CORPUS[:2] * 60, "other.txt": CORPUS[2:5] * 8}


def save_inputs(root: Path, *, tied: bool = False) -> Path:
    """Write a tiny Llama with a trained byte-level tokenizer and padded embeddings, a text, and another text."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    for name, texts in TEXTS.items():
        (root / name).write_text("\n".join(texts), encoding="utf-8")
    return root
