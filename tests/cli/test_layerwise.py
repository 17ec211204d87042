"""Layer-wise folders on the command line: they work like others, can be padded, and every damage is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraprune import cli
from loraprune.checkpoint import save_model
from loraprune.families import find_groups
from loraprune.loading import from_pretrained
from loraprune.plan import Plan
from loraprune.surgery import slice_
from tests.cli.cases import Case, refused
from tests.samples import byte_tokenizer, tiny_llama

KEPT = {"model.layers.0.self_attn": (1,), "model.layers.1.self_attn": (0, 1),
        "model.layers.0.mlp": tuple(range(0, 48, 2)), "model.layers.1.mlp": tuple(range(40))}  # fmt: skip


@pytest.fixture
def layerwise(case: Case) -> Path:
    """Return a folder as `prune` leaves it, with other widths in each of its two layers."""
    model = tiny_llama()
    config, groups = tiny_llama().config, find_groups(model.config)
    plan = Plan({group.name: group.units for group in groups}, KEPT)
    slice_(model, groups, plan.kept)
    folder = case.root / "layerwise"
    save_model(model, folder, config=config, groups=groups, counts={name: len(kept) for name, kept in KEPT.items()})
    byte_tokenizer().save_pretrained(folder)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return folder


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run a command line that works and return its JSON."""
    capfd.readouterr()
    code = cli.main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    values: dict[str, Any] = json.loads(out)
    return values


def test_looking_and_judging_need_no_flag(layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(layerwise)]
    found = run(capfd, "inspect", *model)
    assert found["family"] == "loraprune_llama"
    assert [kind["units"] for kind in found["kinds"]] == [[1, 2], [24, 40]]
    assert "trust_remote_code" in found["formats"]["layerwise"]
    assert found["parameters"] == from_pretrained(layerwise).num_parameters()
    measured = run(capfd, "evaluate", *model, "--data", str(case.text), "--length", "32", "--device", "cpu")
    assert measured["models"][str(layerwise)]["perplexity"] > 1
    timing = ["--batches", "[1]", "--length", "16", "--tokens", "4", "--repeats", "1", "--device", "cpu"]
    speed = run(capfd, "benchmark", *model, "--against", str(case.model), *timing)
    assert speed["ratios"][str(layerwise)]["parameters"] < 1


