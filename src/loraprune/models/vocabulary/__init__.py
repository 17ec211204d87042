"""Cut a model's vocabulary: choose tokens, cut the tokenizer, cut embeddings and output head.

`kinds` has one entry for each kind of tokenizer, `choice` chooses tokens, `tokenizer` cuts tokenizer.json, `rows` cuts the weights,
`ids` renumbers the tokens that configurations name. Knows nothing about data and training.
"""

from loraprune.models.vocabulary.choice import Choice, byte_lengths, choose_tokens, planned, reads_no_text
from loraprune.models.vocabulary.ids import renumbered
from loraprune.models.vocabulary.rows import cut_model_
from loraprune.models.vocabulary.tokenizer import save_tokenizer

__all__ = [
    "Choice",
    "byte_lengths",
    "choose_tokens",
    "cut_model_",
    "planned",
    "reads_no_text",
    "renumbered",
    "save_tokenizer",
]
