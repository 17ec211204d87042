"""`--vocabulary` on the command line: what is refused, and what `inspect` and `plan` answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from loraprune import cli
from tests.cli.cases import Case, refused, run
from tests.data.images.conftest import save_classifier, write_images
from tests.samples import VOCABULARY, save_tiny

TOKENS = 259
"""of the tokenizer of the good model: bytes and three special tokens, all of which must stay"""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "100",
            [f"--vocabulary 100: bytes or characters, special and added tokens alone are {TOKENS}", "give at least"],
        ),
        ("300", [f"--vocabulary 300: the model has {TOKENS} tokens; give fewer, or leave it out"]),
        ("0", ["--vocabulary 0: `data` or a number of tokens is needed, such as 16000"]),
        ("-5", ["--vocabulary -5: `data` or a number"]),
        ("1.5", ["--vocabulary 1.5: `data` or a number"]),
        ("texts", ["--vocabulary texts: `data` or a number"]),
        ("16k", ["--vocabulary 16k: `data` or a number"]),
    ],
)
def test_a_wrong_value(value: str, words: list[str], case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case.arguments(vocabulary=value), capfd, *words, root=case.root)


def test_rounds_share_one_vocabulary(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    refused(
        case.arguments(vocabulary="data", rounds="2"),
        capfd,
        "--rounds 2 --vocabulary data",
        "cut it first",
        root=case.root,
    )


def test_a_model_of_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = save_classifier(tmp_path / "model"), write_images(tmp_path / "images")
    words = "this model reads no text; leave it out"
    wrong = [
        "prune",
        "--model",
        str(model),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "out"),
        "--vocabulary",
        "data",
    ]
    refused(wrong, capfd, f"--vocabulary data: {words}", root=tmp_path)
    refused(["plan", "--model", str(model), "--vocabulary", "20"], capfd, f"--vocabulary 20: {words}")
    assert run(capfd, "inspect", "--model", str(model))["vocabulary"] is None


def test_plan_needs_a_number_that_the_model_has(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "--model", str(case.model), "--vocabulary"]
    refused([*plan, "data"], capfd, "--vocabulary data: `plan` reads no data; give a number of tokens")
    refused([*plan, "265"], capfd, "--vocabulary 265: the model has 264 tokens")
    refused([*plan, "2"], capfd, "--vocabulary 2:", "alone are 3")


def test_plan_says_what_a_smaller_vocabulary_saves(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "--model", str(case.model), "--ratio", "0.5"]
    whole, cut = (run(capfd, *plan, *more) for more in ([], ["--vocabulary", "260"]))
    assert (whole["vocabulary"], cut["vocabulary"]) == (None, 260)
    assert whole["parameters"]["dense"] == cut["parameters"]["dense"]
    assert whole["parameters"]["pruned"] - cut["parameters"]["pruned"] == (VOCABULARY - 260) * 2 * 32  # untied
    assert cli.main([*plan, "--vocabulary", "260"]) == 0
    assert "260 tokens" in capfd.readouterr().out


@pytest.mark.parametrize("tied", [False, True])
def test_inspect_says_what_the_vocabulary_takes(tied: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=tied)
    found = run(capfd, "inspect", "--model", str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    assert found["vocabulary"] == {"tokens": VOCABULARY, "parameters": sum(weight.numel() for weight in layers)}
    assert found["vocabulary"]["parameters"] == (1 if tied else 2) * VOCABULARY * 32
    assert cli.main(["inspect", "--model", str(folder)]) == 0
    assert "--vocabulary removes tokens" in " ".join(capfd.readouterr().out.split())
