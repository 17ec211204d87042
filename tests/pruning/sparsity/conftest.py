"""What every run with sparsity starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))
