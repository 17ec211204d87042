"""Several rounds end where one does, tell everything in terms of the dense model, and survive a crash between and within."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import loraprune
from loraprune import pipeline, rounds
from loraprune.config.training import PruneConfig
from loraprune.errors import ConfigError, DataError, PlanError, VerificationError
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from loraprune.pruning.preview import preview
from loraprune.pruning.removed import Removed
from loraprune.reporting.report import Report
from tests.pipeline.cases import SHORT, check_loads_anywhere, count, one_step, prune_config, read_report
from tests.pipeline.test_resume import Stopped, results, stop_after
from tests.samples import byte_tokenizer, save_tiny, write_text
from tests.tiny import COMMON, VARIANTS, model_type

STILL = {"lr": 1e-12, "criterion": "magnitude"}
"""weights do not move, so that every kept unit can be found again in the dense model"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model", intermediate_size=96, num_attention_heads=8, num_key_value_heads=4)
    write_text(root / "text.txt", 200)
    return root


@pytest.fixture(scope="module")
def pruned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run in two rounds."""
    output = tmp_path_factory.mktemp("rounds") / "out"
    pipeline.prune(prune_config(inputs, output, rounds=2))
    return output


def test_two_rounds_end_at_the_ratio_of_one_and_leave_nothing_else(pruned: Path, inputs: Path) -> None:
    assert [path.name for path in pruned.parent.iterdir()] == ["out"]
    report, dense = read_report(pruned), inputs / "model"
    reached = 1 - count(pruned, prunable=True) / count(dense, prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - 0.5) <= one_step(pruned, dense)
    check_loads_anywhere(pruned)


def test_the_report_is_about_the_dense_model_and_all_rounds(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    report = read_report(pruned)
    once = pipeline.prune(prune_config(inputs, tmp_path / "once")).values
    assert set(report) == set(once)
    for key in ("model", "ratio_requested", "steps", "seed", "task", "training_data"):
        assert report[key] == once[key], key
    for key in ("dense", "prunable_dense"):
        assert report["parameters"][key] == once["parameters"][key]
    assert report["parameters"]["pruned"] == count(pruned)
    for key in ("dense", "protocol"):
        assert report["perplexity"][key] == once["perplexity"][key]
    assert report["perplexity"]["standard_error"]["dense"] == once["perplexity"]["standard_error"]["dense"]
    assert report["perplexity"]["standard_error"]["pruned"] != once["perplexity"]["standard_error"]["dense"]
    assert {name: entry["dense"] for name, entry in report["units"].items()} == Plan.read(pruned).units
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
    assert [entry["step"] for entry in report["curve"]] == list(range(1, SHORT["steps"] + 1))
    steps, ratios = ([entry[key] for entry in report["removals"]] for key in ("step", "ratio"))
    assert steps == sorted(set(steps))
    assert steps[-1] > SHORT["steps"] // 2
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(report["ratio_reached"])
    rates = [entry["lr"] for entry in report["curve"]]
    assert max(rates[5:]) == pytest.approx(max(rates[:5]) / 2)


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def kept_rows(dense: Path, folder: Path, plan: Plan) -> bool:
    """Say whether all FFN channels in a folder are those of the dense model that a plan names."""
    whole, small = tensors(dense), tensors(folder)
    return all(
        torch.allclose(small[f"{name}.gate_proj.weight"], whole[f"{name}.gate_proj.weight"][list(kept)], atol=1e-6)
        for name, kept in plan.kept.items()
        if name.endswith("mlp")
    )


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_plan_names_the_units_of_the_dense_model(allocation: str, inputs: Path, tmp_path: Path) -> None:
    config = prune_config(inputs, tmp_path / "out", rounds=3, allocation=allocation, **STILL)
    report = pipeline.prune(config)
    plan = Plan.read(tmp_path / "out")
    assert plan == report.plan
    assert kept_rows(inputs / "model", tmp_path / "out", plan)
    shifted = {name: tuple(range(len(kept))) for name, kept in plan.kept.items()}
    assert shifted != plan.kept
    assert not kept_rows(inputs / "model", tmp_path / "out", Plan(plan.units, shifted))  # the control
    assert loraprune.from_pretrained(tmp_path / "out").num_parameters() == report.values["parameters"]["pruned"]
    scores = load_file(tmp_path / "out" / "scores.safetensors")
    for name, kept in plan.kept.items():
        assert len(scores[name]) == plan.units[name]
        if allocation == "uniform":  # weights stand still, so the last score that a unit had is what it always had
            ordered = scores[name].argsort(descending=True).tolist()
            assert set(ordered[: len(kept)]) == set(kept)


def test_a_plan_composed_wrongly_is_seen(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "then", lambda self, later: Plan(self.units, later.kept))
    pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, **STILL))
    assert not kept_rows(inputs / "model", tmp_path / "out", Plan.read(tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_units_that_are_not_masked_after_the_last_round_are_noticed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.masked_logits

    def unmasked(*arguments: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Masks, "set", lambda self, kept: None)
            return real(*arguments)

    monkeypatch.setattr(rounds, "masked_logits", unmasked)
    with pytest.raises(VerificationError, match="masked and sliced"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_damaged_after_the_last_round_are_noticed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is every other run here: copied as they are, the weights pass."""
    real, copied = shutil.copytree, []

    def damaging(source: Path, target: Path, **options: Any) -> Path:
        place = Path(real(source, target, **options))
        weights = load_file(place / "model.safetensors")
        weights["model.layers.0.mlp.down_proj.weight"] *= -1
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        copied.append(source.name)
        return place

    monkeypatch.setattr(shutil, "copytree", damaging)
    with pytest.raises(VerificationError, match="masked and sliced"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2))
    assert copied == ["2"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("where", "step"), [(1, 3), (2, 3), (2, 5)])
