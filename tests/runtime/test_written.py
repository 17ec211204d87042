"""What a folder that is replaced hands on, and what a run refuses to replace."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from loraprune.commands.compare.settings import CompareConfig
from loraprune.config.export import ExportConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import CheckpointError, ConfigError
from loraprune.runtime.workspace import new_folder
from loraprune.runtime.written import foreign_files


def write(output: Path, text: str, *names: str) -> None:
    """Write a result as a run does, with files of these names."""
    with new_folder(output, overwrite=True) as folder:
        (folder / "report.json").write_text(text)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".loraprune-files")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_files_of_the_user_survive_the_folder_that_is_replaced_and_those_of_the_run_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    write(output, "old", "model-1.safetensors", "graphs/a.onnx")
    assert foreign_files(output) == []
    (output / "notes.txt").write_text("mine")
    (output / "dense").mkdir()
    (output / "dense" / "config.json").write_text("mine")
    (output / "plan.json").write_text("mine")  # a name that the next run writes itself
    (output / "report.html").write_text("drawn later")
    with caplog.at_level(logging.WARNING):
        write(output, "new", "plan.json")
    assert tree(output) == {
        "report.json": "new", "plan.json": "new", "plan.json.kept": "mine", "notes.txt": "mine", "dense/config.json": "mine"
    }  # fmt: skip
    assert "notes.txt" in caplog.text
    write(output, "third")
    assert tree(output) == {
        "report.json": "third", "plan.json.kept": "mine", "notes.txt": "mine", "dense/config.json": "mine"
    }  # fmt: skip


def test_files_that_loaders_would_read_as_a_part_of_the_new_model_are_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    write(output, "old")
    parts = [
        "adapter_config.json",
        "added_tokens.json",
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "mine.safetensors",
    ]
    notes = ["notes.json", "dense/adapter_config.json", "readme.kept"]
    for name in (*parts, *notes):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    with caplog.at_level(logging.WARNING):
        write(output, "new")
    aside = {f"{name.replace('/', '_')}.kept": "mine" for name in parts}
    assert tree(output) == {"report.json": "new", **aside, **dict.fromkeys(notes, "mine")}
    assert "adapter_config.json (as adapter_config.json.kept)" in caplog.text
    (output / "adapter_config.json").write_text("another")
    write(output, "third")
    assert tree(output) == {
        "report.json": "third", **aside, **dict.fromkeys(notes, "mine"), "adapter_config.json.kept": "another",
        "adapter_config.json.kept.kept": "mine",
    }  # fmt: skip


def test_a_link_in_the_folder_is_kept_and_what_it_leads_to_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("mine")
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "data").symlink_to(tmp_path / "data")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "data").is_symlink()
    assert (tmp_path / "out" / "data" / "rows.jsonl").read_text() == "mine"


def options(kind: type[Any], folder: Path, **changes: object) -> Any:
    values = {"model": "demo", "output": str(folder / "out"), "overwrite": True} | changes
    return kind(**(values if kind is ExportConfig else {"data": "stdlib"} | values))


@pytest.mark.parametrize("place", ["out", "out/dense", "out.partial/rounds/1", "link"])
@pytest.mark.parametrize(
    ("kind", "option"),
    [(PruneConfig, "model"), (PruneConfig, "data"), (PruneConfig, "eval"), (PruneConfig, "scores"), (FinetuneConfig, "data"),
     (ExportConfig, "model")],
)  # fmt: skip
def test_an_input_in_the_folder_that_would_be_replaced_is_refused(
    kind: type[Any], option: str, place: str, tmp_path: Path
) -> None:
    for folder in ("out/dense", "out.partial/rounds/1", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "dense")
    (tmp_path / "other" / "plan.json").write_text("{}")  # which the default format of export needs
    with pytest.raises(ConfigError, match=f"--{option} .*would be replaced"):
        options(kind, tmp_path, **{option: str(tmp_path / place)})
    assert options(kind, tmp_path, **{option: str(tmp_path / "other")})  # the control: outside of it
    assert (tmp_path / "out" / "dense").is_dir()


def test_all_inputs_in_the_folder_are_told_at_once_and_so_are_the_parts_of_a_name(tmp_path: Path) -> None:
    for folder in ("out/dense", "out/adapter", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "out" / "report.json").write_text("{}")
    inside = str(tmp_path / "out" / "dense")
    with pytest.raises(ConfigError, match=r"--model .* and --data .*: they are in .*would be replaced; move them out"):
        options(PruneConfig, tmp_path, model=inside, data=inside)
    with pytest.raises(ConfigError, match=r"--model .*other\+.*adapter: it is in .*would be replaced"):
        options(PruneConfig, tmp_path, model=f"{tmp_path / 'other'}+{tmp_path / 'out' / 'adapter'}")


def test_a_comparison_replaces_no_input_among_its_cells(tmp_path: Path) -> None:
    (tmp_path / "out" / "cells" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"--model .*would be replaced"):
        options(CompareConfig, tmp_path, model=str(tmp_path / "out" / "cells" / "1"))


def test_a_folder_is_not_replaced_by_what_was_read_from_it(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with (
        pytest.raises(CheckpointError, match="--model"),
        new_folder(tmp_path / "out", overwrite=True, inputs={"model": str(tmp_path / "out")}),
    ):
        pass
    assert tree(tmp_path / "out") == {"report.json": "old"}


def test_a_link_as_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "report.json").write_text("{}")
    for target in ("result", "nowhere"):
        (tmp_path / "out").symlink_to(tmp_path / target)
        for overwrite in (True, False):
            with pytest.raises(ConfigError, match=r"--output .*out: it is a symbolic link"):
                options(PruneConfig, tmp_path, overwrite=overwrite)
        (tmp_path / "out").unlink()
    (tmp_path / "result").rename(tmp_path / "out")
    assert options(PruneConfig, tmp_path)  # the control: a folder