def test_tables_show_layerwise_models_and_exports(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", "--model", str(layerwise)]) == 0
    assert "loads with modelling code" in capfd.readouterr().out
    assert cli.main(["export", "--model", str(layerwise), "--output", str(case.output)]) == 0
    assert "source vs exported" in capfd.readouterr().out
    equal = ["--heads", "2", "--ffn", "16"]
    assert cli.main(["plan", "--model", str(layerwise), *equal]) == 0
    assert "saved as" in capfd.readouterr().out


def test_finetuning_keeps_the_widths_and_says_how_to_load_the_result(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(capfd, *case.arguments("finetune", model=str(layerwise)))
    assert report["saved_as"]["model_type"] == "loraprune_llama"
    assert report["saved_as"]["load"].startswith("loraprune.from_pretrained(folder), or ")
    assert report["verification"]["sliced_vs_reloaded"] <= report["verification"]["tolerance"]
    assert report["parameters"]["pruned"] == from_pretrained(layerwise).num_parameters()
    assert "trust_remote_code=True)" in (case.output / "README.md").read_text(encoding="utf-8")
    assert (case.output / "modeling_loraprune.py").is_file()


def test_pruning_on_to_equal_widths_gives_a_stock_model(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(capfd, *case.arguments(model=str(layerwise)), "--heads", "2", "--ffn", "16")
    assert report["saved_as"]["model_type"] == "llama"
    assert "without a flag" in report["saved_as"]["load"]
    assert AutoModelForCausalLM.from_pretrained(case.output).num_parameters() == report["parameters"]["pruned"]
    shutil.rmtree(case.output)
    refused(case.arguments(model=str(layerwise), ratio="0.2"), capfd, "layers differ", root=case.root)


def test_the_padded_export_loads_with_no_flag(layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--model", str(layerwise), "--format", "padded", "--output", str(case.output)]
    found = run(capfd, *arguments)
    assert found["verification"]["source_vs_exported"] < 1e-5
    assert json.loads((case.output / "export.json").read_text())["format"] == "padded"
    padded = AutoModelForCausalLM.from_pretrained(case.output)
    dense = tiny_llama()
    assert padded.num_parameters() == dense.num_parameters()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        one, other = padded(input_ids=ids).logits, from_pretrained(layerwise)(input_ids=ids).logits
    torch.testing.assert_close(one, other)
    refused(arguments, capfd, "exists", "--overwrite", root=case.root)
    run(capfd, *arguments, "--overwrite")


def test_a_stock_folder_is_padded_too_and_keeps_its_precision(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, *case.arguments(), "--heads", "2", "--ffn", "16", "--dtype", "bfloat16")
    run(capfd, "export", "--model", str(case.output), "--output", str(case.root / "padded"))
    padded = AutoModelForCausalLM.from_pretrained(case.root / "padded")
    assert (padded.config.num_attention_heads, padded.config.intermediate_size) == (4, 64)
    assert padded.dtype == AutoModelForCausalLM.from_pretrained(case.output).dtype == torch.bfloat16


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "config.json").read_text())["loraprune"]
    change(record)
    edit_config(folder, loraprune=record)


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "unknown base type": (lambda f: edit_config(f, model_type="loraprune_lama"), ["'lama'", "did you mean 'llama'"]),
    "base type without a language model": (lambda f: edit_config(f, model_type="loraprune_vit"), ["'vit'", "causal"]),
    "no record": (lambda f: edit_config(f, loraprune=None), ["`loraprune`", "config.json"]),
    "record of another model": (
        lambda f: edit_record(f, lambda r: r["linears"].update({"model.layers.7.mlp.up_proj": [8, 32]})),
        ["no module 'model.layers.7.mlp.up_proj'"],
    ),
    "record that does not fit the weights": (
        lambda f: edit_record(f, lambda r: r["linears"].update({"model.layers.0.mlp.up_proj": [25, 32]})),
        ["wrong shape for model.layers.0.mlp.up_proj.weight"],
    ),
    "a tensor missing": (drop_tensor, ["lacks model.layers.1.mlp.up_proj.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_layerwise_folder_is_refused(
    what: str, layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[what]
    damage(layerwise)
    evaluate = ["evaluate", "--model", str(layerwise), "--data", str(case.text), "--length", "32"]
    refused(evaluate, capfd, *words, root=case.root)
    refused(case.arguments(model=str(layerwise)), capfd, root=case.root)
    if "record of" in what or "no record" in what:
        refused(["inspect", "--model", str(layerwise)], capfd, root=case.root)


@pytest.mark.parametrize("flag", [[], ["--trust-remote-code"]])
def test_code_in_the_folder_is_never_run(
    flag: list[str], layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    """So a folder without its modelling file works, and one that points elsewhere or holds other code does no harm."""
    mark = case.root / "ran"
    evil = f"open({str(mark)!r}, 'w')\n"
    (case.root / "elsewhere.py").write_text(evil)
    (layerwise / "modeling_loraprune.py").write_text(evil)
    inspect = ["inspect", "--model", str(layerwise), *flag]
    run(capfd, *inspect)
    edit_config(layerwise, auto_map={"AutoConfig": "../elsewhere.Config", "AutoModelForCausalLM": "../elsewhere.Model"})
    run(capfd, *inspect)
    (layerwise / "modeling_loraprune.py").unlink()
    run(capfd, *inspect)
    run(capfd, "evaluate", "--model", str(layerwise), "--data", str(case.text), "--length", "32", *flag)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "plan.json").unlink(), ["no plan.json"]),
        (lambda f: (f / "plan.json").write_text("{"), ["plan.json is malformed"]),
        (
            lambda f: (f / "plan.json").write_text(
                Plan(dict.fromkeys(KEPT, 64), KEPT | {"model.layers.0.mlp": (0,)}).to_json()
            ),
            ["keeps 1 units of 'model.layers.0.mlp', the model has 24"],
        ),
    ],
    ids=["no plan", "torn plan", "plan of another model"],
)
def test_a_folder_without_its_plan_cannot_be_padded(
    change: Callable[[Path], object],
    words: list[str],
    layerwise: Path,
    case: Case,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change(layerwise)
    refused(["export", "--model", str(layerwise), "--output", str(case.output)], capfd, *words, root=case.root)


def test_an_unknown_format_is_refused_with_the_known_ones(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--model", str(case.model), "--output", str(case.output), "--format", "paded"]
    refused(arguments, capfd, "format 'paded'", "did you mean 'padded'", root=case.root)
