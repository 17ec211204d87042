"""Any models in one table: bare words on the command line, figures that are the models' own, files where a folder is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.commands import compare_models
from loraprune.config.commands import CompareModelsConfig
from loraprune.errors import ConfigError
from tests.cli.cases import refused
from tests.samples import save_tiny, tiny_llama, write_text

SHORT = ["--length", "16", "--tokens", "2", "--repeats", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, width in (("a|b", 64), ("_small", 32), ("tiny", 16)):
        save_tiny(root / name, intermediate_size=width)
    write_text(root / "text.txt", 40)
    return root


def test_three_models_stand_in_one_table(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(root / name) for name in ("a|b", "_small", "tiny")]
    arguments = ["compare-models", *names, "--data", str(root / "text.txt"), "--output", str(tmp_path / "out"), *SHORT]
    assert cli.main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["names"] == names == list(values["speed"]["rows"])
    rows = [values["speed"]["rows"][name] for name in names]
    assert [row["parameters"] for row in rows] == [
        tiny_llama(intermediate_size=width).num_parameters() for width in (64, 32, 16)
    ]
    assert [row["file_bytes"] for row in rows] == [(Path(name) / "model.safetensors").stat().st_size for name in names]
    assert rows[0]["macs_per_token"] > rows[1]["macs_per_token"] > rows[2]["macs_per_token"]
    assert values["speed"]["protocol"]["order"] == "in turns"
    assert len({values["perplexity"][name]["perplexity"] for name in names}) == 3
    table = (tmp_path / "out" / "table.md").read_text()
    assert [line.count("|") - line.count("\\|") for line in table.splitlines()[:5]] == [
        len(compare_models.COLUMNS) + 1
    ] * 5
    assert (tmp_path / "out" / "plots" / "models.png").stat().st_size > 5000
    assert "<svg" in (tmp_path / "out" / "plots" / "models.svg").read_text()


def test_without_data_and_output_the_table_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare-models", str(root / "tiny"), str(root / "_small"), *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "MACs" in shown
    assert "models" in shown


def test_every_model_is_in_the_legend_of_the_plot(root: Path) -> None:
    row = {"parameters": 5, "prefill_seconds": {"1": {"median": 0.1}}}
    names = ["_small", "$x_1$", "long/" * 20]
    figure = compare_models.plot(
        {"names": names, "metric": "perplexity", "perplexity": {}, "speed": {"rows": dict.fromkeys(names, row)}}
    )
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [" _small", "$x_1$", f"…{names[2][-35:]}"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"models": ["a"]}, "--models a: at least two models are needed"), ({"models": ["a", "b", "a"]}, "--models a: given twice"),
     ({"models": ["a", "b"], "length": 1}, "--length 1"), ({"models": ["a", "b"], "repeats": 0}, "--repeats 0")],
)  # fmt: skip
def test_wrong_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CompareModelsConfig(**changes)


def test_a_missing_folder_is_one_line_and_nothing_is_written(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare-models", str(root / "tiny"), str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    refused(arguments, capfd, str(tmp_path / "none"), "no such folder", root=tmp_path)
