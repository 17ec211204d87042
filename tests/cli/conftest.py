"""What every test of the command line starts from."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import datasets
import pytest

from loraprune.families import find_groups
from loraprune.models.saving import save_model
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_
from tests.cli.cases import KEPT, Case
from tests.samples import byte_tokenizer, save_tiny, tiny_llama, write_text


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


@pytest.fixture
def layerwise(case: Case) -> Path:
    """Return a folder as `prune` leaves it, with other widths in each of its two layers."""
    model = tiny_llama()
    config, groups = tiny_llama().config, find_groups(model.config)
    plan = Plan({group.name: group.units for group in groups}, KEPT)
    slice_(model, groups, plan.kept)
    folder = case.root / "layerwise"
    save_model(model, folder, config=config, groups=groups, counts={name: len(kept) for name, kept in KEPT.items()})
    byte_tokenizer().save_pretrained(folder)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let every connection fail, and return where to."""
    asked: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    def look_up(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked
