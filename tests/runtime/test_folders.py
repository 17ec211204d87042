"""Folders that are whole or not there, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraprune.errors import CheckpointError, NumericsError
from loraprune.runtime import atomic, workspace
from loraprune.runtime.atomic import MANIFEST, exchange, read_sealed, replace_folder, replace_text, seal
from loraprune.runtime.workspace import new_folder, workspace_of
from loraprune.training.resume.files import (
    finish_checkpoint,
    join,
    new_checkpoint,
    read_tree,
    split,
    whole_checkpoints,
    write_tree,
)


def make(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(text)
    return folder


@pytest.mark.parametrize("swaps", [True, False], ids=["swap", "two renames"])
def test_a_folder_takes_the_place_of_another(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(atomic.sys, "platform", "darwin")
    one, other = make(tmp_path / "one", "1"), make(tmp_path / "other", "2")
    exchange(one, other)
    assert (one / "report.json").read_text() == "2"
    assert (other / "report.json").read_text() == "1"
    replace_folder(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (other / "report.json").read_text() == "2"


@pytest.mark.parametrize("swaps", [True, False], ids=["swap", "two renames"])
def test_a_swap_that_fails_leaves_both_folders_as_they_were(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(atomic.sys, "platform", "darwin")
    other = make(tmp_path / "other", "2")
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "none", other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (other / "report.json").read_text() == "2"


def test_a_former_folder_gets_its_name_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    workspace_of(output).mkdir()
    make(atomic.former_of(workspace_of(output) / workspace.RESULT), "old")
    with pytest.raises(CheckpointError, match="exists"), new_folder(output, overwrite=False):
        pass
    assert (output / "report.json").read_text() == "old"


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "report.json").write_text("{}")
        with (
            pytest.raises(CheckpointError, match="another run is writing it"),
            new_folder(tmp_path / "out", overwrite=False),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the disk is full"), new_folder(tmp_path / "out", overwrite=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_run_left_half_written_goes_and_checkpoints_stay(tmp_path: Path) -> None:
    partial = workspace_of(tmp_path / "out")
    partial.mkdir()
    for name in ("result", ".step-00000003", "step-00000002", "teacher"):
        make(partial / name, name)
    with pytest.raises(NumericsError), new_folder(tmp_path / "out", overwrite=False, resume=True):
        raise NumericsError("stop")
    assert sorted(path.name for path in partial.iterdir() if path.is_dir()) == ["step-00000002", "teacher"]


@given(st.data())
def test_whatever_happens_to_one_byte_or_the_length_of_a_sealed_file_is_seen(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "a").write_bytes(data.draw(st.binary(min_size=1, max_size=64)))
        seal(folder, {"step": 3})
        assert read_sealed(folder)["step"] == 3
        content = bytearray((folder / "a").read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        (folder / "a").write_bytes(content)
        with pytest.raises(ValueError, match=r"a (is torn|was altered)"):
            read_sealed(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"../a": {"bytes": 1, "sha256": "x"}}}']
)
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing"):
        read_sealed(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError):
        read_sealed(tmp_path)


def test_the_newest_whole_checkpoints_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        folder = new_checkpoint(tmp_path, step)
        write_tree(folder, {"step": step, "w": [torch.full((2,), float(step))]})
        finish_checkpoint(folder, {"step": step})
    new_checkpoint(tmp_path, 4)  # never finished
    assert [manifest["step"] for _, manifest in whole_checkpoints(tmp_path)] == [3, 2]
    newest = tmp_path / "step-00000003"
    assert torch.equal(read_tree(newest)["w"][0], torch.full((2,), 3.0))
    values = json.loads((newest / MANIFEST).read_text()) | {"format": 99}
    (newest / MANIFEST).write_text(json.dumps(values))
    assert [manifest["step"] for _, manifest in whole_checkpoints(tmp_path)] == [2]
    assert "has format 99, this version reads 1" in caplog.text


def test_a_tree_comes_back_as_it_was() -> None:
    shared = torch.arange(3.0)
    tree = {"a": [shared, {"b": shared[1:]}, None, 0.1], "c": "word", "empty": {}}
    tensors: dict[str, torch.Tensor] = {}
    back = join(json.loads(json.dumps(split(tree, tensors))), tensors)
    assert back["c"] == "word"
    assert back["a"][2:] == [None, 0.1]
    assert torch.equal(back["a"][1]["b"], shared[1:])


def test_a_text_that_cannot_be_written_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    replace_text(page, "former")
    replace_text(page, "present")
    assert page.read_text() == "present"

    def full(self: Path, text: str, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(page, "newest")
    assert page.read_text() == "present"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
