"""Sequence to sequence from the command line: a T5 on instructions, what it leaves, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from loraprune import cli
from tests.samples import VOCABULARY, byte_tokenizer

ALPACA = Path(__file__).resolve().parents[4] / "shared" / "data" / "instruct" / "alpaca-5000.jsonl"
ROWS = 60
SHORT = ("--length", "48", "--batch", "8", "--device", "cpu")
TRAINING = (*SHORT, "--steps", "4", "--html", "false")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5, whose tokenizer takes bytes and ends every text."""
    folder = tmp_path_factory.mktemp("seq2seq") / "t5"
    tokenizer = byte_tokenizer(bos=False)
    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, pad_token_id=2, decoder_start_token_id=2
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(model: Path) -> Path:
    """The first instructions of a real file."""
    if not ALPACA.exists():
        pytest.skip(f"no instructions at {ALPACA}")
    path = model.with_name("rows.jsonl")
    path.write_text("\n".join(ALPACA.read_text(encoding="utf-8").splitlines()[:ROWS]), encoding="utf-8")
    return path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run a command that must succeed and return its JSON."""
    capfd.readouterr()
    code = cli.main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def own_perplexity(folder: Path, rows: Path) -> float:
    """Return the perplexity of the held-out rows by transformers' own loss, row by row."""
    loaded, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = count = 0.0
    for line in rows.read_text(encoding="utf-8").splitlines()[ROWS * 9 // 10 :]:
        row = json.loads(line)
        options = {"truncation": True, "max_length": 48, "return_tensors": "pt"}
        labels = tokenizer(text_target=row["response"], **options)["input_ids"]
        with torch.no_grad():
            loss = loaded(**tokenizer(row["instruction"], **options), labels=labels).loss
        total, count = total + loss.item() * labels.numel(), count + labels.numel()
    return math.exp(total / count)


def test_a_t5_is_pruned_on_instructions_and_loads_in_plain_transformers(
    model: Path, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small"
    where = ("--model", str(model), "--data", str(rows), "--output", str(output))
    report = run(capfd, "prune", *where, "--ratio", "0.5", "--recipe", "best", *TRAINING)
    assert (report["task"], report["metric"]) == ("seq2seq", "perplexity")
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.02)
    kept = report["units"]["decoder.block"]["kept"]
    assert report["units"]["encoder.block"] == {"kind": "attention", "dense": 4, "kept": kept}
    loaded = AutoModelForSeq2SeqLM.from_pretrained(output)
    assert loaded.config.num_heads == report["units"]["encoder.block"]["kept"]
    assert loaded.num_parameters() == report["parameters"]["pruned"]
    assert loaded.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4).shape[0] == 1
    measured = report["perplexity"]
    assert measured["dense"] == pytest.approx(own_perplexity(model, rows), rel=1e-4)
    assert measured["pruned"] == pytest.approx(own_perplexity(output, rows), rel=1e-4)
    assert not measured["protocol"]["shifted"]
    assert measured["tokens"] == measured["protocol"]["targets"]


def test_heads_that_differ_between_the_stacks_are_saved_with_code(
    model: Path, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "uneven"
    where = ("--model", str(model), "--data", str(rows), "--output", str(output))
    report = run(capfd, "prune", *where, "--ratio", "0.5", "--allocation", "global", "--teacher", "copy", *TRAINING)
    assert report["saved_as"]["model_type"] == "loraprune_t5"
    assert len({units["kept"] for units in report["units"].values()}) > 2
    again = run(capfd, "evaluate", "--model", str(output), "--data", str(rows), *SHORT)
    assert again["models"][str(output)]["metric"] == "perplexity"


def test_both_stacks_are_described_and_timed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(capfd, "inspect", "--model", str(model))
    assert found["layers"] == 4
    assert {kind["where"]: (kind["groups"], kind["units"]) for kind in found["kinds"]} == {
        "encoder.block": (1, 4),
        "encoder.block.*.layer.*.DenseReluDense": (2, 64),
        "decoder.block": (1, 4),
        "decoder.block.*.layer.*.EncDecAttention": (2, 4),
        "decoder.block.*.layer.*.DenseReluDense": (2, 64),
    }
    assert sum(kind["parameters"] for kind in found["kinds"]) == found["prunable"]
    assert run(capfd, "plan", "--model", str(model), "--heads", "2", "--ffn", "32")["shapes"] == {
        "num_heads": 2,
        "d_ff": 32,
    }
    timed = run(capfd, "benchmark", "--model", str(model), "--length", "16", "--tokens", "4", "--repeats", "1")
    assert timed["rows"][str(model)]["decode_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"source": "a", "answer": "b"}, ("columns found: source, answer", "`target`")),
        ({"source": "a", "target": ""}, ("line 1", "the target is empty")),
        ({"text": "a"}, ("it holds text", "`source` and `target`")),
    ],
)
def test_rows_without_targets_end_in_one_line(
    model: Path, tmp_path: Path, row: dict[str, str], words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    check_refused(capfd, model, path, words)


def test_a_model_that_does_not_say_how_targets_begin_is_refused(
    model: Path, tmp_path: Path, copied: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    other = copied(model)
    values = json.loads((other / "config.json").read_text(encoding="utf-8"))
    del values["decoder_start_token_id"]
    (other / "config.json").write_text(json.dumps(values), encoding="utf-8")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"source": "a", "target": "b"}) + "\n", encoding="utf-8")
    check_refused(capfd, other, path, ("decoder_start_token_id", "add it"))


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Return the function that copies a folder beside the test's files."""

    def copy(folder: Path) -> Path:
        other = tmp_path / "copy"
        other.mkdir()
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        return other

    return copy


def check_refused(capfd: pytest.CaptureFixture[str], model: Path, data: Path, words: tuple[str, ...]) -> None:
    """Check that a run ends with exit code 2 and one line, and leaves nothing."""
    output = data.with_name("out")
    capfd.readouterr()
    code = cli.main(["prune", "--model", str(model), "--data", str(data), "--output", str(output), *TRAINING])
    err = capfd.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not output.exists()
