"""Every task has a page: its own metric, what it writes if it writes, and its speed if that is timed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from loraprune import pipeline
from loraprune.config.training import PruneConfig
from loraprune.reporting.amounts import NEW_HEAD
from tests.data.images.conftest import save_classifier, write_images
from tests.evaluation.tasks.cases import reviews, save_bert, write_csv
from tests.samples import VOCABULARY, byte_tokenizer, jsonl, write_text

pytest.importorskip("matplotlib")


class Case(NamedTuple):
    make: Callable[[Path], tuple[Path, Path]]
    """writes a model and data, and returns where they are"""
    metric: str
    writes: bool
    is_timed: bool


def masked(root: Path) -> tuple[Path, Path]:
    write_text(root / "text.txt", 60)
    return save_bert(root / "model"), root / "text.txt"


def labelled(root: Path) -> tuple[Path, Path]:
    return save_bert(root / "model"), write_csv(root / "reviews.csv", reviews(60))


def seq2seq(root: Path) -> tuple[Path, Path]:
    byte_tokenizer().save_pretrained(root / "model")
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(root / "model")
    rows = [{"instruction": f"say {word}", "response": f"{word} {word}"} for word in ("cat", "dog", "tree") * 12]
    (root / "pairs.jsonl").write_text(jsonl(*rows), encoding="utf-8")
    return root / "model", root / "pairs.jsonl"


def pictures(root: Path) -> tuple[Path, Path]:
    return save_classifier(root / "model"), write_images(root / "data")


CASES = {
    "masked-lm": Case(masked, "perplexity", writes=False, is_timed=True),
    "sequence-classification": Case(labelled, "accuracy", writes=False, is_timed=True),
    "seq2seq": Case(seq2seq, "perplexity", writes=True, is_timed=True),
    "image-classification": Case(pictures, "accuracy", writes=False, is_timed=False),
}


@pytest.mark.parametrize("task", CASES)
def test_every_task_has_a_page_with_its_own_metric(task: str, tmp_path: Path) -> None:
    case = CASES[task]
    model, data = case.make(tmp_path)
    config = PruneConfig(
        model=str(model), data=str(data), output=str(tmp_path / "out"), steps=4, batch=4, length=24, rank=2, device="cpu",
        eval_every=2, patience=5,
    )  # fmt: skip
    pipeline.prune(config)
    report: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (report["task"], report["metric"]) == (task, case.metric)
    assert [look["step"] for look in report["evaluations"]] == [2, 4]
    assert all(look[case.metric] > 0 or case.metric == "accuracy" for look in report["evaluations"])
    assert report["kept_step"] == 4 or case.metric == "accuracy"
    assert f"Held-out {case.metric} over steps" in page
    assert f"protocol of the {case.metric}" in page
    if report["trained_whole"]:  # an untrained head has nothing to lose
        assert NEW_HEAD.partition("`")[0] in page
    else:
        assert re.search(r"<small>(as high|points)</small>", page)
    assert ("speed" in report) == ("<h3>Speed</h3>" in page) == case.is_timed
    assert ("examples" in report) == ("Generated text" in page) == case.writes
    assert ("generation of 16" in page, "prefill of" in page) == (case.writes, case.writes)  # the others only read
    if case.writes:
        assert all(
            set(example) == {"prompt", "dense", "pruned"} and example["prompt"] for example in report["examples"]
        )
