"""What every run with sparsity starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import save_tiny, write_text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model")
    write_text(root / "text.txt", 200)
    return root
