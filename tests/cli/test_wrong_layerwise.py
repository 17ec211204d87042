"""One clear line for everything that can be wrong with a layer-wise folder, and no code of it is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from loraprune.plan import Plan
from tests.cli.cases import KEPT, Case, refused, run


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
    "base type without a language model": (lambda f: edit_config(f, model_type="loraprune_vit"), ["preprocessor_config.json is missing"]),
    "no record": (lambda f: edit_config(f, loraprune=None), ["`loraprune`", "config.json"]),
    "record of another model": (
        lambda f: edit_record(f, lambda r: r["shapes"].update({"layers.7.mlp.up_proj.weight": [8, 32]})),
        ["no module 'layers.7.mlp.up_proj'"],
    ),
    "record that does not fit the weights": (
        lambda f: edit_record(f, lambda r: r["shapes"].update({"layers.0.mlp.up_proj.weight": [25, 32]})),
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
    lines = 2 if "without a language model" in what else 1  # no images, and nothing that would read them
    refused(evaluate, capfd, *words, root=case.root, lines=lines)
    refused(case.arguments(model=str(layerwise)), capfd, root=case.root, lines=lines + (lines > 1))  # its record, too
    if "record of" in what or "no record" in what:
        refused(["inspect", "--model", str(layerwise)], capfd, root=case.root)


@pytest.mark.parametrize("flag", [[], ["--trust-remote-code"]])
def test_code_in_the_folder_is_never_run(
    flag: list[str], layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    """So a folder without its modelling file works, and one that points elsewhere or holds other code does no harm."""
    mark = case.root / "ran"
    evil = f"open({str(mark)!r}, 'w').close()\n"
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
    exec(evil)
    assert mark.exists()  # the control


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
