"""The recipes for the paper's tables say what the paper says, and run on a tiny model of the same family."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraprune.commands import parser
from loraprune.commands.compare.settings import CompareConfig
from loraprune.config.training import PruneConfig
from loraprune.data.images.benchmarks import BENCHMARKS
from loraprune.pipeline import prune
from loraprune.pruning.method import make_method
from loraprune.training.setup import check_run, load_run
from tests.data.images.conftest import save_classifier, write_images
from tests.evaluation.tasks.cases import reviews, save_bert, write_csv
from tests.samples import jsonl, save_tiny, sentences
from tests.tiny import with_lora

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "paper"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NAMES = {field.name for field in fields(CompareConfig)}
MARKS = ("paper", "code", "ours")
SMALL: dict[str, Any] = {
    "rows": 8, "batch": 4, "accumulate": 1, "length": 32, "rank": 2, "device": "cpu", "dtype": "float32", "html": False,
    "eval": None, "checkpointing": False, "quantize": "none",
}  # fmt: skip
"""what a tiny model on a CPU needs otherwise"""


def as_parameter(path: Path) -> Any:
    skipped = find_spec("bitsandbytes") is None and "quantize:" in path.read_text(encoding="utf-8")
    return pytest.param(path, id=path.stem, marks=pytest.mark.skipif(skipped, reason="no bitsandbytes"))


every_recipe = pytest.mark.parametrize("path", [as_parameter(path) for path in RECIPES])


@cache
def cells_of(path: Path) -> list[PruneConfig]:
    """Return the pruning cells of a recipe, read as the command line does it; it must build them without a complaint."""
    values = parser.parse(["compare", "--config", str(path)])[1].as_dict()
    options = CompareConfig(**{name: value for name, value in values.items() if name in NAMES})
    assert options.output == f"build/paper/{path.stem}"
    return [cell.config for cell in options.expand()[0] if isinstance(cell.config, PruneConfig)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return for each family a tiny random model and data of the kind that the recipes name."""
    root = tmp_path_factory.mktemp("stand-ins")
    chats, texts = root / "lamini.jsonl", root / "c4.jsonl"
    chats.write_text(jsonl(*({"instruction": f"say {line}", "response": line} for line in sentences(40))))
    texts.write_text(jsonl(*({"text": line} for line in sentences(40))))
    llama = save_tiny(root / "llama")
    return {
        "MBZUAI": (llama, chats),
        "c4-20k": (llama, texts),
        "vtab": (save_classifier(root / "vit"), write_images(root / "images")),
        "cub": (root / "vit", root / "images"),
        "glue": (save_bert(root / "bert"), write_csv(root / "reviews.csv", reviews(40))),
    }


def small(config: PruneConfig, stand_ins: dict[str, tuple[Path, Path]], output: Path) -> PruneConfig:
    """Return a cell with model, data, steps and sizes replaced, and everything else as it stands."""
    model, data = next(pair for start, pair in stand_ins.items() if config.data.startswith(start))
    steps = 0 if config.steps == 0 else 2
    return replace(config, model=str(model), data=str(data), output=str(output), steps=steps, **SMALL)


def test_every_table_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} >= {
        *(f"llama-{size}" for size in ("7b", "13b", "30b", "65b")), "llama-7b-8bit", "llama-7b-schedule", "llama-7b-untuned",
        "llama-7b-interval", "llama-7b-decay", "vit-b16-vtab", "bert-base-glue",
    }  # fmt: skip


@every_recipe
def test_a_recipe_has_the_papers_settings(path: Path) -> None:
    cells = cells_of(path)
    for config in cells:
        assert config.alpha / config.rank == 2
        if "llama" in path.stem and config.steps != 0:
            assert (config.batch * config.accumulate, config.lr, config.epochs, config.length) == (128, 1e-4, 2, 512)
            assert config.decay == 0.9 or "decay" in path.stem
    if path.stem in ("llama-7b", "llama-13b", "llama-30b", "llama-65b"):
        assert {config.ratio for config in cells} == {0.2, 0.5}


def test_the_vision_recipe_names_all_of_vtab() -> None:
    tasks = yaml.safe_load((FOLDER / "vit-b16-vtab.yaml").read_text(encoding="utf-8"))["grid"]["data"]
    assert set(tasks) == {f"{name}:test" for name in BENCHMARKS if name.startswith("vtab-")}


@every_recipe
def test_every_number_is_marked_with_its_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "# Marks: paper, stated there; code," in text
    first = text.index("\nratio: ") if "\nratio: " in text else text.index("\n  seed: ")
    ratio = text[first:].splitlines()[1]
    assert any(mark in ratio for mark in MARKS)


@every_recipe
def test_a_recipe_is_ready_to_run_on_a_tiny_model(
    path: Path, stand_ins: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    kinds = {}
    for config in cells_of(path):
        kinds.setdefault((config.criterion, config.schedule, config.allocation, config.sparsity), config)
    for config in kinds.values():
        job = check_run(small(config, stand_ins, tmp_path / "out"))
        make_method(with_lora(load_run(job).model), job.config.pruning(), job.goal)


@pytest.mark.parametrize("name", ["llama-7b", "llama-7b-untuned", "vit-b16-vtab", "bert-base-glue"])
def test_two_steps_of_a_recipe_give_a_model_of_the_ratio(
    name: str, stand_ins: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    config = cells_of(FOLDER / f"{name}.yaml")[-1]
    report = prune(small(config, stand_ins, tmp_path / "out"))
    assert report.values["ratio_reached"] == pytest.approx(config.ratio, abs=0.1)
    assert (tmp_path / "out" / "model.safetensors").is_file()