def test_a_resumed_run_ends_with_the_same_bytes(
    where: int, step: int, inputs: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.run
    begun: list[str] = []

    def stopping(config: PruneConfig) -> Report:
        begun.append(config.output)
        if len(begun) == where:
            stop_after(step, patch)
        return real(config)

    def noted(config: PruneConfig) -> Report:
        begun.append(config.output)
        return real(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", stopping)
        with pytest.raises(Stopped):
            pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, save=1))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    begun.clear()
    monkeypatch.setattr(pipeline, "run", noted)
    pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, save=1, resume=True))
    assert [Path(output).name for output in begun] == ["1", "2"][where - 1 :]
    assert results(tmp_path / "out") == results(pruned)
    assert (tmp_path / "out" / "scores.safetensors").read_bytes() == (pruned / "scores.safetensors").read_bytes()
    one, other = read_report(tmp_path / "out"), read_report(pruned)
    for key in ("curve", "removals", "steps", "perplexity", "units"):
        assert one[key] == other[key], key
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_rounds_with_other_options_are_refused_and_kept(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.run_round

    def once(config: rounds.RoundConfig, *arguments: Any, name: str) -> None:
        if config.turn == 1:
            raise Stopped
        real(config, *arguments, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "run_round", once)
        with pytest.raises(Stopped):
            pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2))
    before = contents(tmp_path)
    assert any(name.endswith("1/model.safetensors") for name in before)  # the first round is there to be kept
    with pytest.raises(ConfigError, match=r"--lr 0\.5 \(was 0\.001\)"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, resume=True, lr=0.5))
    missing = str(tmp_path / "missing.txt")
    with pytest.raises(DataError):
        pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, overwrite=True, data=missing))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "--rounds 0: at least 1"),
        ({"rounds": 2, "sparsity": "2:4"}, "--rounds 2 --sparsity 2:4"),
        ({"rounds": 2, "scores": "scores.safetensors"}, "--rounds 2 --scores"),
        ({"rounds": 2, "steps": 0}, "--rounds 2 --steps 0"),
        ({"rounds": 4, "steps": 3}, "give at least 4"),
        ({"rounds": 2, "heads": 4, "ffn": 32}, "explicit widths"),
        ({"rounds": 2, "teacher": "copy"}, "--teacher copy"),
    ],
)
def test_options_that_make_no_sense_with_rounds_are_refused(
    changes: dict[str, Any], words: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        prune_config(inputs, tmp_path / "out", **changes)


def test_a_target_that_cannot_be_reached_is_refused_before_the_first_round(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"--ratio 0\.99"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, ratio=0.99))
    assert list(tmp_path.iterdir()) == []


def test_rounds_share_steps_and_target_and_shrink_lora(inputs: Path, tmp_path: Path) -> None:
    config = prune_config(inputs, tmp_path / "out", rounds=3, ratio=0.6, rank=4, alpha=8.0)
    places = [tmp_path / str(number) for number in range(3)]
    before: list[Removed] = []
    made, left = [], 1000
    aim = preview(config)
    assert aim.target.ratio == 0.6
    for turn in range(3):
        made.append(rounds.round_config(config, turn, before, places=places, aim=aim))
        now, left = left, round(left * (1 - made[-1].ratio))
        before.append(Removed(made[-1].ratio, made[-1].ratio, now, left, units={"model.layers.0.mlp": {}}))
    assert [removed.prunable_pruned for removed in before] == [800, 600, 400]
    assert sum(each.steps or 0 for each in made) == config.steps
    assert [(each.rank, each.alpha, each.lr) for each in made] == [(4, 8.0, 1e-3), (2, 4.0, 5e-4), (1, 2.0, 2.5e-4)]
    assert len({each.order_seed for each in made}) == 3
    assert [each.model for each in made] == [config.model, str(places[0]), str(places[1])]
    assert [each.kinds for each in made] == ["auto", "attention,ffn", "attention,ffn"]


def test_a_number_of_parameters_is_a_target_too(inputs: Path, tmp_path: Path) -> None:
    dense = count(inputs / "model")
    wanted = dense - count(inputs / "model", prunable=True) // 2
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", rounds=2, parameters=str(wanted))).values
    assert report["ratio_requested"] is None
    assert report["target"]["parameters"] == str(wanted)
    assert abs(report["parameters"]["pruned"] - wanted) <= one_step(tmp_path / "out", inputs / "model") * dense


@pytest.mark.parametrize(
    ("variant", "options", "saved_as"),
    [("olmo2", {}, "olmo2"), ("gpt2", {"kinds": "all"}, "loraprune_gpt2")],  # norms over all heads; modelling code
)
def test_other_families_go_through_rounds(variant: str, options: dict[str, Any], saved_as: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    values = COMMON | {"num_hidden_layers": 2} | VARIANTS[variant] | {"vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type(variant)](**values)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_text(tmp_path / "text.txt", 60)
    report = pipeline.prune(prune_config(tmp_path, tmp_path / "out", rounds=2, steps=4, **options)).values
    assert report["saved_as"]["model_type"] == saved_as
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.06)
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
