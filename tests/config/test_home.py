"""`~` is the home folder in every option that may name a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.commands.compare.settings import CompareConfig
from loraprune.config.commands import CompareModelsConfig, EvaluateConfig, ReportConfig
from loraprune.config.export import ExportConfig
from loraprune.config.training import PruneConfig
from tests.cli.cases import refused
from tests.samples import save_tiny, write_text

RUN = {"model": "~/m", "data": "~/d.txt", "eval": "~/e.txt", "output": "~/out", "scores": "~/s.safetensors"}
SCORED = {"data": ["~/d.txt", "stdlib"], "against": "~/b", "tasks": "piqa", "task_data": "~/t"}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PruneConfig, RUN), (CompareConfig, RUN), (EvaluateConfig, {"model": "~/m"} | SCORED),
        (CompareModelsConfig, {"models": ["~/m", "~/b"], "data": "~/d.txt", "output": "~/out"}),
        (ExportConfig, {"model": "~/m", "output": "~/out"}), (ReportConfig, {"model": "~/m", "plots": "~/p"}),
    ],
)  # fmt: skip
def test_a_home_folder_is_expanded_in_every_option(
    kind: type[Any], values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    for name in ("report.json", "plan.json"):
        (tmp_path / "m" / name).touch()
    options = kind(**values)
    for name, value in values.items():
        given = value if isinstance(value, list) else [value]
        found = getattr(options, name)
        found = found if isinstance(found, list) else [found]
        assert found == [each.replace("~", str(tmp_path)) for each in given]
    if kind is not ReportConfig:  # the control: only at the beginning
        assert kind(**values | {"model": "a~b"} if "model" in values else values)


def test_a_config_file_and_what_it_names_are_found_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "home" / "m")
    write_text(tmp_path / "home" / "t.txt")
    lines = "model: ~/m\ndata: ~/t.txt\noutput: ~/small\nratio: 0.3\n"
    (tmp_path / "home" / "run.yaml").write_text(lines, encoding="utf-8")
    assert cli.main(["prune", "--config", "~/run.yaml", "--json"]) == 0
    assert captured[0].output == str(tmp_path / "home" / "small")
    refused(["prune", "--config", "~/run.yaml", "--steps", "many"], capfd, "--steps", lines=1)
