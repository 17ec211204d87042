"""The main job on real files: what goes in, what stands in the folder that comes out, and what a stranger counts in it."""

from __future__ import annotations

import functools
import gc
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraprune import cli, pipeline
from loraprune.adapters import linear_paths
from loraprune.config import FinetuneConfig, LoRAPruneConfig, PruneConfig
from loraprune.errors import CheckpointError, ConfigError, VerificationError
from loraprune.families import find_groups
from loraprune.plan import Plan
from loraprune.pruner import Pruner
from loraprune.verify import UnitSums
from tests.samples import byte_tokenizer, save_tiny, tiny_llama, write_text

SHORT: dict[str, Any] = {"steps": 10, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu"}
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "report.json", "run.yaml",
         "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
STEP = 8
"""--round: the FFN width of every layer is a multiple of it"""

LOAD_AND_GENERATE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 12}
cached, plain = (model.generate(ids, use_cache=use, **settings)[0].tolist() for use in (True, False))
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss.item()
print(json.dumps({"cached": cached, "plain": plain, "loss": loss, "loraprune": "loraprune" in sys.modules,
                  "class": type(model).__name__, "parameters": model.num_parameters()}))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model")
    write_text(root / "text.txt", 200)
    return root


@pytest.fixture(scope="module")
def pruned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one pruning run to 50 %."""
    output = tmp_path_factory.mktemp("pruned") / "out"
    pipeline.prune(prune_config(inputs, output))
    return output


def prune_config(inputs: Path, output: Path, **changes: Any) -> PruneConfig:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    return PruneConfig(**(paths | SHORT | {"ratio": 0.5} | changes))


def read_report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return values


def shapes(folder: Path) -> dict[str, list[int]]:
    """Read tensor shapes from the bytes of a safetensors file alone: eight bytes of length, then JSON."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def count(folder: Path, *, prunable: bool = False) -> int:
    """Count the numbers in a weight file; `prunable` only those in projections of attention and FFN."""
    sizes = {name: functools.reduce(lambda a, b: a * b, shape, 1) for name, shape in shapes(folder).items()}
    return sum(size for name, size in sizes.items() if not prunable or "_proj." in name)


