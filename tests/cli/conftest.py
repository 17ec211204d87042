"""What every test of the command line starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from tests.cli.cases import Case
from tests.samples import save_tiny, write_text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    save_tiny(root / "model")
    write_text(root / "text.txt")
    return root


@pytest.fixture
def case(good: Path, tmp_path: Path) -> Case:
    root = tmp_path / "case"
    shutil.copytree(good, root)
    return Case(root)
