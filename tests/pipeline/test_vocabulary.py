"""A run that cuts the vocabulary: what it keeps, what it writes, and what it compares."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune.commands.plan import predict
from loraprune.config.commands import PlanConfig
from loraprune.errors import ConfigError
from loraprune.pipeline import prune
from loraprune.reporting.report import Report
from tests.models.vocabulary.trained import CORPUS, byte_level, save_inputs
from tests.pipeline.cases import check_loads_anywhere, prune_config, read_report
from tests.pipeline.test_resume import MIDDLE, results, stopped
from tests.published import by_the_paper


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def alone(root: Path) -> tuple[Report, Path]:
    """Return a run that only cuts the vocabulary."""
    output = root / "alone"
    changes = {"steps": 0, "ratio": 0.0, "rows": 8, "eval": str(root / "other.txt")}
    return prune(prune_config(root, output, vocabulary="data", **changes)), output


def test_the_logits_of_kept_tokens_are_the_dense_models(root: Path, alone: tuple[Report, Path]) -> None:
    report, folder = alone
    models = [AutoModelForCausalLM.from_pretrained(place) for place in (root / "model", folder)]
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (root / "model", folder)]
    ids = [one(CORPUS[0], return_tensors="pt")["input_ids"] for one in tokenizers]
    assert tokenizers[0].convert_ids_to_tokens(ids[0][0]) == tokenizers[1].convert_ids_to_tokens(ids[1][0])
    assert not torch.equal(*ids)
    logits = [model(one).logits[0] for model, one in zip(models, ids, strict=True)]
    old = [
        tokenizers[0].convert_tokens_to_ids(token)
        for token in tokenizers[1].convert_ids_to_tokens(range(len(tokenizers[1])))
    ]
    torch.testing.assert_close(logits[0][:, old], logits[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):  # control: rows in another order
        torch.testing.assert_close(logits[0][:, [*old[1:], old[0]]], logits[1], rtol=1e-5, atol=1e-5)
    assert report.vocabulary
    assert logits[1].shape[-1] == report.vocabulary["kept"] == len(tokenizers[1])


def test_plain_transformers_loads_it(alone: tuple[Report, Path]) -> None:
    _, folder = alone
    found = check_loads_anywhere(folder)
    assert max(found["plain"]) < read_report(folder)["vocabulary"]["kept"]


def test_the_chat_template_and_special_tokens_are_kept(root: Path, alone: tuple[Report, Path]) -> None:
    before, after = (AutoTokenizer.from_pretrained(place) for place in (root / "model", alone[1]))
    chat = [{"role": "user", "content": CORPUS[0]}]
    ids = [one.apply_chat_template(chat, return_dict=False) for one in (before, after)]
    assert before.convert_ids_to_tokens(ids[0]) == after.convert_ids_to_tokens(ids[1])
    assert (ids[1][0], ids[1][-1]) == (after.bos_token_id, after.eos_token_id)
    assert before.special_tokens_map == after.special_tokens_map
    turn = [one.convert_tokens_to_ids("<turn>") for one in (before, after)]
    assert turn[1] < turn[0]
    assert after(f"a<turn>{CORPUS[0]}")["input_ids"].count(turn[1]) == 1


def test_the_report_says_what_was_kept(root: Path, alone: tuple[Report, Path]) -> None:
    _, folder = alone
    found = read_report(folder)
    cut, tokens = found["vocabulary"], len(byte_level())
    assert cut["dense"] == tokens + 7
    assert 256 < cut["kept"] < tokens
    assert cut["rows_changed"] == 0
    kept = set(AutoTokenizer.from_pretrained(folder).get_vocab())
    other = byte_level().convert_ids_to_tokens(byte_level()(" ".join(CORPUS[2:5]))["input_ids"])
    share = sum(token in kept for token in other) / len(other)
    assert 0 < cut["held_out_coverage"] < 1
    assert cut["held_out_coverage"] == pytest.approx(share, abs=0.1)
    dense, pruned = found["parameters"]["dense"], found["parameters"]["pruned"]
    assert dense - pruned == 2 * 32 * (cut["dense"] - cut["kept"])
    assert found["model"] == str(root / "model")
    assert "tokens in the vocabulary" in (folder / "README.md").read_text(encoding="utf-8")


def test_perplexities_are_in_one_unit(root: Path, alone: tuple[Report, Path]) -> None:
    """The bits of the held-out text, measured here by plain transformers, are those of the report, and give its perplexities."""
    _, folder = alone
    found = read_report(folder)["perplexity"]
    text = (root / "other.txt").read_text(encoding="utf-8")
    bits = {}
    for name, place in (("dense", root / "model"), ("pruned", folder)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        rows = [ids[start : start + 32] for start in range(0, len(ids) // 32 * 32, 32)]
        special = set(tokenizer.all_special_tokens)  # in byte-level tokens a letter is a byte
        size = sum(
            len(token) for row in rows for token in tokenizer.convert_ids_to_tokens(row[1:]) if token not in special
        )
        nats = sum(model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() * 31 for row in rows)
        bits[name] = nats / size / math.log(2)
        assert found["bits_per_byte"][name] == pytest.approx(bits[name], rel=1e-4)
    ratio = math.log(found["pruned"]) / math.log(found["dense"])
    assert ratio == pytest.approx(bits["pruned"] / bits["dense"], rel=1e-4)
    assert bits["pruned"] != pytest.approx(bits["dense"], rel=1e-3)  # control: the two are different models of the text


def test_configurations_name_the_same_tokens(root: Path, alone: tuple[Report, Path]) -> None:
    _, folder = alone
    before, after = (AutoTokenizer.from_pretrained(place) for place in (root / "model", folder))
    for file in ("config.json", "generation_config.json"):
        old, new = (json.loads((place / file).read_text(encoding="utf-8")) for place in (root / "model", folder))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert before.convert_ids_to_tokens(old[name]) == after.convert_ids_to_tokens(new[name])


@pytest.mark.parametrize("changes", [{}, {"teacher": "copy"}, {"sparsity": "2:4", "ratio": 0.5}, {"local": 2}], ids=str)
def test_units_are_pruned_from_the_smaller_model(root: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    report = prune(prune_config(root, tmp_path / "out", vocabulary="data", **changes))
    assert report.vocabulary
    assert report.vocabulary["held_out_coverage"] == 1.0
    assert report.removed
    assert report.removed.ratio_reached > 0.3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == report.parameters[1] < report.parameters[0]


@pytest.mark.parametrize("aim", [{}, {"size": 0.5}, {"parameters": "26k"}], ids=str)
def test_plan_predicts_the_parameters_of_the_run(root: Path, tmp_path: Path, aim: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"ratio": 0.5, "vocabulary": 300, "round": 1, **aim}
    report = prune(prune_config(root, tmp_path / "out", **changes, steps=2))
    dense, pruned = report.parameters
    predicted = predict(PlanConfig(model=str(root / "model"), **by_the_paper(**changes)))
    assert (predicted["parameters"]["dense"], predicted["parameters"]["pruned"]) == (dense, pruned)
    assert predicted["vocabulary"] == 300
    wanted = 0.5 * dense if "size" in aim else 26_000 if aim else pruned  # of the dense model, and of all that is left
    assert pruned == pytest.approx(wanted, rel=0.05)
    whole = predict(PlanConfig(model=str(root / "model"), **by_the_paper(ratio=0.5, round=1)))["parameters"]
    assert whole["dense"] == dense
    assert whole["pruned"] > pruned  # control: with all tokens


def test_the_target_counts_the_smaller_vocabulary(root: Path, tmp_path: Path) -> None:
    """A size that needs the embeddings to shrink can be reached with, and only with, a cut."""
    aim = {"ratio": 0.5, "parameters": "26k", "ffn": None, "heads": None}
    with pytest.raises(Exception, match="never pruned"):
        prune(prune_config(root, tmp_path / "whole", **aim))
    report = prune(prune_config(root, tmp_path / "cut", vocabulary="data", **aim))
    assert report.parameters[1] <= 26_000 * 1.05


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    root = save_inputs(tmp_path, tied=True)
    report = prune(prune_config(root, tmp_path / "out", vocabulary=300, steps=0, ratio=0.0, rows=8))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert report.vocabulary
    assert model.config.vocab_size == report.vocabulary["kept"] == 300


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    changes = {"vocabulary": "data", "save": 1}
    prune(prune_config(root, tmp_path / "whole", **changes))
    stopped(root, tmp_path / "halves", MIDDLE, vocabulary="data")
    (tmp_path / "halves.partial" / "vocabulary" / "model.safetensors").write_bytes(b"torn")
    prune(prune_config(root, tmp_path / "halves", resume=True, **changes))
    assert results(tmp_path / "whole") == results(tmp_path / "halves")
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()
    assert not (tmp_path / "halves.partial").exists()


def test_another_vocabulary_is_another_run(root: Path, tmp_path: Path) -> None:
    stopped(root, tmp_path / "out", MIDDLE, vocabulary="data")
    with pytest.raises(ConfigError, match=r"--vocabulary 300 \(was data\)"):
        prune(prune_config(root, tmp_path / "out", save=1, resume=True, vocabulary=300))