@functools.cache
def loaded_elsewhere(folder: Path) -> dict[str, Any]:
    """Load a folder and generate with it in a new process that has only transformers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_AND_GENERATE, str(folder)],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def check_loads_anywhere(folder: Path) -> None:
    found = loaded_elsewhere(folder)
    assert not found["loraprune"]
    assert found["cached"] == found["plain"]
    assert len(found["cached"]) >= 12
    assert found["parameters"] == read_report(folder)["parameters"]["pruned"]


def one_step(folder: Path, dense: Path) -> float:
    """Return the ratio that one rounding step of the FFN in every layer stands for."""
    widths = {name: shape for name, shape in shapes(dense).items() if "mlp" in name}
    each = sum(STEP * min(shape) for shape in widths.values())
    return each / count(dense, prunable=True)


# The folder


def test_pruned_folder_holds_what_is_promised(pruned: Path) -> None:
    assert set(FILES) | {"plan.json", "scores.safetensors"} <= {path.name for path in pruned.iterdir()}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in pruned.iterdir())
    assert [path.name for path in pruned.parent.iterdir()] == ["out"]  # nothing temporary is left beside it


def test_pruned_folder_loads_with_plain_transformers_and_generates(pruned: Path) -> None:
    check_loads_anywhere(pruned)
    assert loaded_elsewhere(pruned)["class"] == "LlamaForCausalLM"


def test_report_has_every_promised_key(pruned: Path) -> None:
    report = read_report(pruned)
    assert {
        "ratio_requested", "ratio_reached", "parameters", "perplexity", "verification", "wall_seconds", "total_seconds",
        "steps", "peak_memory_bytes", "seed", "versions",
    } <= report.keys()  # fmt: skip
    assert {"dense", "pruned", "prunable_dense", "prunable_pruned"} <= report["parameters"].keys()
    assert {"dense", "pruned", "protocol"} <= report["perplexity"].keys()
    assert {"masked_vs_sliced", "sliced_vs_reloaded"} <= report["verification"].keys()
    assert report["ratio_requested"] == 0.5
    assert report["steps"] == SHORT["steps"]
    assert report["seed"] == 0
    assert 0 < report["wall_seconds"] < report["total_seconds"]
    assert report["peak_memory_bytes"] > 0
    assert {"torch", "transformers", "peft", "loraprune"} <= report["versions"].keys()


def test_a_stranger_counts_what_the_report_says(pruned: Path, inputs: Path) -> None:
    report, dense = read_report(pruned), inputs / "model"
    parameters = report["parameters"]
    assert count(pruned) == parameters["pruned"]
    assert count(dense) == parameters["dense"]
    assert count(pruned, prunable=True) == parameters["prunable_pruned"]
    assert count(dense, prunable=True) == parameters["prunable_dense"]
    reached = 1 - count(pruned, prunable=True) / count(dense, prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - 0.5) <= one_step(pruned, dense)
    assert report["ratio_of_whole_model"] == pytest.approx(1 - count(pruned) / count(dense), abs=1e-12)


def test_widths_are_those_of_plan_config_and_weights(pruned: Path) -> None:
    plan, config, found = Plan.read(pruned), json.loads((pruned / "config.json").read_text()), shapes(pruned)
    for layer in range(2):
        channels = len(plan.kept[f"model.layers.{layer}.mlp"])
        heads = len(plan.kept[f"model.layers.{layer}.self_attn"])
        assert found[f"model.layers.{layer}.mlp.gate_proj.weight"] == [channels, 32]
        assert found[f"model.layers.{layer}.mlp.down_proj.weight"] == [32, channels]
        assert found[f"model.layers.{layer}.self_attn.k_proj.weight"] == [heads * 8, 32]
        assert config["intermediate_size"] == channels < 64
        assert channels % STEP == 0
        assert config["num_key_value_heads"] == heads
        assert config["num_attention_heads"] == 2 * heads
    assert read_report(pruned)["units"]["model.layers.0.mlp"] == {"dense": 64, "kept": config["intermediate_size"]}


def test_report_tells_quality_and_verification_apart(pruned: Path) -> None:
    report = read_report(pruned)
    assert report["perplexity"]["protocol"]["window_tokens"] == SHORT["length"]
    assert report["perplexity"]["pruned"] != report["perplexity"]["dense"]
    assert report["verification"]["masked_vs_sliced"] <= report["verification"]["tolerance"] == 1e-4
    assert 0 <= report["verification"]["sliced_vs_reloaded"] <= 1e-4


def test_run_yaml_repeats_the_run(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert cli.main(["prune", "--config", str(pruned / "run.yaml"), "--output", str(again), "--json"]) == 0
    assert (again / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_report(again)
    assert yaml.safe_load((again / "run.yaml").read_text()) == (
        yaml.safe_load((pruned / "run.yaml").read_text()) | {"output": str(again)}
    )


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "same"))
    pipeline.prune(prune_config(inputs, tmp_path / "other", seed=1))
    for name in ("model.safetensors", "plan.json", "scores.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (pruned / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (pruned / "model.safetensors").read_bytes()


def test_masked_training_ends_with_the_same_plan(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "masked", shrink=False, dropout=0.0))
    pipeline.prune(prune_config(inputs, tmp_path / "cut", dropout=0.0))
    assert (tmp_path / "masked" / "plan.json").read_text() == (tmp_path / "cut" / "plan.json").read_text()
    assert shapes(tmp_path / "masked") == shapes(pruned)


# Targets


def test_parameters_is_a_ceiling_reached_to_one_step(inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", parameters="27k"))
    report = read_report(tmp_path / "out")
    step = STEP * 3 * 32 * 2
    assert abs(count(tmp_path / "out") - 27_000) <= step
    assert report["ratio_requested"] is None
    assert report["target"] == {"parameters": "27k", "heads": None, "ffn": None}


@pytest.mark.parametrize(("heads", "ffn"), [(2, 40), (4, 24), (2, None), (None, 17)])
def test_heads_and_ffn_are_kept_exactly(heads: int | None, ffn: int | None, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", heads=heads, ffn=ffn, steps=3))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] == (heads or 4)
    assert config["num_key_value_heads"] == (heads or 4) // 2
    assert config["intermediate_size"] == (ffn or 64)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.7])
def test_other_ratios_are_reached_to_one_step(ratio: float, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", ratio=ratio, steps=3))
    report = read_report(tmp_path / "out")
    reached = 1 - count(tmp_path / "out", prunable=True) / count(inputs / "model", prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - ratio) <= one_step(tmp_path / "out", inputs / "model")


@pytest.mark.parametrize("criterion", ["lora", "gate", "magnitude", "random"])
def test_every_criterion_ends_in_a_folder(criterion: str, inputs: Path, tmp_path: Path) -> None:
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", criterion=criterion, steps=3))
    assert report.values["verification"]["masked_vs_sliced"] <= 1e-4
    assert count(tmp_path / "out") == report.values["parameters"]["pruned"]


def test_one_step_is_enough_to_prune(inputs: Path, tmp_path: Path) -> None:
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", steps=1))
    assert abs(report.values["ratio_reached"] - 0.5) <= one_step(tmp_path / "out", inputs / "model")


def test_bfloat16_accumulation_and_checkpointing_work_together(inputs: Path, tmp_path: Path) -> None:
    config = prune_config(
        inputs, tmp_path / "out", dtype="bfloat16", accumulate=2, batch=2, checkpointing=True, steps=4
    )
    report = pipeline.prune(config)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert abs(report.values["ratio_reached"] - 0.5) <= one_step(tmp_path / "out", inputs / "model")


def test_head_count_that_llama_refuses_is_saved_as_a_model_that_loads(inputs: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    config = prune_config(inputs, tmp_path / "out", model=str(tmp_path / "model"), heads=3, ffn=32, steps=3)
    pipeline.prune(config)
    assert loaded_elsewhere(tmp_path / "out")["class"] == "MistralForCausalLM"
    check_loads_anywhere(tmp_path / "out")


def test_no_two_models_are_in_memory_while_a_save_is_verified(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    load = pipeline.load_model

    def counting(*arguments: Any, **options: Any) -> Any:
        alive.append(
            sum(isinstance(thing, PreTrainedModel) and thing.device.type != "meta" for thing in gc.get_objects())
        )
        return load(*arguments, **options)

    monkeypatch.setattr(pipeline, "load_model", counting)
    before = sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    assert [count - before for count in alive] == [0, 0, 0]  # at the start, the dense one, and the one from disk


# Fine-tuning


def test_finetune_writes_the_same_kind_of_folder_at_full_size(inputs: Path, tmp_path: Path) -> None:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(tmp_path / "out")}
    pipeline.finetune(FinetuneConfig(**(paths | SHORT)))
    folder = tmp_path / "out"
    assert set(FILES) <= {path.name for path in folder.iterdir()}
    assert shapes(folder) == shapes(inputs / "model")
    report = read_report(folder)
    assert report["parameters"]["dense"] == report["parameters"]["pruned"] == count(folder)
    assert report["perplexity"]["pruned"] < report["perplexity"]["dense"]  # it learned something
    assert "ratio_reached" not in report
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.intermediate_size == 64


# Outputs in use, and failures


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_existing_output_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="--overwrite"):
        prune_config(inputs, tmp_path / "out")


def test_output_that_appears_meanwhile_is_refused_too(inputs: Path, tmp_path: Path) -> None:
    config = prune_config(inputs, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="--overwrite"):
        pipeline.prune(config)


def test_overwrite_replaces_the_whole_folder(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "old").write_text("old")
    pipeline.prune(prune_config(inputs, tmp_path / "out", overwrite=True, steps=2))
    assert not (tmp_path / "out" / "old").exists()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_leaves_a_folder_that_no_run_wrote(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="no folder that loraprune wrote"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", overwrite=True, steps=2))
    assert tree(tmp_path) == before


def test_plan_that_names_other_units_is_noticed(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline.check_units

    def shifted(dense: UnitSums, sliced: UnitSums, plan: Plan) -> None:
        mirrored = {
            name: tuple(plan.units[name] - 1 - unit for unit in reversed(kept)) for name, kept in plan.kept.items()
        }
        real(dense, sliced, Plan(plan.units, mirrored))

    monkeypatch.setattr(pipeline, "check_units", shifted)
    with pytest.raises(VerificationError, match="does not hold the units"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    assert not (tmp_path / "out").exists()


def test_failed_overwrite_leaves_the_old_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "old").write_text("old")
    before = tree(tmp_path)
    config = prune_config(inputs, tmp_path / "out", overwrite=True, steps=2)
    monkeypatch.setattr(pipeline, "difference", lambda one, other: 1.0)  # the merged model disagrees
    with pytest.raises(VerificationError, match="nothing was saved"):
        pipeline.prune(config)
    assert tree(tmp_path) == before


def test_failure_after_saving_leaves_no_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pipeline, "write_folder", fail)
    with pytest.raises(OSError, match="disk full"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    assert list(tmp_path.iterdir()) == []


def test_weights_damaged_on_the_way_to_disk_are_noticed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pipeline.save_model

    def damaged(model: Any, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[:, 0] += 1.0
            save(model, *arguments, **options)
            model.model.layers[0].mlp.down_proj.weight[:, 0] -= 1.0

    monkeypatch.setattr(pipeline, "save_model", damaged)
    with pytest.raises(VerificationError, match="logits differ"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    assert list(tmp_path.iterdir()) == []


def test_dora_is_refused_before_training() -> None:
    model = tiny_llama()
    paths = linear_paths(find_groups(model.config))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=paths, use_dora=True))
    with pytest.raises(ConfigError, match="DoRA") as error:
        Pruner(adapted, LoRAPruneConfig())
    assert "use_dora" in str(error.value)
    assert "plain LoRA" in str(error.value)


# Other data


def test_instructions_are_pruned_on_responses_only(inputs: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "response": f"the number {n}"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", data=str(tmp_path / "a.jsonl"), length=64, steps=3))
    protocol = report.values["training_data"]
    assert protocol["format"] == "instruction"
    assert 0 < protocol["targets"] < 0.7 * protocol["tokens"]


def test_tokenizer_of_the_model_comes_along(pruned: Path) -> None:
    text = "Once upon a time"
    saved = json.loads((pruned / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["vocab"] == json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    assert loaded_elsewhere(pruned)["cached"][: len(text) + 1] == byte_tokenizer()(text)["input_ids"]


# A real model


def test_real_model_is_pruned_to_half_and_still_tells_stories(shared: Path, tmp_path: Path) -> None:
    dense = shared / "models" / "llama-stories-260k"
    config = PruneConfig(
        model=str(dense), data=str(shared / "data" / "text" / "tinystories" / "valid.jsonl"),
        output=str(tmp_path / "out"), ratio=0.5, steps=12, batch=4, length=128, lr=2e-3, device="cpu",
    )  # fmt: skip
    report = pipeline.prune(config).values
    reached = 1 - count(tmp_path / "out", prunable=True) / count(dense, prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - 0.5) <= one_step(tmp_path / "out", dense)
    assert report["perplexity"]["dense"] < 6.5
    assert report["perplexity"]["pruned"] < 512 / 2  # guessing among 512 tokens would give 512
    check_loads_anywhere(tmp_path / "out")
