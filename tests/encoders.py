"""Tiny encoders for `tests.tiny.EVERY`: masked language models and classifiers of texts, with padding in what they are fed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.variant import LANGUAGE, VOCABULARY, Variant, tokens

MASKED, CLASSES = "AutoModelForMaskedLM", "AutoModelForSequenceClassification"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}

BERT: dict[str, Any] = LANGUAGE | NO_DROPOUT
DISTILBERT: dict[str, Any] = {
    "dim": 64, "n_heads": 8, "hidden_dim": 96, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    "initializer_range": 0.2, "pad_token_id": 0, "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
}  # fmt: skip
ALBERT = BERT | {"embedding_size": 16, "classifier_dropout_prob": 0.0}
DEBERTA = BERT | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "pooler_dropout": 0.0,
}
MODERNBERT = {
    **{name: value for name, value in BERT.items() if name not in NO_DROPOUT},
    "bos_token_id": None, "eos_token_id": None, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8,
    "initializer_cutoff_factor": 3.0,
}  # fmt: skip


def inputs() -> Mapping[str, Any]:
    """Return token ids, the second row with padding at its end."""
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, 16:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def masked_batch() -> Mapping[str, Tensor]:
    """Return token ids, every third hidden."""
    ids = tokens(4, seed=3)
    hidden = torch.arange(ids.shape[1]) % 3 == 0
    return {"input_ids": ids.masked_fill(hidden, 3), "labels": ids.masked_fill(~hidden, -100)}


def labelled_batch() -> Mapping[str, Tensor]:
    """Return token ids with a class each."""
    return {"input_ids": tokens(4, seed=3), "labels": torch.tensor([0, 1, 2, 1])}


def masked(model_type: str, values: Mapping[str, Any], **changes: Any) -> Variant:
    """Return a masked language model."""
    return Variant(model_type, {**values, **changes}, MASKED, inputs, masked_batch)


def classifier(model_type: str, values: Mapping[str, Any], **changes: Any) -> Variant:
    """Return a classifier of three classes."""
    return Variant(model_type, {**values, "num_labels": 3, **changes}, CLASSES, inputs, labelled_batch)


ENCODERS: dict[str, Variant] = {
    "bert": masked("bert", BERT),
    "bert-classes": classifier("bert", BERT),
    "roberta": masked("roberta", BERT),
    "roberta-classes": classifier("roberta", BERT),
    "xlm-roberta": classifier("xlm-roberta", BERT),
    "electra": masked("electra", BERT | {"embedding_size": 16}),
    "electra-classes": classifier("electra", BERT | {"embedding_size": 64}),
    "distilbert": masked("distilbert", DISTILBERT),
    "distilbert-classes": classifier("distilbert", DISTILBERT),
    "albert": masked("albert", ALBERT, num_hidden_groups=1),
    "albert-groups": classifier("albert", ALBERT, num_hidden_groups=2, inner_group_num=2),
    "deberta-v2": masked("deberta-v2", DEBERTA),
    "deberta-v2-shared": classifier("deberta-v2", DEBERTA, share_att_key=True, norm_rel_ebd="layer_norm"),
    "deberta-v2-absolute": classifier("deberta-v2", BERT | {"pooler_dropout": 0.0}),
    "modernbert": masked("modernbert", MODERNBERT),
    "modernbert-classes": classifier("modernbert", MODERNBERT, attention_bias=True, mlp_bias=True),
}
