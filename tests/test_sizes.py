"""--sizes writes a verified folder for every size, nested in the larger ones, with one table; it survives a crash between and within."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import loraprune
from loraprune import pipeline, sizes
from loraprune.commands.compare.settings import CompareConfig
from loraprune.commands.parser import parse
from loraprune.commands.plan import dry_run
from loraprune.commands.resume import resume
from loraprune.commands.tables.results import all_sizes
from loraprune.commands.tables.shapes import dry_run as print_plan
from loraprune.config.commands import PlanConfig, ResumeConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import CheckpointError, ConfigError, PlanError, VerificationError
from loraprune.functions.arguments import make_options
from loraprune.plan import Plan
from loraprune.pruning.removed import Removed
from loraprune.reporting.report import Report
from tests.pipeline.cases import SHORT, check_loads_anywhere, count, prune_config, read_report
from tests.pipeline.test_resume import Stopped, results, stop_after
from tests.samples import save_tiny, write_text
from tests.test_rounds import STILL, contents, kept_rows

SIZES = [0.9, 0.8, 0.6]
NAMES = ["90", "80", "60"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model", intermediate_size=96, num_attention_heads=8, num_key_value_heads=4)
    write_text(root / "text.txt", 200)
    return root


def sizes_config(inputs: Path, output: Path, **changes: Any) -> PruneConfig:
    return prune_config(inputs, output, **{"sizes": SIZES, "steps": 9, "save": 1} | changes)


@contextmanager
def watched(*, stop_at: int | None = None) -> Iterator[list[str]]:
    """Note the folder of every run that begins, and end one as a crash would."""
    begun: list[str] = []
    real = pipeline.run

    def run(config: PruneConfig | FinetuneConfig) -> Report:
        begun.append(Path(config.output).name)
        if len(begun) == stop_at:
            raise Stopped
        return real(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", run)
        yield begun


@pytest.fixture(scope="module")
def pruned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Return the folder of a run, and what it returned."""
    output = tmp_path_factory.mktemp("sizes") / "out"
    return output, pipeline.prune(sizes_config(inputs, output, **STILL))


def test_every_size_is_a_verified_folder_nested_in_the_larger_ones(pruned: tuple[Path, Report], inputs: Path) -> None:
    output, _ = pruned
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [*NAMES, ".loraprune-files", "plots", "sizes.json", "table.md"]
    )
    dense, larger = inputs / "model", None
    for size, name in zip(SIZES, NAMES, strict=True):
        folder = output / name
        check_loads_anywhere(folder)
        assert count(folder) / count(dense) == pytest.approx(size, abs=0.03)
        plan = Plan.read(folder)
        assert kept_rows(dense, folder, plan)  # in terms of the dense model
        report = read_report(folder)
        assert report["verification"]["masked_vs_sliced"] <= 1e-4
        assert report["target"]["size"] == size
        assert report["ratio_requested"] is None
        assert report["model"] == str(dense)
        assert report["parameters"]["dense"] == count(dense)
        if larger:
            assert all(set(kept) <= set(larger.kept[group]) for group, kept in plan.kept.items())
            assert plan.kept != larger.kept
        larger = plan


def test_the_sizes_share_the_steps_and_are_told_in_terms_of_the_dense_model(pruned: tuple[Path, Report]) -> None:
    output, _ = pruned
    reports = [read_report(output / name) for name in NAMES]
    assert [each["steps"] for each in reports] == [3, 6, 9]  # of 9 for all
    assert len({each["perplexity"]["dense"] for each in reports}) == 1
    assert len({each["perplexity"]["pruned"] for each in reports}) == 3
    assert [entry["step"] for entry in reports[2]["curve"]] == list(range(1, 10))
    assert len(reports[2]["removals"]) > len(reports[0]["removals"])


