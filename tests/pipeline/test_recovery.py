"""Runs with every criterion, allocation and means of recovery, from the configuration to a folder that loads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraprune import cli, from_pretrained, pipeline
from loraprune.commands import parser
from loraprune.commands.plan import dry_run
from loraprune.config import recipes
from loraprune.config.commands import PlanConfig
from loraprune.config.training import PruneConfig
from loraprune.errors import ConfigError
from loraprune.scoring.criteria import criteria
from tests.published import by_the_paper
from tests.samples import save_tiny, write_text
from tests.tiny import relative

SHORT: dict[str, Any] = {"steps": 8, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu", "ratio": 0.5,
                         "html": False}  # fmt: skip
CRITERIA = sorted(
    (set(criteria.names()) & {path.stem for path in Path(pipeline.__file__).parent.glob("scoring/criteria/*.py")})
    - {"reap"}  # it scores experts
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model", num_hidden_layers=4)
    write_text(root / "text.txt", 200)
    return root


def run(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    return dict(pipeline.prune(PruneConfig(**(paths | by_the_paper(**(SHORT | changes))))).values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def widths(folder: Path) -> list[int]:
    return [len(weights(folder)[f"model.layers.{layer}.mlp.up_proj.weight"]) for layer in range(4)]


def test_there_are_ten_criteria() -> None:
    assert len(CRITERIA) == 10


@pytest.mark.parametrize(("criterion", "allocation"), list(zip(CRITERIA, itertools.cycle(("balanced", "global")))))
def test_every_criterion_and_every_allocation_meet_the_ratio(
    criterion: str, allocation: str, inputs: Path, tmp_path: Path
) -> None:
    """An allocation sees scores, whichever criterion gave them: each meets five criteria."""
    report = run(inputs, tmp_path / "out", criterion=criterion, allocation=allocation, steps=4)
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.02)
    assert report["verification"]["masked_vs_sliced"] <= 1e-4


def test_the_papers_allocation_leaves_the_last_layer_whole_and_loads(inputs: Path, tmp_path: Path) -> None:
    report = run(inputs, tmp_path / "out", allocation="paper")
    assert widths(tmp_path / "out")[3] == 64 > max(widths(tmp_path / "out")[:3])
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.02)
    assert report["saved_as"]["model_type"] == "loraprune_llama"
    model = from_pretrained(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]["pruned"]


@pytest.mark.parametrize("shrink", [True, False])
def test_compensation_changes_the_result_and_is_verified(shrink: bool, inputs: Path, tmp_path: Path) -> None:
    options = {"shrink": shrink, "dropout": 0.0, "calibration": 512}
    plain = run(inputs, tmp_path / "plain", **options)
    refitted = run(inputs, tmp_path / "refitted", compensate=True, **options)
    assert refitted["verification"]["masked_vs_sliced"] <= 1e-4
    assert plain["perplexity"]["pruned"] != refitted["perplexity"]["pruned"]
    again = run(inputs, tmp_path / "again", compensate=True, **options)
    assert again["perplexity"]["pruned"] == refitted["perplexity"]["pruned"]


def test_a_teacher_in_memory_and_one_on_disk_train_alike_and_none_does_not(inputs: Path, tmp_path: Path) -> None:
    found = {}
    for teacher in ("none", "copy", "cache"):
        run(inputs, tmp_path / teacher, teacher=teacher, dropout=0.0, criterion="magnitude")
        found[teacher] = weights(tmp_path / teacher)["model.layers.0.mlp.up_proj.weight"]
    assert relative(found["copy"], found["cache"]) < 1e-2
    assert relative(found["copy"], found["none"]) > 3 * relative(found["copy"], found["cache"])


@pytest.mark.parametrize("criterion", ["gate", "magnitude", "wanda"])
def test_without_training_the_weights_that_stay_are_the_dense_ones(
    criterion: str, inputs: Path, tmp_path: Path
) -> None:
    report = run(
        inputs,
        tmp_path / "out",
        steps=0,
        criterion=criterion,
        schedule="oneshot",
        rows=8,
        batch=2,
        warmup=0.0,
        cooldown=0.9,
    )
    assert report["steps"] == 0
    assert [removal["step"] for removal in report["removals"]] == [4], "after the whole pass, whatever --cooldown says"
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["groups"]
    dense, found = weights(inputs / "model"), weights(tmp_path / "out")
    for layer in range(4):
        kept = plan[f"model.layers.{layer}.mlp"]["kept"]
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(found[name], dense[name][kept])


def test_another_ratio_is_planned_and_pruned_from_saved_scores(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "first", criterion="gate", ratio=0.3, allocation="balanced")
    saved = str(tmp_path / "first" / "scores.safetensors")
    options = {"scores": saved, "steps": 0, "allocation": "balanced", "ratio": 0.6, "rows": 4, "schedule": "oneshot"}
    report = run(inputs, tmp_path / "second", **options)
    assert report["ratio_reached"] == pytest.approx(0.6, abs=0.02)
    scores, again = load_file(saved), load_file(tmp_path / "second" / "scores.safetensors")
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    plan = json.loads((tmp_path / "second" / "plan.json").read_text())["groups"]
    for name, group in plan.items():
        best = scores[name].argsort(descending=True, stable=True)[: len(group["kept"])]
        assert group["kept"] == sorted(best.tolist())
    planned = dry_run(PlanConfig(model=str(inputs / "model"), scores=saved, allocation="balanced", ratio=0.6))
    assert planned.values["parameters"]["pruned"] == report["parameters"]["pruned"]


def test_scores_that_do_not_belong_to_the_model_are_refused(inputs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"model.layers.0.mlp": torch.ones(3)}, other)
    with pytest.raises(ConfigError, match=r"3 scores of 'model.layers.0.mlp', where the model has 64 units"):
        run(inputs, tmp_path / "out", scores=str(other))
    with pytest.raises(ConfigError, match="no such file"):
        run(inputs, tmp_path / "out", scores=str(tmp_path / "none"))
    other.write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read"):
        run(inputs, tmp_path / "out", scores=str(other))
    assert not (tmp_path / "out").exists()


def test_heads_and_channels_can_have_ratios_of_their_own(inputs: Path, tmp_path: Path) -> None:
    report = run(inputs, tmp_path / "out", heads_ratio=0.5, ffn_ratio=0.25)
    assert widths(tmp_path / "out") == [48] * 4
    assert {entry["kept"] for name, entry in report["units"].items() if name.endswith("attn")} == {1}
    assert report["ratio_requested"] is None
    assert report["target"]["ffn_ratio"] == 0.25
    with pytest.raises(ConfigError, match=r"--heads 4 --heads-ratio 0\.5: give one of the two"):
        run(inputs, tmp_path / "again", heads=4, heads_ratio=0.5)


def test_rows_limits_the_training_data(inputs: Path, tmp_path: Path) -> None:
    report = run(inputs, tmp_path / "out", rows=7)
    assert report["training_data"]["rows"] == 7


def test_a_recipe_is_a_file_of_options_that_flags_override(inputs: Path, captured: list[Any]) -> None:
    base = ["prune", "--model", "m", "--data", "d", "--output", "o"]
    cli.run([*base, "--recipe", "best", "--json"])
    cli.run([*base, "--recipe=best", "--criterion", "magnitude", "--json"])
    best = recipes.recipe("best")
    assert {name: getattr(captured[0], name) for name in best} == best
    assert captured[1].criterion == "magnitude"
    assert captured[1].allocation == best["allocation"]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_valid_run(name: str) -> None:
    PruneConfig(model="m", data="d", output="o", **recipes.recipe(name))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'bets' \(did you mean 'best'\?\)"):
        recipes.path("bets")
    with pytest.raises(ConfigError, match="unknown recipe"):
        parser.parse(["prune", "--model", "m", "--data", "d", "--output", "o", "--recipe", "bets"])


def test_the_recommended_recipe_is_what_runs_without_one(inputs: Path, tmp_path: Path) -> None:
    """`best` spells the defaults out; the published method is another one."""
    plain = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), **SHORT, "shrink": True, "rows": 48}
    found = {}
    for name in ("none", "best", "paper"):
        chosen = {} if name == "none" else recipes.recipe(name)
        pipeline.prune(PruneConfig(**(plain | {"output": str(tmp_path / name)} | chosen)))
        found[name] = weights(tmp_path / name)
    assert all(torch.equal(tensor, found["best"][name]) for name, tensor in found["none"].items())
    assert not all(
        torch.equal(tensor, found["paper"].get(name, torch.empty(0))) for name, tensor in found["none"].items()
    )
