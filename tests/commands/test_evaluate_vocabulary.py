"""`evaluate` compares models of different tokenizers by bits per byte, and does not pair rows of different texts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loraprune import cli
from loraprune.commands.evaluate import evaluate
from loraprune.config.commands import EvaluateConfig
from loraprune.pipeline import prune
from loraprune.reporting.html.page import windows
from tests.models.vocabulary.trained import save_inputs
from tests.pipeline.cases import prune_config

WORDS = "the perplexities cannot be compared; compare bits per byte"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, the same with fewer tokens, a text of the kept tokens and another one."""
    root = save_inputs(tmp_path_factory.mktemp("vocabulary"))
    changes = {"steps": 0, "ratio": 0.0, "eval": str(root / "other.txt")}
    prune(prune_config(root, root / "cut", vocabulary="data", **changes))
    return root


def options(root: Path, text: str, **changes: object) -> EvaluateConfig:
    return EvaluateConfig(
        model=str(root / "cut"), against=str(root / "model"), data=str(root / text), length=32, device="cpu", **changes
    )  # type: ignore[arg-type]


def test_a_text_in_other_tokens_is_compared_by_its_bytes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(options(root, "other.txt"))
    [entry] = found.values["measurements"]
    dense, cut = (entry["models"][str(root / name)] for name in ("model", "cut"))
    for one in (dense, cut):
        assert one["bits_per_byte"] == pytest.approx(one["nll"] * one["tokens_per_byte"] / math.log(2))
    assert cut["tokens_per_byte"] > dense["tokens_per_byte"]
    assert cut["bits_per_byte"] / dense["bits_per_byte"] != pytest.approx(cut["nll"] / dense["nll"], rel=0.01)
    assert entry["difference"] is None
    assert WORDS in caplog.text
    assert all("bits a byte" in cell for row in windows(found.values) for cell in row[3:])


def test_as_many_rows_of_other_texts_are_not_paired(root: Path) -> None:
    [entry] = evaluate(options(root, "other.txt", rows=4)).values["measurements"]
    assert len({one["tokens"] for one in entry["models"].values()}) == 1
    assert entry["difference"] is None


def test_a_text_of_kept_tokens_is_paired_by_row(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(options(root, "text.txt"))
    [entry] = found.values["measurements"]
    assert WORDS not in caplog.text
    dense, cut = (entry["models"][str(root / name)] for name in ("model", "cut"))
    assert cut["tokens_per_byte"] == dense["tokens_per_byte"]
    # The softmax has fewer tokens, so that the kept ones are more likely.
    assert entry["difference"]["value"] == pytest.approx(cut["nll"] - dense["nll"], abs=1e-6)
    assert entry["difference"]["value"] < 0
    assert not any("bits a byte" in cell for row in windows(found.values) for cell in row)


def test_the_table_has_bits_per_byte(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models = ["--model", str(root / "cut"), "--against", str(root / "model")]
    assert cli.main(["evaluate", *models, "--data", str(root / "other.txt"), "--length", "32", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "bits a byte" in " ".join(out.split())
    assert "difference" not in out
