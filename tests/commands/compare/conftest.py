"""A tiny model and a short grid on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraprune.commands.compare.settings import CompareConfig
from tests.samples import save_tiny, write_text

Make = Callable[..., CompareConfig]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    save_tiny(root / "model")
    write_text(root / "text.txt")
    return root


@pytest.fixture
def make(good: Path, tmp_path: Path) -> Make:
    def build(**changes: Any) -> CompareConfig:
        values: dict[str, Any] = {
            "model": str(good / "model"), "data": str(good / "text.txt"), "output": str(tmp_path / "out"), "steps": 2,
            "batch": 2, "length": 32, "device": "cpu",
        }  # fmt: skip
        return CompareConfig(**values | changes)

    return build
