"""What every test shares: checked shapes, no network, one seed, few threads, the folder of real models and data."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.shaped import shaped_modules

install_import_hook(shaped_modules(), "beartype.beartype")

from loraprune import cli  # noqa: E402 (no part of the package may be imported before the hook)
from loraprune.commands import parser  # noqa: E402

settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=100)
settings.load_profile("tests")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads this when it is first imported
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Spare the garbage collections of every run the objects of the imported libraries: they take most of the time.

    They are not thawed between modules, so that only the first module waits until all of them are looked at.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let libraries free what they check at the end of the process."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _one_parser() -> Iterator[None]:
    """Let the hundreds of command lines of the tests share the parser of each command, which a program makes once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "build_parser", functools.cache(parser.build_parser))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real models and data that lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models: {folder / 'models'} is missing")
    return folder


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace what the commands do by recording the options they are given."""
    seen: list[Any] = []

    def call(target: str, *arguments: Any) -> Any:
        if not target.startswith("commands.tables."):
            seen.append(arguments[0])
        return SimpleNamespace(values={"target": target})

    monkeypatch.setattr(cli, "call", call)
    monkeypatch.setattr(parser, "check_names", lambda *_: None)  # the files of an example need not be there
    return seen
