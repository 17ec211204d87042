"""Whole runs on images from the command line: a tiny model made here, and a real one where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from loraprune import cli
from loraprune.data import draw_rows
from loraprune.evaluation.tasks import Request, find_task
from loraprune.models.compat import pillow_processor
from loraprune.models.loading import load_with_head
from loraprune.models.opening import load_config
from loraprune.training.guarded_trainer import GuardedTrainer
from tests.data.images.conftest import CLASSES, save_classifier, write_images
from tests.vision import images

SHARED = Path(__file__).resolve().parents[4] / "shared"
REAL_MODEL, REAL_DATA = SHARED / "models" / "vit-cifar10-546k", SHARED / "data" / "images" / "cifar10"


def prune(output: Path, model: Path, data: Path, *options: str) -> list[str]:
    """Return the command line of a short run, which recovers on eight images."""
    return [
        "prune", "--model", str(model), "--data", str(data), "--output", str(output), "--batch", "8", "--device", "cpu",
        "--html", "false", "--calibration", "2048", *options,
    ]  # fmt: skip


def run(output: Path, model: Path, data: Path, *options: str) -> dict[str, Any]:
    """Prune from the command line and return the report."""
    assert cli.main(prune(output, model, data, *options)) == 0
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


@pytest.mark.parametrize(
    ("variant", "options", "saved"),
    [
        ("vit", [], "vit"),
        ("vit", ["--allocation", "global"], "loraprune_vit"),
        ("swin", ["--kinds", "all", "--allocation", "uniform"], "loraprune_swin"),
        ("resnet", ["--criterion", "gate", "--round", "1"], "resnet"),
        ("resnet-basic", ["--allocation", "global", "--round", "1"], "loraprune_resnet"),
        ("convnext", ["--round", "1"], "convnext"),
    ],
)
def test_a_pruned_classifier_of_other_classes_loads_and_keeps_its_processor(
    tmp_path: Path, variant: str, options: list[str], saved: str
) -> None:
    model, data = save_classifier(tmp_path / "model", variant), write_images(tmp_path / "data")
    report = run(tmp_path / "out", model, data, "--ratio", "0.5", "--steps", "6", "--rank", "2", *options)
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.05)
    assert report["saved_as"]["model_type"] == saved
    assert report["metric"] == "accuracy"
    assert report["accuracy"]["standard_error"]["dense"] > 0 or report["accuracy"]["dense"] in (0, 1)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    assert loaded.num_parameters() == report["parameters"]["pruned"] < report["parameters"]["dense"]
    processor = pillow_processor("ViTImageProcessor").from_pretrained(tmp_path / "out")
    assert processor.size == {"height": 16, "width": 16}


def test_a_run_repeats_itself_and_another_seed_gives_another_head(tmp_path: Path) -> None:
    model, data = save_classifier(tmp_path / "model"), write_images(tmp_path / "data")
    weights = []
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        run(tmp_path / name, model, data, "--ratio", "0.2", "--steps", "2", "--seed", seed)
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / name)
        weights.append(loaded.classifier.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def request(model: Path, data: Path) -> Request:
    return Request(str(model), load_config(str(model)), str(data), None, 1)


def test_only_a_head_for_other_classes_starts_anew(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "model")
    own = AutoModelForImageClassification.from_pretrained(model)
    own.config.id2label = dict(enumerate("abcde"))
    own.config.label2id = {name: number for number, name in own.config.id2label.items()}
    own.save_pretrained(model)
    task = find_task(own.config)
    for names, anew in ((("e", "d", "c", "b", "a"), False), (("a", "b", "c", "d", "z"), True), (("a", "b"), True)):
        data = write_images(tmp_path / "".join(names), each=2, classes=names)
        prepared = task.prepare(request(model, data))
        loaded, fresh = load_with_head(
            str(model), task.head, device=torch.device("cpu"), values=prepared.values, new=task.new, seed=0
        )
        head: Any = loaded.get_submodule("classifier")
        assert fresh == (("classifier",) if anew else ())
        assert (
            head.weight.shape == own.classifier.weight.shape and torch.equal(head.weight, own.classifier.weight)
        ) != anew
        if not anew:
            row = draw_rows(prepared.training, 1, seed=0)[0]
            place = prepared.training.images.labels.index(row["labels"])  # type: ignore[attr-defined]
            file = prepared.training.images.images[place]  # type: ignore[attr-defined]
            assert own.config.id2label[row["labels"]] == file.parent.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "2:4"], "weights of image models are not zeroed"),
        (["--compensate", "true", "--round", "1"], "not convolutions"),
    ],
)
def test_what_convolutions_cannot_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    model, data = save_classifier(tmp_path / "model", "resnet"), write_images(tmp_path / "data")
    arguments = ["prune", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out"), *options]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_processor_that_is_missing_or_makes_another_size_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = save_classifier(tmp_path / "model"), write_images(tmp_path / "data")
    arguments = ["finetune", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    pillow_processor("ViTImageProcessor")(size={"height": 32, "width": 32}).save_pretrained(model)
    assert cli.main(arguments) == 2
    assert "makes images of 32 x 32, image_size in config.json is 16" in capsys.readouterr().err
    (model / "preprocessor_config.json").unlink()
    assert cli.main(arguments) == 2
    assert "save the image processor beside the model" in capsys.readouterr().err


def test_images_that_vanish_while_training_end_it_in_one_line_and_it_goes_on_when_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = save_classifier(tmp_path / "model"), write_images(tmp_path / "data", each=8)
    options = ["--steps", "6", "--save", "1", "--lr", "1e-3"]
    run(tmp_path / "whole", model, data, *options)
    real = GuardedTrainer.compute_loss

    def vanishing(self: GuardedTrainer, *arguments: Any, **others: Any) -> Any:
        if self.state.global_step == 3:
            data.rename(tmp_path / "away")
        return real(self, *arguments, **others)

    monkeypatch.setattr(GuardedTrainer, "compute_loss", vanishing)
    capsys.readouterr()
    assert cli.main(prune(tmp_path / "out", model, data, *options)) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("loraprune: error: ")
    assert "No such file or directory" in told
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(GuardedTrainer, "compute_loss", real)
    (tmp_path / "away").rename(data)
    run(tmp_path / "out", model, data, *options, "--resume")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.skipif(not REAL_MODEL.is_dir() or not REAL_DATA.is_dir(), reason=f"no {REAL_MODEL} or no {REAL_DATA}")
def test_a_real_vision_transformer_prunes_on_real_images_and_keeps_its_head(tmp_path: Path) -> None:
    report = run(tmp_path / "out", REAL_MODEL, REAL_DATA, "--ratio", "0.2", "--steps", "10", "--lr", "1e-4")
    accuracy = report["accuracy"]
    assert accuracy["dense"] == pytest.approx(0.6875)  # 400 images; 72.16 % on all 10,000
    assert accuracy["pruned"] > 0.4  # ten classes: chance is 0.1
    assert accuracy["standard_error"]["dense"] == pytest.approx((0.6875 * 0.3125 / 400) ** 0.5)
    assert report["ratio_reached"] == pytest.approx(0.2, abs=0.02)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label[0] == "airplane"
    assert loaded(pixel_values=torch.nn.functional.interpolate(images(1), 32)).logits.shape == (1, 10)
