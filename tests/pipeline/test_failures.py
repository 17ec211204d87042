"""Outputs in use, and what goes wrong on the way: nothing half-written, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from loraprune import merge, pipeline
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import CheckpointError, ConfigError, VerificationError
from loraprune.families import find_groups
from loraprune.groups import Group, Side
from loraprune.models.adapters import linear_paths
from loraprune.plan import Plan
from loraprune.pruning import verify
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.verify import UnitSums
from tests.pipeline.cases import (
    prune_config,
)
from tests.samples import tiny_llama


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_existing_output_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="--overwrite"):
        prune_config(inputs, tmp_path / "out")


def test_a_run_that_has_ended_has_nothing_to_resume(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for ended in (False, True):
        if ended:
            (tmp_path / "out" / "report.json").write_text("{}")
        with pytest.raises(ConfigError) as refused:
            prune_config(inputs, tmp_path / "out", resume=True)
        assert ("its run has ended, nothing is left to resume" in str(refused.value)) is ended


def test_output_that_appears_meanwhile_is_refused_too(inputs: Path, tmp_path: Path) -> None:
    config = prune_config(inputs, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="--overwrite"):
        pipeline.prune(config)


def test_overwrite_replaces_what_a_run_wrote_and_keeps_the_rest(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "old").write_text("old")
    pipeline.prune(prune_config(inputs, tmp_path / "out", overwrite=True, steps=2))
    assert (tmp_path / "out" / "old").read_text() == "old"  # no run wrote it
    assert json.loads((tmp_path / "out" / "report.json").read_text())["job"] == "prune"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_leaves_a_folder_that_no_run_wrote(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="not written by loraprune"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", overwrite=True, steps=2))
    assert tree(tmp_path) == before


def test_plan_that_names_other_units_is_noticed(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = merge.unit_sums

    def shifted(
        model: nn.Module, groups: Sequence[Group], *, plan: Plan | None = None, changed: Sequence[Side]
    ) -> UnitSums:
        if plan is None:
            return real(model, groups, changed=changed)
        mirrored = {
            name: tuple(plan.units[name] - 1 - unit for unit in reversed(kept)) for name, kept in plan.kept.items()
        }
        return real(model, groups, plan=Plan(plan.units, mirrored), changed=changed)

    monkeypatch.setattr(merge, "unit_sums", shifted)
    with pytest.raises(VerificationError, match="does not hold the units"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    assert not (tmp_path / "out").exists()


def test_failed_overwrite_leaves_the_old_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "old").write_text("old")
    before = tree(tmp_path)
    config = prune_config(inputs, tmp_path / "out", overwrite=True, steps=2)
    monkeypatch.setattr(verify, "difference", lambda one, other: 1.0)  # the merged model disagrees
    monkeypatch.setattr(merge, "rounding_noise", lambda model, probe: None)
    with pytest.raises(VerificationError, match=r"out was not written; the model is in .*out\.unverified"):
        pipeline.prune(config)
    left = tree(tmp_path)
    assert {name: data for name, data in left.items() if name.startswith("out/")} == before
    failed = json.loads(left["out.unverified/report.json"])["verification"]["failed"]
    assert [sentence.partition(":")[0] for sentence in failed] == [
        "adapted and merged model", "masked and sliced model", "sliced and reloaded model"
    ]  # fmt: skip
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "out.unverified"
    )  # whole, though it may differ from the trained model


def test_failure_after_saving_keeps_the_model_under_another_name(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pipeline, "write_folder", fail)
    for name in ("out.unverified", "out.unverified-2"):  # a second failure leaves the work of the first one alone
        with pytest.raises(VerificationError, match="could not be verified: OSError: disk full; out was not written"):
            pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
        AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.unverified", "out.unverified-2"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_damaged_on_the_way_to_disk_are_noticed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    save = merge.save_model

    def damaged(model: Any, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[:, 0] *= (
                1.1  # less than what rounding to bfloat16 does to the logits
            )
            save(model, *arguments, **options)

    monkeypatch.setattr(merge, "save_model", damaged)
    with pytest.raises(VerificationError, match="sliced and reloaded model: logits differ"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2, dtype=dtype))
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]


def test_a_variant_that_is_not_cut_exactly_is_refused_before_training() -> None:
    paths = linear_paths(find_groups(tiny_llama().config))
    for options, words in (
        ({"init_lora_weights": "mica"}, "MiCA.*not cut exactly: use one of lora, rslora, dora"),
        ({"use_dora": True}, ""),  # the control
    ):
        adapted = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=paths, **options))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=words) if words else nullcontext():
            Pruner(adapted, LoRAPruneConfig())
    adapted.add_adapter("reference", LoraConfig(r=2, target_modules=paths, use_dora=True))
    with pytest.raises(ConfigError, match="two adapters with DoRA"):
        Pruner(adapted, LoRAPruneConfig())
