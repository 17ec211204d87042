"""A tiny random model with a text, and the folder of one run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune import pipeline
from tests.pipeline.cases import prune_config
from tests.samples import save_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model and a text; a test that changes a file puts it back."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def pruned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one pruning run to 50 %, its page included."""
    output = tmp_path_factory.mktemp("pruned") / "out"
    pipeline.prune(prune_config(inputs, output, html=True))
    return output
