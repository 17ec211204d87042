"""`--base streamed` gives the folder of a run in memory, with one layer at a time in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from loraprune import pipeline
from loraprune.errors import ConfigError
from loraprune.models import loading, streaming
from tests.pipeline.cases import check_loads_anywhere, prune_config, read_report
from tests.samples import save_tiny

LAYERS = 4
OPTIONS: dict[str, Any] = {
    "steps": 0, "criterion": "wanda", "schedule": "oneshot", "allocation": "uniform", "compensate": True, "end_to_end": 0,
    "score_steps": "remembered", "base": "streamed",
}  # fmt: skip


def prune(inputs: Path, output: Path, **changes: Any) -> Path:
    model = save_tiny(output.with_name(f"{output.name}-dense"), num_hidden_layers=LAYERS)
    pipeline.prune(prune_config(inputs, output, **(OPTIONS | {"model": str(model)} | changes)))
    return output


@pytest.fixture(scope="module")
def folders(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the same run in memory and streamed."""
    place = tmp_path_factory.mktemp("both")
    return {base: prune(inputs, place / base, base=base) for base in ("memory", "streamed")}


def test_units_weights_and_files_are_the_same(folders: dict[str, Path]) -> None:
    reports = {base: read_report(folder) for base, folder in folders.items()}
    units = {base: {name: group["kept"] for name, group in each["units"].items()} for base, each in reports.items()}
    assert units["streamed"] == units["memory"]
    weights = {base: load_file(folder / "model.safetensors") for base, folder in folders.items()}
    dense = load_file(folders["memory"].with_name("memory-dense") / "model.safetensors")
    torch.testing.assert_close(weights["streamed"], weights["memory"], rtol=1e-4, atol=1e-6)
    assert sum(tensor.numel() for tensor in weights["streamed"].values()) < 0.8 * sum(t.numel() for t in dense.values())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (folders["streamed"] / name).read_text() == (folders["memory"] / name).read_text(), name
    assert {file.name for file in folders["streamed"].iterdir()} == {file.name for file in folders["memory"].iterdir()}


def test_recovery_and_quality_are_the_same_and_the_folder_is_verified(folders: dict[str, Path]) -> None:
    reports = {base: read_report(folder) for base, folder in folders.items()}
    (streamed,), (memory,) = (reports[base]["recovery"] for base in ("streamed", "memory"))
    assert streamed["refits"].keys() == memory["refits"].keys()
    assert len(streamed["refits"]) == 2 * LAYERS
    for name, gain in memory["refits"].items():
        assert streamed["refits"][name] == pytest.approx(gain, rel=1e-3), name
    assert streamed["errors"] == pytest.approx(memory["errors"], rel=1e-3)
    assert streamed["errors"]["refitted"] < streamed["errors"]["removed"]
    for name in ("dense", "pruned"):
        assert reports["streamed"]["perplexity"][name] == pytest.approx(reports["memory"]["perplexity"][name], rel=1e-4)
    verification = reports["streamed"]["verification"]
    assert not verification["failed"]
    assert max(verification["masked_vs_sliced"], verification["sliced_vs_reloaded"]) <= verification["tolerance"]
    check_loads_anywhere(folders["streamed"])


def weights_in_memory(model: nn.Module) -> int:
    """Return the bytes that the weights of a model's layers take now."""
    inside = (each for name, each in model.named_parameters() if ".layers." in name and "lora_" not in name)
    return sum(each.untyped_storage().nbytes() for each in inside if each.untyped_storage().nbytes() > each.itemsize)


def most_in_memory(inputs: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> float:
    """Return the most bytes of layers' weights that a streamed run holds, counted at every read, relative to one dense layer."""
    models: list[weakref.ref[nn.Module]] = []
    most = [0]
    load, fetch = streaming.load_streamed, streaming._fetch

    def noted(*arguments: Any, **options: Any) -> Any:
        found = load(*arguments, **options)
        models.append(weakref.ref(found[0]))
        return found

    def counted(*arguments: Any, **options: Any) -> Any:
        used = fetch(*arguments, **options)
        live = [model for each in models if (model := each()) is not None]
        most[0] = max(most[0], sum(map(weights_in_memory, live)))
        return used

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_streamed", noted)
        patch.setattr(streaming, "_fetch", counted)
        prune(inputs, output, **changes)
    dense = AutoModelForCausalLM.from_pretrained(output.with_name(f"{output.name}-dense"))
    return most[0] / (weights_in_memory(dense) / LAYERS)


def test_one_layer_at_a_time_is_in_memory(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_in_memory(inputs, tmp_path / "out", monkeypatch, max_shard_size="20KB") == pytest.approx(1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with monkeypatch.context() as patch:  # the control: layers stay once they are read
        patch.setattr(streaming, "_drop", lambda _: None)
        assert most_in_memory(inputs, tmp_path / "control", monkeypatch) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10}, "--base streamed --steps 10: training needs the whole model in memory; give --steps 0"),
        ({"steps": None}, "--base streamed: training needs the whole model"),
        ({"allocation": "measured"}, "--base streamed --allocation measured: .* use auto or uniform or"),
        ({"criterion": "lora"}, "--base streamed --criterion lora: .* use auto or wanda or flap"),
        ({"local": 5}, "--base streamed --local 5: it needs the whole model in memory; leave one of the two out"),
        ({"end_to_end": 5}, "--base streamed --end-to-end 5: it needs the whole model"),
        ({"depth": True, "allocation": "balanced"}, "--base streamed --depth true: it needs the whole model"),
        ({"shrink": False}, "--base streamed --shrink false: it needs the whole model"),
    ],
)
def test_options_that_need_the_whole_model_are_refused(
    inputs: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prune_config(inputs, tmp_path / "out", **(OPTIONS | changes))
    prune_config(inputs, tmp_path / "out", **OPTIONS)  # the control


def test_what_is_left_out_is_said(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "loraprune")
    options = OPTIONS | {"end_to_end": None, "allocation": "auto", "rows": 4, "html": True}
    prune(inputs, tmp_path / "out", **options)
    assert "left out, because they need the whole model: end-to-end reconstruction" in caplog.text
    assert (tmp_path / "out" / "report.html").is_file()
    report = read_report(tmp_path / "out")
    assert "end_to_end" not in report["recovery"][0]["losses"]
