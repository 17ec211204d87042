"""A grid becomes the cells it says, or all that is wrong with it is told before anything runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraprune import cli
from loraprune.commands.compare.settings import CompareConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.yaml"))


def config(**changes: Any) -> CompareConfig:
    return CompareConfig(**{"model": "m", "data": "d", "output": "o"} | changes)


def names(options: CompareConfig) -> list[str]:
    return [cell.name for cell in options.expand()[0]]


def test_every_value_meets_every_other() -> None:
    options = config(grid={"criterion": ["lora", "gate"], "ratio": [0.2, 0.5], "seed": [0, 7]}, decay=0.5)
    cells = options.expand()[0]
    found = {(c.config.criterion, c.config.ratio, c.config.seed) for c in cells if isinstance(c.config, PruneConfig)}
    assert len(cells) == 8
    assert found == {(c, r, s) for c in ("lora", "gate") for r in (0.2, 0.5) for s in (0, 7)}
    assert {cell.config.pruning().decay for cell in cells} == {0.5}
    assert names(options)[:3] == ["lora, ratio 0.2, seed 0", "lora, ratio 0.2, seed 7", "lora, ratio 0.5, seed 0"]


def test_named_runs_are_crossed_with_the_grid() -> None:
    options = config(runs={"paper": {}, "best": {"criterion": "gate", "decay": 0.5}}, grid={"ratio": [0.2, 0.5]})
    assert names(options) == [
        "paper, ratio 0.2, seed 0", "paper, ratio 0.5, seed 0", "best, ratio 0.2, seed 0", "best, ratio 0.5, seed 0",
    ]  # fmt: skip
    assert [cell.config.pruning().decay for cell in options.expand()[0]] == [0.9, 0.9, 0.5, 0.5]


def test_no_grid_is_one_cell() -> None:
    assert names(config()) == ["prune, seed 0"]


def test_a_baseline_is_run_once_for_every_set_of_training_options() -> None:
    options = config(grid={"criterion": ["lora", "gate"], "ratio": [0.2, 0.5], "seed": [0, 1]}, baselines=["finetune"])
    cells = options.expand()[0]
    dense = {cell.key: cell.config.seed for cell in cells if isinstance(cell.config, FinetuneConfig)}
    assert names(options)[:2] == ["finetune, seed 0", "finetune, seed 1"]
    assert len(cells) == 10
    assert all(dense[cell.baseline] == cell.config.seed for cell in cells if cell.baseline)
    by_rank = config(runs={"a": {"rank": 2, "decay": 0.5}, "b": {"rank": 4}, "c": {}}, baselines=["finetune"])
    assert names(by_rank)[:3] == [f"finetune, rank {rank}, seed 0" for rank in (2, 4, 8)]


def test_a_cell_is_known_by_all_options_but_where_it_writes() -> None:
    keys = {config(**changes).expand()[0][0].key for changes in ({}, {"output": "p"}, {"overwrite": True}, {"jobs": 2})}
    assert len(keys) == 1
    for changes in ({"seed": 1}, {"lr": 1e-3}, {"model": "n"}, {"grid": {"ratio": [0.4]}}):
        assert config(**changes).expand()[0][0].key not in keys


def test_values_are_read_as_on_the_command_line() -> None:
    cells = config(grid={"lr": ["1e-3"], "steps": [None, 5], "shrink": [False]}).expand()[0]
    assert [(cell.config.lr, cell.config.steps) for cell in cells] == [(1e-3, None), (1e-3, 5)]


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        config(
            jobs=0,
            decay=0.5,
            grid={"ratoi": [0.2], "ratio": [0.2, 2.0], "schedule": ["square"], "decay": [0.1], "seed": [1, 1], "heads": [],
                  "output": ["x"]},
            runs={"a": {"ratio": 0.3, "rank": "many"}, "b": {"lambda": 1}},
            reference="paper",
        )  # fmt: skip
    message = str(told.value)
    for words in (
        "--jobs 0", "grid.ratoi: unknown option 'ratoi' (did you mean 'ratio'?)", "--ratio 2.0: a fraction",
        "grid.schedule square: one of", "--decay 0.5 and grid.decay: set it in one place", "grid.seed 1: given twice",
        "grid.heads is empty", "grid.output: every cell has a separate folder", "runs.a.ratio and grid.ratio",
        "runs.a.rank many: a whole number", "runs.b.lambda: unknown option", "--reference paper",
    ):  # fmt: skip
        assert words in message
    assert message.count("--ratio 2.0") == 1


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ("runs: {a: {sparsity: 2:4}, b: {ratio: 0.5}}", "runs.a.sparsity"),
        ("grid: {sparsity: [unstructured, 2:4]}", "grid.sparsity"),
        ("sparsity: 2:4", "sparsity"),
    ],
)
def test_a_pattern_that_yaml_takes_for_a_number_is_told_with_its_place(
    lines: str, place: str, tmp_path: Path, captured: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for file, text in (("wrong.yaml", lines), ("right.yaml", lines.replace("2:4", '"2:4"'))):
        (tmp_path / file).write_text(f"model: demo\ndata: stdlib\noutput: {tmp_path / 'out'}\n{text}\n")
    assert cli.main(["compare", "--config", str(tmp_path / "wrong.yaml")]) == 2
    told = capsys.readouterr().err
    assert (
        told == f'loraprune: error: {place}: without quotes YAML reads 2:4 as 124, a number in base 60: write "2:4"\n'
    )
    assert cli.main(["compare", "--config", str(tmp_path / "right.yaml")]) == 0
    assert "2:4" in {c.config.pruning().sparsity for c in captured[0].expand()[0]}


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError) as told:
        config(runs={124: {"ratio": 0.5}, "a": {2: 1}}, grid={3: [1], "rank": [[2], "two"]})
    message = str(told.value)
    for words in (
        "runs.124: YAML reads this name as a number", "runs.a.2: unknown option 2", "grid.3: unknown option 3",
        "grid.rank [2]: a whole number is needed", "grid.rank two: a whole number is needed",
    ):  # fmt: skip
        assert words in message


def test_a_reference_is_a_label_of_a_cell() -> None:
    grid = {"criterion": ["lora", "gate"], "interval": [5, 20]}
    for reference in ("gate", "interval 20"):
        assert config(grid=grid, reference=reference).reference == reference
    with pytest.raises(ConfigError, match="did you mean 'gate'"):
        config(grid=grid, reference="gte")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="not a folder of a comparison"):
        config(output=str(tmp_path))
    with pytest.raises(ConfigError, match="this is a file"):
        config(output=str(tmp_path / "mine"))


def test_every_option_of_a_run_may_stand_in_a_grid() -> None:
    for field in fields(PruneConfig):
        if field.name not in ("output", "overwrite", "html", "sizes"):  # a cell is one model
            value = getattr(PruneConfig(model="m", data="d", output="o"), field.name)
            assert len(config(grid={field.name: [value]}).expand()[0]) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_ready_grids_build_all_their_cells(path: Path, captured: list[Any]) -> None:
    assert cli.main(["compare", "--config", str(path)]) == 0
    cells, problems = captured[0].expand()
    assert problems == []
    grid = yaml.safe_load(path.read_text())["grid"]
    assert len({cell.config.seed for cell in cells}) == len(grid["seed"]) == 3
    assert len({cell.key for cell in cells}) == len(cells) >= 12
    assert captured[0].output == f"build/{path.stem}"


def test_flags_override_a_grid_file(captured: list[Any]) -> None:
    assert (
        cli.main(
            [
                "compare",
                "--config",
                str(CONFIGS[0].with_name("criteria.yaml")),
                "--grid.seed",
                "[5]",
                "--steps",
                "7",
                "--jobs",
                "2",
            ]
        )
        == 0
    )
    assert (captured[0].grid["seed"], captured[0].steps, captured[0].jobs) == ([5], 7, 2)
    assert len(captured[0].grid) == 3
