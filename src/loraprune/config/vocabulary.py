"""The option that cuts the vocabulary. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.config.base import Options, failed

DATA = "data"


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions(Options):
    """Which tokens a model keeps."""

    vocabulary: str | int | None = None
    """cut embeddings, output head and tokenizer before units are pruned: `data` keeps the tokens that occur in the training data; a
    number keeps that many tokens, the most frequent first. Bytes or characters, special tokens and the parts of merges always
    stay"""

    @property
    def most_tokens(self) -> int | None:
        """Return how many tokens are kept in all; None for those of the data, or without a cut."""
        return None if self.vocabulary in (None, DATA) else int(str(self.vocabulary))

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        asked = str(self.vocabulary)
        good = self.vocabulary in (None, DATA) or (asked.isdecimal() and asked.isascii() and int(asked) > 0)
        wrong = f"--vocabulary {asked}: `data` or a number of tokens is needed, such as 16000"
        return [*super().problems(), *failed((good, wrong))]
