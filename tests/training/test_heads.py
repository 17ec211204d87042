"""Heads for classes, tags, spans and rewards in a Trainer of one's own: trained, saved and loaded with their own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from loraprune import LoRAPruneCallback, LoRAPruneConfig, attach_lora, from_pretrained, save_pruned
from loraprune.errors import UnsupportedModelError
from loraprune.families import find_groups
from tests.evaluation.tasks.cases import save_bert, word_tokenizer
from tests.fitting import arguments
from tests.samples import save_tiny

WORDS = len(word_tokenizer())


def batch(labels: dict[str, Tensor], words: int = WORDS) -> list[dict[str, Any]]:
    """Return rows of sixteen random tokens with labels."""
    ids = torch.randint(5, words, (32, 16), generator=torch.Generator().manual_seed(0))
    return [
        {"input_ids": row, **{name: values[place] for name, values in labels.items()}} for place, row in enumerate(ids)
    ]


CLASSES = {"labels": torch.arange(32) % 2}
TAGS = {"labels": torch.arange(32 * 16).view(32, 16) % 5}
SPANS = {"start_positions": torch.ones(32, dtype=torch.long), "end_positions": torch.full((32,), 2)}


def train(model: PreTrainedModel, rows: Any, folder: Path) -> LoRAPruneCallback:
    settings = LoRAPruneConfig(ratio=0.3, rank=4, interval=1)
    callback = LoRAPruneCallback(settings)
    args = arguments(folder / "run", steps=4, learning_rate=1e-2)
    Trainer(model=attach_lora(model, settings), args=args, train_dataset=rows, callbacks=[callback]).train()
    return callback


def heads(model: nn.Module, *names: str) -> dict[str, Tensor]:
    return {
        name: each.detach().clone() for name, each in model.named_parameters() if set(name.split(".")[:2]) & set(names)
    }


@pytest.mark.parametrize(
    ("kind", "labels", "names", "options"),
    [
        ("SequenceClassification", CLASSES, ("classifier", "pooler"), {"num_labels": 2}),
        ("TokenClassification", TAGS, ("classifier",), {"num_labels": 5}),
        ("QuestionAnswering", SPANS, ("qa_outputs",), {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("new", [True, False], ids=["new head", "saved head"])
def test_a_head_is_trained_and_saved_as_what_it_is(
    new: bool, kind: str, labels: dict[str, Tensor], names: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    auto = getattr(transformers, f"AutoModelFor{kind}")
    save_bert(tmp_path / "mlm")
    model = auto.from_pretrained(tmp_path / "mlm", **options)
    if not new:
        model.save_pretrained(tmp_path / "saved")
        model = auto.from_pretrained(tmp_path / "saved")
    before, frozen = heads(model, *names), model.bert.embeddings.word_embeddings.weight.detach().clone()
    callback = train(model, batch(labels), tmp_path)
    save_pruned(callback, tmp_path / "out")
    loaded, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    after = heads(loaded, *names)
    assert len(before) >= 2 * len(names)  # weights and biases
    assert after.keys() == before.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(frozen, loaded.bert.embeddings.word_embeddings.weight)  # the control: the backbone is frozen
    assert type(from_pretrained(tmp_path / "out")) is type(loaded)


def test_a_reward_model_of_a_decoder_learns_its_score(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "llama", num_labels=1)
    before = heads(model, "score")
    save_pruned(train(model, batch({"labels": torch.rand(32)}, 200), tmp_path), tmp_path / "out")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not torch.equal(before["score.weight"], heads(loaded, "score")["score.weight"])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "smollm3", "mistral"])
def test_a_decoder_that_answers_with_spans_names_its_layers_as_it_does(kind: str, tmp_path: Path) -> None:
    """transformers calls the layers of some of them `transformer` and of others `model`."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    described = transformers.AutoConfig.for_model(
        kind, vocab_size=WORDS, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    model = transformers.AutoModelForQuestionAnswering.from_config(described)
    callback = train(model, batch(SPANS), tmp_path)
    ids = torch.arange(5, 13)[None]
    expected = callback.pruner.model.eval()(input_ids=ids).start_logits  # type: ignore[union-attr]
    save_pruned(callback, tmp_path / "out")
    loaded, info = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.allclose(loaded(input_ids=ids).start_logits, expected, atol=1e-5)
    again = from_pretrained(tmp_path / "out")
    assert find_groups(again.config)[0].name.partition(".")[0] == again.base_model_prefix
    causal = transformers.AutoModelForCausalLM.from_config(described)  # the control: another head, another name
    assert find_groups(attach_lora(causal, LoRAPruneConfig(ratio=0.3)).config)[0].name.startswith("model.")


@pytest.mark.parametrize("kind", ["CausalLM", "MaskedLM"])
def test_a_head_that_writes_tokens_stays_frozen(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m") if kind == "CausalLM" else save_bert(tmp_path / "m")
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder)
    adapted = attach_lora(model, LoRAPruneConfig(ratio=0.3))
    trainable = [name for name, each in adapted.named_parameters() if each.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_a_model_that_could_not_be_loaded_again_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    save_bert(tmp_path / "encoder", head=False)
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder")
    with pytest.raises((UnsupportedModelError, LookupError, ValueError), match=r"BertModel|has no module"):
        attach_lora(model, LoRAPruneConfig(ratio=0.3))


def test_a_subclass_of_ones_own_is_saved_as_the_class_it_extends(tmp_path: Path) -> None:
    class Weighted(transformers.BertForSequenceClassification):  # type: ignore[misc]
        pass

    save_bert(tmp_path / "mlm")
    save_pruned(train(Weighted.from_pretrained(tmp_path / "mlm"), batch(CLASSES), tmp_path), tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures == ["BertForSequenceClassification"]
