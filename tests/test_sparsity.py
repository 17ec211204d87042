"""Zeros instead of removed units: which weights go and when, what is saved, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraprune import LoRAPruneConfig, PruneConfig, cli, pipeline, save_pruned
from loraprune.adapters import projection
from loraprune.callback import LoRAPruneCallback
from loraprune.errors import ConfigError, NumericsError, VerificationError
from loraprune.schedule import Schedule
from loraprune.scoring.elementwise import tiles
from loraprune.scoring.saliency import saliency_rows
from loraprune.settings import PlanConfig
from loraprune.sparsity.pattern import parse_pattern
from loraprune.sparsity.saved import count_saved
from loraprune.sparsity.scores import GONE, candidates, lowest
from loraprune.sparsity.sparsifier import Sparsifier, weight_criterion
from tests import training
from tests.cli.cases import refused
from tests.samples import save_tiny, write_text
from tests.tiny import logits, relative, tiny_model, tokens, with_lora

SHORT: dict[str, Any] = {"steps": 8, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model")
    write_text(root / "text.txt", 200)
    return root


def run(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Prune and return the report."""
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    pipeline.prune(PruneConfig(**(paths | SHORT | {"sparsity": "2:4"} | changes)))
    values: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return values


def saved(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the prunable projections of a folder, read without torch."""
    return {name: t for name, t in load_file(folder / "model.safetensors").items() if "_proj." in name}


def sparsifier(**changes: Any) -> Sparsifier:
    """Return a sparsifier on a tiny model that has been through one backward pass."""
    settings = LoRAPruneConfig(**({"sparsity": "2:4", "rank": 4, "dropout": 0.0} | changes))
    result = Sparsifier(with_lora(tiny_model("llama")), settings)
    learn(result)
    return result


def learn(result: Sparsifier, *, seed: int = 0) -> None:
    """Give the factors the gradients of one batch."""
    ids = tokens(seed=seed)
    result.model.zero_grad()
    result.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def saliencies(result: Sparsifier, path: str) -> Tensor:
    """Return the saliencies of a projection for the present gradients."""
    proj = projection(result.model, path)
    rows = saliency_rows(weight_criterion(result.config), proj, torch.Generator())
    return torch.cat([saliency for _, saliency in tiles(proj, rows, power=2)])


# What a folder holds


@pytest.mark.parametrize(("pattern", "kept", "block"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_every_block_of_the_saved_file_has_exactly_its_zeros(
    pattern: str, kept: int, block: int, inputs: Path, tmp_path: Path
) -> None:
    report = run(inputs, tmp_path / "out", sparsity=pattern)
    dense, weights = saved(inputs / "model"), saved(tmp_path / "out")
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in dense.items()}
    assert len(weights) == 14
    for weight in weights.values():
        assert ((weight.reshape(len(weight), -1, block) != 0).sum(-1) == kept).all()
    zeros, total = sum(int((w == 0).sum()) for w in weights.values()), sum(w.size for w in weights.values())
    ratio = 1 - kept / block
    assert zeros == total * ratio
    assert report["sparsity"] == {
        "pattern": pattern, "ratio_requested": ratio, "ratio_reached": ratio, "zeros": zeros, "weights": total,
    }  # fmt: skip
    assert report["ratio_requested"] == report["ratio_reached"] == ratio
    assert report["parameters"]["pruned"] == report["parameters"]["dense"]
    assert report["parameters"]["prunable_pruned"] == total - zeros
    others = load_file(tmp_path / "out" / "model.safetensors").keys() - weights.keys()
    assert all((load_file(tmp_path / "out" / "model.safetensors")[name] != 0).any() for name in others)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8])
def test_unstructured_reaches_the_ratio_in_every_matrix(ratio: float, inputs: Path, tmp_path: Path) -> None:
    report = run(inputs, tmp_path / "out", sparsity="unstructured", ratio=ratio)
    for weight in saved(tmp_path / "out").values():
        assert (weight == 0).sum() == round(weight.size * ratio)
    assert report["sparsity"]["ratio_requested"] == ratio
    assert report["ratio_reached"] == pytest.approx(ratio, abs=1e-3)


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("lora", {"dtype": "bfloat16", "checkpointing": True}),
        ("magnitude", {"accumulate": 2}),
        ("random", {"steps": 1}),
        ("sketch", {}),
    ],
)
def test_every_elementwise_criterion_ends_in_a_folder(
    criterion: str, changes: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    report = run(inputs, tmp_path / "out", criterion=criterion, **changes)
    assert report["ratio_reached"] == 0.5
    assert report["verification"]["sliced_vs_reloaded"] <= report["verification"]["tolerance"]


def test_the_folder_loads_anywhere_and_its_run_can_be_repeated(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not {"plan.json", "scores.safetensors"} & {path.name for path in (tmp_path / "out").iterdir()}
    again = ["--config", str(tmp_path / "out" / "run.yaml"), "--output", str(tmp_path / "again"), "--json"]
    assert cli.main(["prune", *again]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_trainer_of_ones_own_saves_what_it_trained(tmp_path: Path) -> None:
    settings = training.config(sparsity="4:8", dropout=0.1)
    model, callback, _ = training.prune(tmp_path / "trainer", settings, steps=6)
    before = logits(model, tokens())
    save_pruned(callback, tmp_path / "out")
    assert relative(before, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokens())) < 2e-5
    for weight in saved(tmp_path / "out").values():
        assert ((weight.reshape(len(weight), -1, 8) != 0).sum(-1) == 4).all()


# Which weights go


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "unstructured"])
def test_a_dropped_weight_scores_below_every_kept_one_of_its_block(pattern: str) -> None:
    result = sparsifier(sparsity=pattern)
    result.score()
    for progress in (0.3, 0.7, 1.0):
        before = {path: values.clone().float() for path, values in result.scores.values.items()}
        result.remove(progress)
        for path, values in before.items():
            block = values.shape[1] if pattern == "unstructured" else int(pattern[-1])
            high = values.masked_fill(result.kept[path], -torch.inf)
            low = values.masked_fill(~result.kept[path], torch.inf)
            if pattern == "unstructured":
                assert high.max() <= low.min()
            elif progress == 1:
                assert (high.unflatten(1, (-1, block)).amax(-1) <= low.unflatten(1, (-1, block)).amin(-1)).all()
            may_go = candidates(before[path].bfloat16(), result.pattern)
            assert high.max() <= low[may_go].min()  # of all that may go, the lowest went
        learn(result, seed=int(10 * progress))
        result.score()


def test_the_running_average_decides_and_not_the_last_step() -> None:
    path = "model.layers.0.mlp.gate_proj"
    result, forgetful = sparsifier(decay=0.9), sparsifier(decay=0.0)
    seen = []
    for seed in range(4):
        for each in (result, forgetful):
            learn(each, seed=seed)
            each.score()
        seen.append(saliencies(result, path))
    expected = sum(0.1 * 0.9 ** (3 - step) * saliency for step, saliency in enumerate(seen))
    torch.testing.assert_close(result.scores.values[path].float(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(forgetful.scores.values[path].float(), seen[-1], rtol=0.005, atol=0)
    for each in (result, forgetful):
        each.remove(1.0)
    assert not torch.equal(result.kept[path], forgetful.kept[path])


def test_a_slow_average_is_not_rounded_away() -> None:
    path = "model.layers.0.mlp.gate_proj"
    result = sparsifier(decay=0.999)
    for _ in range(30):
        result.score()
    expected = (1 - 0.999**30) * saliencies(result, path)
    torch.testing.assert_close(result.scores.values[path], expected, rtol=1e-4, atol=0)


def test_random_zeros_are_spread_evenly_over_rows_and_columns() -> None:
    result = sparsifier(criterion="random", sparsity="unstructured")
    result.score()
    result.remove(1.0)
    kept = result.kept["model.layers.0.mlp.gate_proj"].float()
    assert kept.mean() == 0.5
    for dim in (0, 1):  # of 96 or 64 independent weights a standard deviation of 0.05 or 0.06 is expected
        assert kept.mean(dim).std() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [0, 1, 37, 96])
def test_the_lowest_are_those_of_a_stable_sort(dtype: torch.dtype, count: int) -> None:
    values = torch.randint(0, 12, (8, 12), generator=torch.Generator().manual_seed(count)).to(dtype) / 7  # many ties
    values[2, 3:6] = GONE
    chosen = lowest(values, torch.ones_like(values, dtype=torch.bool), count)
    order = values.flatten().argsort(descending=True, stable=True)
    expected = torch.zeros(96, dtype=torch.bool)
    expected[order[96 - count :]] = True
    assert torch.equal(chosen.flatten(), expected)


# When


@pytest.mark.parametrize(("sparsity", "ratio"), [("2:4", 0.5), ("unstructured", 0.7)])
def test_the_ratio_follows_the_schedule(sparsity: str, ratio: float, tmp_path: Path) -> None:
    settings = training.config(sparsity=sparsity, ratio=ratio)
    _, callback, _ = training.prune(tmp_path, settings, steps=20)
    schedule = Schedule("cubic", 20, settings.interval, settings.warmup, settings.cooldown)
    events = [step for step in range(1, 21) if schedule.is_event(step)]
    assert [entry["step"] for entry in callback.history] == events
    assert len(events) > 5
    for entry in callback.history:
        assert entry["ratio"] == pytest.approx(ratio * schedule.progress(int(entry["step"])), abs=1e-3)
    assert callback.pruner is not None
    assert callback.pruner.is_done


def test_masked_weights_stay_masked_while_training_goes_on(tmp_path: Path) -> None:
    settings = training.config(
        sparsity="unstructured", ratio=0.6, decay=0.0
    )  # a step's scores alone would bring them back
    seen: list[dict[str, Tensor]] = []

    class Watch(LoRAPruneCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            super().on_step_end(*arguments, **options)
            assert isinstance(self.pruner, Sparsifier)
            seen.append({path: kept.clone() for path, kept in self.pruner.kept.items()})

    training.fit(training.adapted(settings), training.arguments(tmp_path, steps=12), [Watch(settings)])
    for earlier, later in pairwise(seen):
        assert all((later[path] <= earlier[path]).all() for path in earlier)


# What is refused


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
    with pytest.raises(ConfigError, match=r"2:4, in base 60: write .* in quotes"):
        LoRAPruneConfig(sparsity=value)


def test_what_fits_is_not_refused() -> None:
    for changes in ({"ratio": 0.75, "sparsity": "1:4"}, {"ratio": 0.5, "sparsity": "4:8"}, {"sparsity": "1:4"}):
        LoRAPruneConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing to plan"):
        PlanConfig(model="m", sparsity="2:4")


def test_scores_that_tell_nothing_are_refused() -> None:
    result = sparsifier()
    with pytest.raises(NumericsError, match="nothing tells them apart"):
        result.remove(1.0)


def test_a_score_that_is_no_number_is_refused() -> None:
    result = sparsifier()
    next(p for name, p in result.model.named_parameters() if "1.mlp.up_proj.lora_B" in name).grad[3] = torch.nan  # type: ignore[index]
    with pytest.raises(NumericsError, match=r"a score of 'model.layers.1.mlp.up_proj' is nan"):
        result.score()


def test_a_number_where_a_zero_was_trained_leaves_no_folder(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pipeline.save_model

    def damaged(model: Any, folder: Path, **options: Any) -> None:
        save(model, folder, **options)
        tensors = load_tensors(folder / "model.safetensors")
        weight = tensors["model.layers.0.mlp.up_proj.weight"]
        weight[weight == 0] = 1e-30  # invisible in the logits
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(pipeline, "save_model", damaged)
    with pytest.raises(VerificationError, match=r"up_proj.*where it is masked; nothing was saved"):
        run(inputs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_block_with_too_few_zeros_and_a_missing_projection_are_noticed(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    save_file({"a.weight": weight}, tmp_path / "model.safetensors")
    pattern = parse_pattern("2:4")
    with pytest.raises(VerificationError, match="'a' has 3 numbers in a block of 4, not 2:4"):
        count_saved(tmp_path, {"a": torch.ones(2, 4, dtype=torch.bool)}, pattern, transposed=False)
    assert count_saved(tmp_path, {"a": weight != 0}, parse_pattern("unstructured"), transposed=False).zeros == 3
    with pytest.raises(VerificationError, match="'b' is in no file"):
        count_saved(tmp_path, {"b": weight != 0}, pattern, transposed=False)


# The hardware that has it


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_saved_projection_runs_in_the_gpus_sparse_format(dtype: torch.dtype, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no CUDA device of compute capability 8.0 or more: it has the semi-structured format")
    save_tiny(tmp_path / "model", hidden_size=256, intermediate_size=512)
    write_text(tmp_path / "text.txt", 200)
    run(tmp_path, tmp_path / "out", device="cuda")
    for name, weight in saved(tmp_path / "out").items():
        if min(weight.shape) < 64:  # smaller than the format's tiles
            continue
        dense = torch.from_numpy(weight).to("cuda", dtype)
        x = torch.randn(
            128, dense.shape[1], device="cuda", dtype=dtype, generator=torch.Generator("cuda").manual_seed(0)
        )
        found = torch.nn.functional.linear(x, torch.sparse.to_sparse_semi_structured(dense))
        assert relative(torch.nn.functional.linear(x, dense).float(), found.float()) < 1e-2, name
