"""Every command tells everything wrong at once, before any of the work: first options, names and the folders of models, then what
is in models and data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from loraprune.commands import benchmark, evaluate
from loraprune.commands.compare import run
from loraprune.export import run as export
from loraprune.training import setup
from tests.cli.cases import Case, refused
from tests.data.images.conftest import save_classifier, write_images
from tests.evaluation.tasks.cases import save_bert

BAD_TEXT = '{"text": "one"}\n{"te\n'


@pytest.fixture
def wrong(case: Case) -> dict[str, str]:
    """Return a model without its weights, a torn text and an output in use."""
    (case.model / "model.safetensors").unlink()
    (case.root / "torn.jsonl").write_text(BAD_TEXT)
    case.output.mkdir()
    (case.output / "mine").touch()
    return {"model": str(case.model), "data": str(case.root / "torn.jsonl"), "output": str(case.output)}


def flags(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def no_weights(*_: object, **__: object) -> None:
    raise AssertionError("weights were loaded before all input was looked at")


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (benchmark, "load_model"),
        (evaluate, "load_with_head"),
        (setup, "load_with_head"),
        (export, "load_model"),
    ):
        monkeypatch.setattr(module, name, no_weights)
    monkeypatch.setattr(run, "run_cells", no_weights)


@pytest.mark.parametrize("command", ["prune", "finetune"])
def test_options_model_data_and_output_of_a_run(
    command: str, wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, *flags(wrong), "--rank", "0", "--lr", "-1", "--eval", str(case.root / "none.txt")]
    refused(arguments, capfd, "--rank 0", "--lr -1", "no model.safetensors", "--output", "none.txt",
            root=case.root, lines=5)  # fmt: skip


def test_inputs_without_a_wrong_option_too(
    wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = wrong | {"output": str(case.root / "new")}
    (case.model / "tokenizer.json").write_text("{")
    words = ("no model.safetensors", "line 2: malformed", "a file of its tokenizer is torn")
    refused(["prune", *flags(fresh)], capfd, *words, root=case.root, lines=3)
    refused(
        ["prune", *flags(fresh), "--criterion", "magnitud"],
        capfd,
        words[0],
        "did you mean 'magnitude'",
        root=case.root,
        lines=2,
    )


def test_a_target_that_cannot_be_reached_and_a_torn_text(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    (case.root / "torn.jsonl").write_text(BAD_TEXT)
    arguments = case.arguments(ratio="0.99", data=str(case.root / "torn.jsonl"))
    refused(arguments, capfd, "at most 0.", "line 2: malformed", root=case.root, lines=2)


def test_inspect_and_plan(wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    (case.model / "config.json").write_text("{}")
    refused(["plan", "--model", wrong["model"], "--ratio", "7", "--rank", "0"], capfd, "--ratio 7", "--rank 0",
            lines=2)  # fmt: skip
    refused(["inspect", "--model", wrong["model"]], capfd, str(case.model))


def test_evaluate_looks_at_both_models_and_the_text(
    wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = str(case.root / "missing")
    arguments = ["evaluate", "--model", wrong["model"], "--against", missing, "--data", wrong["data"]]
    words = ("no model.safetensors", "missing: no such folder")
    refused(arguments, capfd, *words, root=case.root, lines=2)
    refused([*arguments, "--batch", "0"], capfd, *words, "--batch 0", root=case.root, lines=3)
    arguments[4] = wrong["model"]
    refused(arguments, capfd, words[0], "line 2: malformed", root=case.root, lines=2)


def test_several_texts_beside_a_wrong_option(
    wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = f"[{wrong['data']}, {case.root / 'none.txt'}]"
    words = ("no model.safetensors", "none.txt", "--batch 0")
    refused(["evaluate", "--model", wrong["model"], "--data", texts, "--batch", "0"], capfd, *words,
            root=case.root, lines=3)  # fmt: skip


def test_compare_models_looks_at_all_models_and_the_text(
    wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = str(case.root / "missing")
    arguments = ["compare-models", wrong["model"], missing, "--data", wrong["data"]]
    words = ("no model.safetensors", "missing: no such folder")
    refused(arguments, capfd, *words, root=case.root, lines=2)
    below = str(case.text / "out")
    refused([*arguments, "--repeats", "0", "--output", below], capfd, *words, "--repeats 0", "Not a directory",
            root=case.root, lines=4)  # fmt: skip


def test_benchmark_looks_at_both_models(wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--model", wrong["model"], "--against", str(case.root / "missing")]
    refused(arguments, capfd, "no model.safetensors", "missing: no such folder", root=case.root, lines=2)
    refused([*arguments, "--repeats", "0"], capfd, "--repeats 0", root=case.root, lines=3)


def test_export_looks_at_model_plan_format_and_output(
    wrong: dict[str, str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--model", wrong["model"], "--format", "paded"]
    refused([*arguments, "--output", str(case.root / "new")], capfd, "no model.safetensors", "'padded'",
            root=case.root, lines=2)  # fmt: skip
    refused(["export", "--model", wrong["model"], "--output", str(case.root / "new")], capfd, "no plan.json",
            "no model.safetensors", root=case.root, lines=2)  # fmt: skip
    refused([*arguments, "--output", wrong["output"]], capfd, "--output", "no model.safetensors", "'padded'", root=case.root,
            lines=3)  # fmt: skip


def test_compare_looks_at_the_inputs_of_all_cells(
    wrong: dict[str, str], case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("grid: {criterion: [lora, magnitud], ratio: [0.2, 0.5]}\n")
    options = flags(wrong | {"output": str(case.root / "new")})
    words = ("no model.safetensors", "did you mean 'magnitude'")
    refused(["compare", "--config", str(grid), *options], capfd, *words, root=case.root, lines=2)
    grid.write_text("grid: {criterion: [lora, magnitude], ratio: [0.2, 0.5]}\n")
    refused(["compare", "--config", str(grid), *options], capfd, words[0], "line 2: malformed", root=case.root, lines=2)
    grid.write_text("grid: null\nruns: null\n")
    refused(["compare", "--config", str(grid), *options], capfd, words[0], "--grid null", "--runs null", root=case.root,
            lines=3)  # fmt: skip
    grid.write_text("grid: {ratio: [0.2, 5]}\n")
    refused(["compare", "--config", str(grid), *options], capfd, words[0], "--ratio 5", root=case.root, lines=2)


def test_what_the_parser_refuses_beside_everything_else(
    wrong: dict[str, str], case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = ["--steps", "many", "--rnk", "4", "--lr", "-1", "--shrink", "perhaps", "word"]
    words = ("--steps many", "'rnk' (did you mean 'rank'?)", "--lr -1", "--shrink perhaps", "'word'")
    inputs = ("no model.safetensors",)
    refused(["prune", *flags(wrong), *bad[:-1]], capfd, *words[:-1], *inputs, "--output", root=case.root, lines=6)
    two = ["--model", wrong["model"], "--data", wrong["data"]]
    refused(["prune", *two, *bad[:-3], "word"], capfd, *words[:3], words[4], *inputs, "missing --output", root=case.root,
            lines=6)  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"steps": "many", "rnk": 4, "lr": -1, "shrink": "perhaps", "seed": None} | wrong))
    refused(["prune", "--config", str(file), "--warmup", "7"], capfd, *words[:-1], *inputs, "--output", "--warmup 7",
            "--seed null", root=case.root, lines=9)  # fmt: skip
    gone = ["--config", str(tmp_path / "gone.yaml"), "--recipe", "bets", "--batch", "0"]
    refused(["prune", *gone], capfd, "gone.yaml: no such file", "did you mean 'best'", "--batch 0", lines=3)


@pytest.mark.parametrize("offline", [True, False])
def test_names_that_lead_nowhere_beside_a_wrong_option(
    offline: bool,
    case: Case,
    no_network: list[object],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    good, new = str(case.model), str(case.root / "new")
    for data in ("nowhere.txt", "a/b/nowhere", "./nowhere"):
        words = ("--rank 0", f"'{data}': no such file or folder", "'none.json'", "a/b/c: no such folder")
        options = ["--data", data, "--eval", "none.json", "--rank", "0", "--output", new]
        refused(["prune", "--model", good, *options], capfd, *words[:3], root=case.root, lines=3)
        refused(["prune", "--model", "a/b/c", *options], capfd, *words, root=case.root, lines=4)
    # What the hub may have is told where it is switched off, and not asked for where it is not.
    options = ["--model", "nobody/nothing", "--data", "nobody/none", "--batch", "0"]
    told = refused(["evaluate", *options], capfd, "--batch 0", root=case.root, lines=3 if offline else 1)
    assert offline == ("--model nobody/nothing" in told) == ("--data 'nobody/none'" in told)
    assert no_network == []


def test_names_that_need_no_files_beside_a_wrong_option(capfd: pytest.CaptureFixture[str]) -> None:
    for model in ("llama-7b", "known"):
        refused(["plan", "--model", model, "--ratio", "7"], capfd, "--ratio 7")
    refused(["prune", "--model", "demo", "--data", "stdlib", "--output", "new", "--rank", "0"], capfd, "--rank 0")


def test_the_demo(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.output.mkdir()
    arguments = ["demo", "--output", str(case.output), "--ratio", "3", "--steps", "-1"]
    refused(arguments, capfd, "--ratio 3", "--steps -1", "--output", root=case.root, lines=3)


def test_labelled_texts_and_what_reads_them(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_bert(case.root / "bert")
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").write_text("{")
    (case.root / "torn.csv").write_text("text,label\ngood,1\nbad,\n")
    words = ("no model.safetensors", "a file of its tokenizer", "torn.csv, line 3")
    for command in ("prune", "compare"):
        options = flags({"model": str(model), "data": str(case.root / "torn.csv"), "output": str(case.root / "new")})
        refused([command, *options], capfd, *words, root=case.root, lines=3)
        refused([command, *options, "--rank", "0"], capfd, words[0], "--rank 0", root=case.root, lines=2)


def test_images_and_what_reads_them(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    model, images = save_classifier(case.root / "vit"), write_images(case.root / "images", each=2)
    (model / "model.safetensors").unlink()
    (model / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"vidth": 16}}'
    )
    (images / "red" / "1.png").write_bytes(b"\x89PNG")
    words = ("no model.safetensors", "its image processor", "--data", "1.png")
    for command, options in (("prune", flags({"output": str(case.root / "new")})), ("evaluate", [])):
        arguments = [command, "--model", str(model), "--data", str(images), *options]
        refused(arguments, capfd, *words, root=case.root, lines=3)
        refused([*arguments, "--batch", "0"], capfd, words[0], "--batch 0", root=case.root, lines=2)


def test_a_model_that_cannot_be_read_leaves_open_what_folders_of_folders_are(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_images(case.root / "images", each=2)
    (case.model / "config.json").write_text("{}")
    refused(["evaluate", "--model", str(case.model), "--data", str(images)], capfd, str(case.model), root=case.root)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_dropout", -0.1), ("attention_dropout", 9e18), ("attention_dropout", float("nan")), ("id2label", {"0": ["a"]}),
    ],
)  # fmt: skip
def test_what_no_class_of_transformers_looks_at_in_a_configuration(
    key: str, value: object, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((case.model / "config.json").read_text()) | {key: value}
    (case.model / "config.json").write_text(json.dumps(values))
    refused(["inspect", "--model", str(case.model)], capfd, f"({key} {value})", root=case.root)
