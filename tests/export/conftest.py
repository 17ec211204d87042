"""Folders that several tests export."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.cases import save_pruned_tiny


@pytest.fixture(scope="session")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned_tiny(tmp_path_factory.mktemp("export") / "uniform")


@pytest.fixture(scope="session")
def layerwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned_tiny(tmp_path_factory.mktemp("export") / "layerwise", layerwise=True)
