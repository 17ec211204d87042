"""Checkpoints that cannot be written, and some that do not fit."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loraprune import pipeline
from loraprune.errors import CheckpointError
from loraprune.runtime.atomic import read_sealed, seal
from loraprune.training.resume import keeper
from loraprune.training.resume.files import VALUES
from tests.pipeline.cases import prune_config
from tests.pipeline.test_resume import results, resumed, stopped


def test_a_checkpoint_that_finds_no_room_ends_no_run(
    inputs: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = keeper.write_tree

    def write(folder: Path, tree: Mapping[str, Any]) -> None:
        if folder.name.endswith("3"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, tree)

    monkeypatch.setattr(keeper, "write_tree", write)
    pipeline.prune(prune_config(inputs, tmp_path / "out", save=1))
    assert caplog.text.count("no checkpoint could be written") == 1
    assert "step 3: no checkpoint could be written" in caplog.text
    assert results(tmp_path / "out") == results(pruned)


@pytest.mark.parametrize("lost", ["optimizer", "parts", "random"])
def test_a_whole_checkpoint_without_what_a_run_needs_is_refused_and_stays(
    lost: str, inputs: Path, tmp_path: Path
) -> None:
    stopped(inputs, tmp_path / "out", 2)
    newest = tmp_path / "out.partial" / "step-00000002"
    about = {name: value for name, value in read_sealed(newest).items() if name != "files"}
    values = json.loads((newest / VALUES).read_text())
    del values[lost]
    (newest / VALUES).write_text(json.dumps(values))
    seal(newest, about)
    with pytest.raises(CheckpointError, match="its state does not fit this model"):
        resumed(inputs, tmp_path / "out")
    assert newest.is_dir()
    assert not (tmp_path / "out").exists()
