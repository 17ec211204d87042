"""Everything here needs fork; the mark keeps it apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.samples import save_tiny, write_text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.distributed)
            item.add_marker(pytest.mark.timeout(900))  # two processes and the others on a machine with two cores
            item.add_marker(pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"))


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and a text."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "model")
    write_text(folder / "text.txt", 200)
    return folder
