"""Wrong patterns and damaged results are refused, and nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from loraprune import LoRAPruneConfig, merge
from loraprune.config.commands import PlanConfig
from loraprune.config.sparsity import parse_pattern
from loraprune.errors import ConfigError, NumericsError, VerificationError
from loraprune.pruning.sparsity.saved import count_saved
from tests.cli.cases import refused
from tests.pruning.sparsity.cases import run, sparsifier

WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "no pattern": ({"sparsity": "3:2"}, ["3:2", "0 < N < M"]),
    "nothing kept": ({"sparsity": "0:4"}, ["0:4", "0 < N < M"]),
    "unknown word": ({"sparsity": "unstructred"}, ["unstructred", "did you mean 'unstructured'"]),
    "blocks that do not fit": ({"sparsity": "3:5"}, ["q_proj", "32 inputs", "unstructured"]),
    "heads": ({"sparsity": "2:4", "heads": "2"}, ["--sparsity 2:4 --heads 2", "leave one"]),
    "ffn": ({"sparsity": "2:4", "ffn": "16"}, ["--ffn 16", "leave one"]),
    "parameters": ({"sparsity": "unstructured", "parameters": "30k"}, ["--parameters 30k", "leave one"]),
    "allocation": ({"sparsity": "2:4", "allocation": "balanced"}, ["--allocation balanced", "leave one"]),
    "another ratio": ({"sparsity": "2:4", "ratio": "0.3"}, ["--ratio 0.3", "0.5", "leave --ratio out"]),
    "gate criterion": (
        {"sparsity": "2:4", "criterion": "gate"},
        ["--criterion gate", "single weights", "lora, magnitude, random, sketch"],
    ),
    "true gradient": ({"sparsity": "2:4", "criterion": "gradient"}, ["--criterion gradient", "choose one of lora"]),
    "unknown criterion": ({"sparsity": "2:4", "criterion": "magnitud"}, ["did you mean 'magnitude'"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_one_line_and_no_folder(
    changes: dict[str, str], words: list[str], inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"model": inputs / "model", "data": inputs / "text.txt", "output": tmp_path / "out"} | changes
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    refused(["prune", *arguments, "--steps", "2", "--device", "cpu"], capfd, *words, root=tmp_path)


def test_a_pattern_that_yaml_takes_for_a_number_is_explained() -> None:
    value = yaml.safe_load("sparsity: 2:4")["sparsity"]
    with pytest.raises(ConfigError, match=r'^sparsity: .* reads 2:4 as 124, .*: write "2:4"$'):
        LoRAPruneConfig(sparsity=value)


def test_what_fits_is_not_refused() -> None:
    for changes in ({"ratio": 0.75, "sparsity": "1:4"}, {"ratio": 0.5, "sparsity": "4:8"}, {"sparsity": "1:4"}):
        LoRAPruneConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing to plan"):
        PlanConfig(model="m", sparsity="2:4")


def test_scores_that_tell_nothing_are_refused() -> None:
    result = sparsifier()
    with pytest.raises(NumericsError, match="they cannot be ranked"):
        result.remove(1.0)


def test_a_score_that_is_no_number_is_reported() -> None:
    result = sparsifier()
    assert result.score()  # the control
    assert result.problem() is None
    next(p for name, p in result.model.named_parameters() if "1.mlp.up_proj.lora_B" in name).grad[3] = torch.nan  # type: ignore[index]
    assert not result.score()
    assert result.problem() == "a score of 'model.layers.1.mlp.up_proj' is nan"


def test_a_number_where_a_zero_was_trained_leaves_an_unverified_folder(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = merge.save_model

    def damaged(model: Any, folder: Path, **options: Any) -> None:
        save(model, folder, **options)
        tensors = load_tensors(folder / "model.safetensors")
        weight = tensors["model.layers.0.mlp.up_proj.weight"]
        weight[weight == 0] = 1e-30  # invisible in the logits
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merge, "save_model", damaged)
    with pytest.raises(VerificationError, match=r"up_proj.*where it is masked"):
        run(inputs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]


def test_a_block_with_too_few_zeros_and_a_missing_projection_are_noticed(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    save_file({"a.weight": weight}, tmp_path / "model.safetensors")
    pattern = parse_pattern("2:4")
    with pytest.raises(VerificationError, match="'a' has 3 non-zero weights in a block of 4, not 2:4"):
        count_saved(tmp_path, {"a": torch.ones(2, 4, dtype=torch.bool)}, pattern, transposed=False)
    assert count_saved(tmp_path, {"a": weight != 0}, parse_pattern("unstructured"), transposed=False).zeros == 3
    with pytest.raises(VerificationError, match="'b' is missing"):
        count_saved(tmp_path, {"b": weight != 0}, pattern, transposed=False)
