"""Random BERTs with and without a head, and reviews to tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.tasks.cases import reviews, save_bert, write_csv


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `masked`, `bare` and `reviews.csv`."""
    root = tmp_path_factory.mktemp("inputs")
    save_bert(root / "masked")
    save_bert(root / "bare", head=False)
    write_csv(root / "reviews.csv", reviews())
    return root