def test_one_table_and_one_file_tell_about_all_sizes(
    pruned: tuple[Path, Report], capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = pruned
    values = json.loads((output / "sizes.json").read_text())
    assert [each["folder"] for each in values["sizes"]] == NAMES
    for each in values["sizes"]:
        one = read_report(output / each["folder"])
        assert each["parameters"] == one["parameters"]["pruned"] == count(output / each["folder"])
        assert each["value"] == one["perplexity"]["pruned"]
        assert each["verdict"] == one["verdict"]["word"]
        assert (output / each["folder"] / "README.md").read_text().partition("\n# ")[2].startswith(each["folder"])
    assert report.sizes is not None
    assert report.sizes.reason == values["reason"]
    table = (output / "table.md").read_text()
    assert table.count("\n| ") == 5  # a heading, the dense model, three sizes
    assert values["reason"] in table
    chosen = report.sizes.recommended or "90%"
    assert report.folder == str(output / chosen.rstrip("%"))
    assert report.parameters[1] == count(output / chosen.rstrip("%"))
    assert (output / "plots" / "sizes.svg").read_text().count("recommended") == (report.sizes.recommended is not None)
    again = Report.from_json(json.loads(json.dumps(report.values)))
    assert again.sizes == report.sizes
    all_sizes(report.sizes)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"recommended {report.sizes.outcome}" in printed
    assert yaml.safe_load((output / "60" / "run.yaml").read_text())["sizes"] == SIZES  # the run that made it


def test_a_damaged_copy_is_noticed(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is every other run here."""
    real = shutil.copytree

    def damaging(source: Path, target: Path, **options: Any) -> Path:
        place = Path(real(source, target, **options))
        if place.name == "80":
            shutil.copy(source.parent / "90" / "model.safetensors", place)
        return place

    monkeypatch.setattr(shutil, "copytree", damaging)
    with pytest.raises((VerificationError, RuntimeError, CheckpointError)):
        pipeline.prune(sizes_config(inputs, tmp_path / "out", **STILL))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("where", "step"), [(1, 2), (3, 2)])
def test_a_run_that_was_stopped_is_resumed_by_name(
    where: int, step: int, inputs: Path, pruned: tuple[Path, Report], tmp_path: Path
) -> None:
    real = pipeline.run
    begun: list[str] = []

    def stopping(config: PruneConfig) -> Report:
        begun.append(config.output)
        if len(begun) == where:
            stop_after(step, patch)
        return real(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", stopping)
        with pytest.raises(Stopped):
            pipeline.prune(sizes_config(inputs, tmp_path / "out", **STILL))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with watched() as repeated:
        resume(ResumeConfig(output=str(tmp_path / "out")))
    assert repeated == NAMES[where - 1 :]  # what was finished is not repeated
    for name in NAMES:
        assert results(tmp_path / "out" / name) == results(pruned[0] / name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_sizes_with_other_options_are_refused_and_kept(inputs: Path, tmp_path: Path) -> None:
    with watched(stop_at=2), pytest.raises(Stopped):
        pipeline.prune(sizes_config(inputs, tmp_path / "out"))
    before = contents(tmp_path)
    assert any(name.endswith("sizes/90/model.safetensors") for name in before)
    with pytest.raises(ConfigError, match=r"--lr 0\.5 \(was 0\.001\)"):
        pipeline.prune(sizes_config(inputs, tmp_path / "out", resume=True, lr=0.5))
    assert contents(tmp_path) == before
    with pytest.raises(CheckpointError, match="give --resume"):
        pipeline.prune(sizes_config(inputs, tmp_path / "out"))


def test_an_output_of_sizes_is_replaced_only_when_asked(
    inputs: Path, pruned: tuple[Path, Report], tmp_path: Path
) -> None:
    shutil.copytree(pruned[0], tmp_path / "out")
    with pytest.raises(ConfigError, match="give --overwrite"):
        sizes_config(inputs, tmp_path / "out")
    assert sizes_config(inputs, tmp_path / "out", overwrite=True).overwrite
    (tmp_path / "out" / "sizes.json").unlink()
    with pytest.raises(ConfigError, match="not written by loraprune"):  # the control
        sizes_config(inputs, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 0.3}, r"--ratio 0\.3 --sizes 90%,80%,60%: give one target only"),
        ({"size": 0.8}, r"--size 0\.8 --sizes 90%,80%,60%: give one target only"),
        ({"heads": 4}, r"--heads 4 --sizes 90%,80%,60%: give one target only"),
        ({"max_drop": 0.05}, r"--max-drop 0\.05 --sizes 90%,80%,60%: give one target only"),
        ({"rounds": 2}, "--sizes 90%,80%,60% --rounds 2"),
        ({"sparsity": "2:4"}, "--sizes 90%,80%,60% --sparsity 2:4"),
        ({"vocabulary": "data"}, "--sizes 90%,80%,60% --vocabulary data: .*cut it first"),
        ({"scores": "scores.safetensors"}, "--sizes 90%,80%,60% --scores"),
        ({"depth": True}, "--sizes 90%,80%,60% --depth true"),
        ({"teacher": "copy"}, "--sizes 90%,80%,60% --teacher copy"),
        ({"steps": 2}, "--sizes 90%,80%,60% --steps 2: .*give at least 3, or 0"),
        ({"sizes": "80%"}, "--sizes 80%: at least two sizes"),
        ({"sizes": "80%,0.8"}, "--sizes 80%,0.8: a size is given twice"),
        ({"sizes": "80,60"}, "--sizes 80,60: '80' is not a fraction above 0 and at most 1"),
        ({"sizes": "80%,,60%"}, "--sizes 80%,,60%: '' is not a fraction above 0"),
    ],
)
def test_options_that_make_no_sense_with_sizes_are_refused(changes: dict[str, Any], words: str) -> None:
    fixed: dict[str, Any] = {"model": "demo", "data": "stdlib", "output": "somewhere", "sizes": "90%,80%,60%"}
    assert PruneConfig(**fixed).idle() == []  # the control
    with pytest.raises(ConfigError, match=words):
        PruneConfig(**fixed | changes)


def test_sizes_are_read_everywhere() -> None:
    named: dict[str, Any] = {"model": "demo", "data": "stdlib", "output": "somewhere"}
    words = ["prune", *(f"--{name}={value}" for name, value in named.items()), "--sizes"]
    for typed in ("60%,90%,80%", "0.9,0.6,0.8", "[90%, 80%, 60%]"):
        assert PruneConfig(**named, sizes=parse([*words, typed])[1]["sizes"]).all_sizes == (0.9, 0.8, 0.6)
    for given in ([0.8, 0.9, 0.6], ["90%", "80%", "60%"], "90%, 80%, 60%"):
        assert make_options(PruneConfig, named | {"sizes": given}).all_sizes == (0.9, 0.8, 0.6)
    with pytest.raises(ConfigError, match="give one target only"):
        parse([*words, "90%,80%", "--ratio", "0.5"])
    for asked in ({"sizes": "90%,80%"}, {"grid": {"sizes": ["90%,80%"]}}):
        with pytest.raises(ConfigError, match=r"a cell is one model; give --grid\.size"):
            CompareConfig(**named, **asked)
    assert CompareConfig(**named, grid={"size": [0.9, 0.8]}).expand()[1] == []  # the control


def test_sizes_that_cannot_be_had_are_refused_before_any_work(inputs: Path, tmp_path: Path) -> None:
    with watched() as begun:
        with pytest.raises(PlanError, match=r"90% and 89\.9% give the same shape"):
            pipeline.prune(sizes_config(inputs, tmp_path / "out", sizes=[0.9, 0.899]))
        with pytest.raises(PlanError, match="--sizes 90%,1%: 1%: this model has"):
            pipeline.prune(sizes_config(inputs, tmp_path / "out", sizes=[0.9, 0.01]))
    assert begun == []
    assert list(tmp_path.iterdir()) == []


def test_all_sizes_together_take_what_one_run_takes(inputs: Path, tmp_path: Path) -> None:
    config = replace(sizes_config(inputs, tmp_path / "out", steps=20), calibration=100, end_to_end=7, local=5)
    aims, places = sizes.find_aims(config), [tmp_path / name for name in NAMES]
    before: list[Removed] = []
    made, left = [], 1000
    for turn, aim in enumerate(aims):
        made.append(sizes.size_config(config, turn, before, places=places, aims=aims))
        now, left = left, round(left * (1 - made[-1].ratio))
        before.append(Removed(made[-1].ratio, made[-1].ratio, now, left, units={}))
        assert left / 1000 == pytest.approx(1 - aim.target.ratio, abs=1e-3)
    for name in ("steps", "calibration", "end_to_end", "local"):
        assert sum(getattr(each, name) for each in made) == getattr(config, name), name
    assert sum(each.epochs for each in made) == pytest.approx(config.epochs)
    assert [each.model for each in made] == [config.model, *map(str, places[:2])]
    assert len({each.order_seed for each in made}) == 3
    assert {(each.rank, each.lr) for each in made} == {(config.rank, config.lr)}
    assert all(
        each.end_to_end is None
        for each in [sizes.size_config(replace(config, end_to_end=None), 0, [], places=places, aims=aims)]
    )


@pytest.mark.parametrize("steps", [0, 6])
def test_the_recommended_recipe_goes_through_sizes(steps: int, inputs: Path, tmp_path: Path) -> None:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(tmp_path / "out")}
    short = SHORT | {"steps": steps, "rows": 16, "calibration": 600, "sizes": "100%,70%"}
    report = pipeline.prune(PruneConfig(**paths, **short))
    assert report.sizes is not None
    whole, small = report.sizes.sizes
    assert whole.parameters == count(inputs / "model")
    assert small.parameters < whole.parameters
    assert (whole.value == report.quality.dense) is (steps == 0)  # tuned, or not touched
    check_loads_anywhere(tmp_path / "out" / "70")


def test_in_python_the_recommended_model_is_loaded_and_all_folders_are_named(inputs: Path) -> None:
    result = loraprune.prune(
        str(inputs / "model"), data=str(inputs / "text.txt"), sizes=[0.9, "70%"], steps=4, batch=4, length=32, rank=4, device="cpu",
        html=False, criterion="magnitude", end_to_end=0, calibration=256,
    )  # fmt: skip
    assert list(result.sizes) == [0.9, 0.7]
    assert all((folder / "config.json").is_file() for folder in result.sizes.values())
    assert result.folder in result.sizes.values()
    assert result.model.num_parameters() == result.report.parameters[1] == count(result.folder)
    with pytest.raises(ConfigError, match=r"ratio=0\.3 sizes=.*: give one target only"):
        loraprune.prune(str(inputs / "model"), data=str(inputs / "text.txt"), sizes=[0.9, 0.7], ratio=0.3)


def test_plan_has_a_row_for_every_size(
    inputs: Path, pruned: tuple[Path, Report], capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry_run(PlanConfig(model=str(inputs / "model"), sizes="60%,90%,80%", allocation="uniform"))
    assert [one["size"] for one in found.values["sizes"]] == SIZES
    for one, name in zip(found.values["sizes"], NAMES, strict=True):
        assert one["parameters"]["pruned"] == pytest.approx(count(pruned[0] / name), rel=0.03)
    print_plan(found)
    printed = capsys.readouterr().out
    for one in found.values["sizes"]:
        assert f"{one['parameters']['pruned']:,}" in printed
    plain = PlanConfig(model=str(inputs / "model"), size=0.6, allocation="uniform")
    assert dry_run(plain).values["parameters"] == found.values["parameters"]  # those of the smallest
    with pytest.raises(ConfigError, match="their table has one size"):
        PlanConfig(model="known", sizes="90%,80%")
    with pytest.raises(ConfigError, match="give one target only"):
        PlanConfig(model="demo", sizes="90%,80%", size=0.5)
