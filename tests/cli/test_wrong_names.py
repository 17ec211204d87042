"""A name that leads nowhere is known before torch is imported; models in other forms are named with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraprune.errors import CheckpointError
from loraprune.models import loading
from tests.cli.cases import Case, python, refused

RUN = """
import sys
from loraprune import cli
code = cli.main(sys.argv[1:])
assert 'torch' not in sys.modules and 'transformers' not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--model", "./none", "--data", "stdlib", "--output", "{}/out"],
        ["prune", "--model", "./none", "--data", "none.jsonl", "--output", "{}/out", "--rank", "0"],
        ["plan", "--model", "./none"], ["inspect", "--model", "./none"], ["evaluate", "--model", "org/name", "--data", "none.txt"],
    ],
    ids=lambda arguments: " ".join(arguments[:5]),
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_told_without_torch(arguments: list[str], tmp_path: Path) -> None:
    done = python("-c", RUN, *(part.format(tmp_path) for part in arguments))
    assert done.returncode == 2, done.stderr
    assert "no such f" in done.stderr
    assert ("--rank 0" in done.stderr) == ("--rank" in arguments)


def test_a_gguf_file_is_told_what_to_name_instead(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    (case.root / "m.gguf").write_bytes(b"GGUF")
    refused(case.arguments(model=str(case.root / "m.gguf")), capfd, "GGUF", "16- or 32-bit", root=case.root)


def test_an_adapter_is_told_how_it_is_merged(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    (case.root / "a").mkdir()
    (case.root / "a" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    refused(case.arguments(model=str(case.root / "a")), capfd, "load org/base", "merge_and_unload", root=case.root)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, no_network: list[object]) -> None:
    asked: list[str] = []

    def model_info(_: Any, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading.HfApi, "model_info", model_info)
    with pytest.raises(CheckpointError, match="--model org/name: cannot be loaded"):
        loading.load_config("org/name")
    assert asked == ["org/name"]
    assert no_network == []
