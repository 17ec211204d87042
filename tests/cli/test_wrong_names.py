"""A name that leads nowhere, and any wrong option, is told before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from loraprune.config.base import TASKS
from loraprune.config.export import FORMATS, QUANTIZATIONS
from loraprune.config.pruning import CRITERIA, KINDS
from loraprune.errors import CheckpointError
from loraprune.evaluation.tasks import tasks
from loraprune.export import formats, serving
from loraprune.groups import Kind
from loraprune.models import opening
from loraprune.scoring.criteria import criteria
from tests.cli.cases import python

RUN = """
import contextlib, io, json, sys
from loraprune import cli
slow = {"torch", "transformers"}
for line in json.loads(sys.argv[1]):
    before = slow & set(sys.modules)
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(line)
    print(json.dumps([code, said.getvalue(), sorted(slow & set(sys.modules) - before)]))
"""
"""runs command lines in one process; of each its exit code, its stderr, and which of the slow libraries it imported first"""


USED = {
    **dict.fromkeys(("prune", "finetune", "compare", "evaluate"), ("model", "data")),
    **dict.fromkeys(("plan", "inspect", "benchmark", "export"), ("model",)), "compare-models": (),
}  # fmt: skip
"""options that a command cannot do without, or is given here"""
GOOD = {"model": "{0}/model", "data": "{0}/text.txt"}


WRONG: list[tuple[str, dict[str, str], list[str]]] = [
    ("prune", {"model": "./none"}, ["--model ./none: no such f"]),
    ("prune", {"data": "none.jsonl", "rank": "0"}, ["'none.jsonl': no such f", "--rank 0"]),
    ("prune", {"eval": "none.jsonl"}, ["--eval 'none.jsonl': no such f"]),
    ("prune", {"model": "org/none"}, ["HF_HUB_OFFLINE is set"]),
    ("prune", {"criterion": "wando"}, ["did you mean 'wanda'"]),
    ("prune", {"ratio": "2"}, ["--ratio 2"]),
    ("prune", {"model": "{0}/model+./none"}, ["after the + is not a folder"]),
    ("prune", {"columns": "txt=body"}, ["did you mean 'text'"]),
    ("finetune", {"data": "org/none"}, ["--data 'org/none'", "HF_HUB_OFFLINE is set"]),
    ("finetune", {"steps": "many"}, ["--steps many"]),
    ("plan", {"model": "./none"}, ["no such f"]),
    ("plan", {"model": "org/none"}, ["HF_HUB_OFFLINE is set"]),
    ("plan", {"ratio": "7"}, ["--ratio 7"]),
    ("inspect", {"model": "./none"}, ["no such f"]),
    ("evaluate", {"data": "none.txt"}, ["no such f"]),
    ("evaluate", {"against": "./none"}, ["--against ./none: no such f"]),
    ("evaluate", {"tasks": "piqa", "task-data": "./none"}, ["--task-data ./none: no such f"]),
    ("evaluate", {"record": "true"}, ["--record"]),
    ("prune", {"scores": "./none"}, ["--scores ./none: no such f"]),
    ("prune", {"kinds": "ffnn"}, ["did you mean 'ffn'"]),
    ("plan", {"scores": "./none"}, ["--scores ./none: no such f"]),
    ("plan", {"model": "llama-7"}, ["did you mean 'llama-7b'"]),
    ("export", {"format": "gguf", "quantization": "q8"}, ["did you mean 'q8_0'"]),
    ("export", {"format": "torch", "quantization": "int8"}, ["keeps the precision"]),
    ("export", {}, ["no plan.json"]),
    ("benchmark", {"formats": "gguf:q9"}, ["--quantization q9"]),
    ("compare", {"grid.criterion": "[wando]"}, ["did you mean 'wanda'"]),
    ("compare", {"grid.data": "[none.txt]"}, ["'none.txt': no such f"]),
    ("compare", {"runs.a.model": "./none"}, ["--model ./none: no such f"]),
    ("report", {"model": "{0}/model"}, ["no report.json"]),
    ("push", {"model": "{0}/model", "repo": "a/b"}, ["not a folder written by loraprune"]),
    ("resume", {}, ["no interrupted run"]),
    ("demo", {"ratio": "3"}, ["--ratio 3"]),
    ("demo", {"output": "{0}/model"}, ["exists"]),
    ("evaluate", {"task": "causal"}, ["did you mean 'causal-lm'"]),
    ("evaluate", {"limit": "3"}, ["--limit 3", "--tasks"]),
    ("benchmark", {"against": "./none"}, ["no such f"]),
    ("benchmark", {"formats": "gguff"}, ["--formats gguff"]),
    ("export", {"format": "onx"}, ["did you mean 'onnx'"]),
    ("export", {"model": "./none"}, ["no such f"]),
    ("compare", {"baselines": "[tune]"}, ["--baselines tune"]),
    ("compare-models", {"models": "[{0}/model, ./none]"}, ["no such f"]),
]


def line_of(command: str, options: dict[str, str], root: Path) -> list[str]:
    """Return a command line in a folder with a good model and a good text."""
    needs_output = command in ("prune", "finetune", "export", "compare", "resume")
    given = {name: value for name, value in GOOD.items() if name in USED.get(command, ())}
    given |= {"output": "{0}/out"} if needs_output else {}
    return [command, *(part.format(root) for name, value in (given | options).items() for part in (f"--{name}", value))]


def run_lines(lines: list[list[str]]) -> list[tuple[int, str, list[str]]]:
    """Run command lines in a new process; return of each the exit code, stderr, and the slow libraries it imported."""
    done = python("-c", RUN, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return [(code, stderr, imported) for code, stderr, imported in map(json.loads, done.stdout.splitlines())]


@pytest.fixture(scope="module")
def told(good: Path) -> list[tuple[int, str, list[str]]]:
    """Return what came of each wrong line, and of a good one after them."""
    lines = [line_of(command, options, good) for command, options, _ in WRONG]
    return run_lines([*lines, ["inspect", "--model", str(good / "model")]])


@pytest.mark.parametrize(
    "place", range(len(WRONG)), ids=[f"{command} {' '.join(options)}" for command, options, _ in WRONG]
)
def test_what_shows_without_a_library_is_told_without_it(place: int, told: list[tuple[int, str, list[str]]]) -> None:
    code, stderr, imported = told[place]
    assert (code, imported) == (2, []), stderr
    assert stderr.count("loraprune: error: ") == len(stderr.splitlines())
    for word in WRONG[place][2]:
        assert word in stderr


def test_the_control_needs_torch(told: list[tuple[int, str, list[str]]]) -> None:
    code, stderr, imported = told[len(WRONG)]
    assert (code, "torch" in imported) == (0, True), stderr


def test_names_that_are_known_at_once_are_those_that_are_registered() -> None:
    assert set(CRITERIA) - {"auto"} <= set(criteria.names())  # tests register others
    assert set(TASKS) == set(tasks.names())
    assert set(FORMATS) == set(formats.names())
    assert {name: formats.get(name).quantizations for name in formats.names()} == QUANTIZATIONS
    assert set(QUANTIZATIONS["safetensors"]) == set(serving.DTYPES)
    assert set(KINDS) == set(get_args(Kind))


def test_a_folder_that_looks_like_a_hub_id_is_found_beside_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ConnectError(Exception):
        """As httpx raises it."""

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectError("Name or service not known")

    (tmp_path / "models" / "small-one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = r"--model models/small-on: no such folder \(did you mean 'small-one'\?\), and the hub cannot be reached \(ConnectError"
    with pytest.raises(CheckpointError, match=words), opening.clear_errors("models/small-on"):
        fails()
    with pytest.raises(CheckpointError, match="cannot read the model"), opening.clear_errors("models/small-on"):
        raise RuntimeError("another error")  # the control


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, no_network: list[object]) -> None:
    asked: list[str] = []

    def model_info(_: Any, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(opening.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(opening.HfApi, "model_info", model_info)
    with pytest.raises(CheckpointError, match="--model org/name: cannot be loaded"):
        opening.load_config("org/name")
    assert asked == ["org/name"]
    assert no_network == []
