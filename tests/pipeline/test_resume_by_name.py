"""An interrupted run is resumed by the name of its output alone, with the options it was started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.commands.resume import resume, stored_config
from loraprune.config.commands import ResumeConfig
from loraprune.config.training import FinetuneConfig, PruneConfig, as_dict
from loraprune.errors import ConfigError
from loraprune.runtime.run_file import RUN, run_problem, write_run
from loraprune.runtime.workspace import workspace_of
from tests.cli.cases import refused
from tests.pipeline.cases import prune_config
from tests.pipeline.test_resume import MIDDLE, results, stopped


def test_the_result_is_that_of_a_run_that_nothing_stopped(
    inputs: Path, pruned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    stopped(inputs, output, MIDDLE, html=False)
    capfd.readouterr()
    assert stored_config(str(output)) == prune_config(inputs, output, save=1, resume=True)
    assert cli.main(["resume", str(output), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 10
    assert results(output) == results(pruned)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    refused(["resume", str(output)], capfd, "has finished", root=tmp_path)


def test_rounds_are_resumed_as_a_whole(inputs: Path, tmp_path: Path) -> None:
    output, config = tmp_path / "out", {"rounds": 2}
    stopped(inputs, output, 1, **config)
    stored = stored_config(str(output))
    assert (stored, stored.resume) == (prune_config(inputs, output, save=1, resume=True, **config), True)
    report = resume(ResumeConfig(output=str(output)))
    assert report.training.steps == 10
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def unfinished(folder: Path, config: PruneConfig | FinetuneConfig) -> Path:
    workspace_of(folder).mkdir()
    write_run(workspace_of(folder), config.job, as_dict(config))
    return folder


@pytest.mark.parametrize("kind", [PruneConfig, FinetuneConfig])
def test_options_are_read_for_either_job_and_the_folder_may_have_moved(kind: Any, tmp_path: Path) -> None:
    config = kind(model="demo", data="stdlib", output="elsewhere", lr=3e-4, overwrite=True, eval_every=7)
    folder = unfinished(tmp_path / "out", config)
    found = stored_config(str(folder))
    assert type(found) is kind
    assert as_dict(found) == as_dict(config) | {"output": str(folder), "resume": True}


@pytest.mark.parametrize("name", ["out", "out/", "out.partial", "out.partial/"])
def test_output_and_workspace_both_name_the_run(name: str, tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out", PruneConfig(model="demo", data="stdlib", output="o"))
    assert ResumeConfig(output=f"{tmp_path}/{name}").output == str(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is damaged"), ("[]", "it names no job"), ('{"job": "evaluate", "options": {}}', "it names no job"),
     ('{"job": "prune"}', "it holds no options")],
)  # fmt: skip
def test_a_damaged_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    workspace_of(tmp_path / "out").mkdir()
    (workspace_of(tmp_path / "out") / RUN).write_text(text)
    problem = run_problem(str(tmp_path / "out"))
    assert problem is not None
    assert words in problem
    assert "--resume" in problem


def test_nothing_to_resume_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(["resume", str(tmp_path / "none")], capfd, "no interrupted run found", root=tmp_path)
    refused(["resume", ""], capfd, "--output is empty", root=tmp_path)
    refused(["resume"], capfd, "missing --output")


def test_options_of_another_version_are_named(tmp_path: Path) -> None:
    workspace_of(tmp_path / "out").mkdir()
    write_run(workspace_of(tmp_path / "out"), "prune", {"model": "m", "data": "d", "gone_option": 3})
    with pytest.raises(ConfigError, match="unknown options: gone_option"):
        stored_config(str(tmp_path / "out"))
