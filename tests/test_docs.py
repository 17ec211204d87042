"""The documentation is true: its code runs, and the names, files, options and keys in it exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from loraprune.commands import parser
from loraprune.config.recipes import recipe
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.tasks import tasks
from loraprune.families import families, find_groups
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.schedule import Schedule
from loraprune.pruning.verify import Verification
from loraprune.reporting.make import Quality, make_report
from loraprune.reporting.report import Report, Shown
from loraprune.reporting.write import write_folder
from loraprune.scoring.criteria import criteria
from loraprune.training.record import Training
from tests.tiny import tiny_model, with_lora

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "AGENTS.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "skills").rglob("*.md")),
    )
    if path.is_file()
]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
DOTTED = re.compile(r"(loraprune(?:\.\w+)+)(?:\(.*\))?")
FILE = re.compile(r"(?:src|docs|skills|tests|scripts|benchmarks|configs|\.ci)/[\w./-]+")
EMITTED = {"run.yaml", "report.json", "plan.json", "scores.safetensors", "README.md"}


def blocks(path: Path, kind: str = "python") -> list[tuple[int, str]]:
    """Return line and code of the fenced blocks that are marked with nothing but `kind`."""
    text = path.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start("code")), match["code"])
        for match in FENCE.finditer(text)
        if match["kind"].strip() == kind
    ]


def ticked(path: Path) -> Iterator[str]:
    """Yield what stands in single backticks outside of blocks."""
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text(encoding="utf-8")))


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(path: Path) -> list[str]:
    """Return what a document links to inside the project."""
    return [link for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")) if "://" not in link]


def options_in(path: Path) -> set[str]:
    """Return the options of this package's commands in single backticks."""
    return {
        option.replace("-", "_")
        for word in ticked(path)
        if not word.startswith(("pip ", "make ", "ruff ", "mypy ", "accelerate ", ".venv", "llama-quantize "))
        for option in re.findall(r"(?<!\S)--([a-z][a-z_-]*)", word)
    }


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=by_name)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an example register families and criteria for itself alone."""
    monkeypatch.setattr(families, "_entries", dict(families._entries))
    monkeypatch.setattr(criteria, "_entries", dict(criteria._entries))


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path)], ids=by_name)
@pytest.mark.usefixtures("own_registries")
def test_the_python_blocks_of_a_document_run_one_after_the_other(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, code in blocks(path):
        # Blank lines put the line numbers of the document into a traceback.
        exec(compile("\n" * line + code, str(path), "exec"), namespace)


@pytest.mark.parametrize("name", ["add-a-family", "add-a-criterion", "checkpoint-format"])
def test_a_guide_has_code_to_run(name: str) -> None:
    assert blocks(ROOT / "docs" / f"{name}.md")


def test_the_checks_of_documents_have_something_to_check() -> None:
    """Each of the checks below passes on an empty page: these pages are known to have what they look at."""
    page = {name: ROOT / "docs" / f"{name}.md" for name in ("checkpoint-format", "paper", "layout")}
    assert blocks(page["checkpoint-format"], "json")
    assert len([word for word in ticked(page["paper"]) if DOTTED.fullmatch(word)]) > 30
    assert len([word for word in ticked(page["paper"]) if FILE.fullmatch(word)]) > 15
    assert len([word for path in DOCUMENTS for word in ticked(path) if DOTTED.fullmatch(word)]) > 60
    assert len([link for path in DOCUMENTS for link in links(path)]) > 60
    assert len(options_in(page["paper"])) > 10


@every_document
def test_json_blocks_are_json(path: Path) -> None:
    for _, code in blocks(path, "json"):
        json.loads(code)


def resolve(name: str) -> object:
    """Return what a dotted name stands for: a module, or an attribute of one, to any depth."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@every_document
def test_dotted_names_exist(path: Path) -> None:
    for word in ticked(path):
        if match := DOTTED.fullmatch(word):
            resolve(match[1])


@every_document
def test_files_exist(path: Path) -> None:
    words = [word for word in ticked(path) if FILE.fullmatch(word)]
    missing = [word for word in words if not (ROOT / word).exists()]
    missing += [link for link in links(path) if not (path.parent / link).exists()]
    assert missing == []


@every_document
def test_options_exist(path: Path) -> None:
    known = {field.name for command in parser.COMMANDS.values() for field in fields(command.options)}
    known |= {"config", "recipe", "json", "debug", "help", "help_all", "version", "print_completion", "print_config"}
    assert {option.replace("-", "_") for option in options_in(path)} - known - {"strict"} == set()  # `mypy --strict`


@pytest.mark.parametrize("path", sorted((ROOT / "skills").rglob("SKILL.md")), ids=by_name)
def test_a_skill_says_when_it_is_used(path: Path) -> None:
    _, front, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front)
    assert set(values) == {"name", "description"}
    assert values["name"] == path.parent.name
    assert 100 < len(values["description"]) <= 1024
    assert "Use when" in values["description"]
    assert "loraprune prune" in "".join(code for _, code in blocks(path, ""))


def test_the_paper_page_names_functions_options_and_tests() -> None:
    words = list(ticked(ROOT / "docs" / "paper.md"))
    assert sum(word.startswith("loraprune.") for word in words) > 30
    assert sum(word.startswith("--") for word in words) > 20
    assert sum(word.startswith("tests/") for word in words) > 15


@pytest.mark.parametrize(
    ("option", "value"),
    [("rank", 8), ("alpha", 16.0), ("dropout", 0.05), ("decay", 0.9), ("interval", None), ("warmup", 0.1), ("cooldown", 0.1),
     ("lr", 1e-4), ("epochs", 2.0), ("length", 512), ("power", 2), ("normalize", False), ("criterion", "lora"),
     ("schedule", "cubic")],
)  # fmt: skip
def test_the_recipe_paper_is_the_papers(option: str, value: object) -> None:
    chosen = {field.name: field.default for field in fields(PruneConfig)} | recipe("paper")
    assert chosen[option] == value


def test_the_interval_of_a_long_run_is_the_papers_and_of_a_short_one_less() -> None:
    assert [Schedule("cubic", steps, None, 0.1, 0.1).stride for steps in (1000, 80, 8)] == [10, 4, 1]


def finished_run(output: Path, job: str) -> tuple[Report, Pruner | None]:
    """Write the folder of a run whose measurements are made up, without its model."""
    measured = Measured("perplexity", 2.0, "lower", 0.1, {"tokens": 9}, {"length": 8}, {"nll": 0.7})
    options: dict[str, Any] = {"model": "m", "data": "d", "output": str(output)}
    config = PruneConfig(**options, heads=4, ffn=48) if job == "prune" else FinetuneConfig(**options)
    model = tiny_model("llama")
    pruner = Pruner(with_lora(model), config.pruning()) if job == "prune" else None
    plan = pruner.plan if pruner else Plan.full(find_groups(model.config))
    report = make_report(
        config, quality=Quality(tasks.get("causal-lm"), measured, measured, Shown([], {})),
        training=Training(1, 1.0, 1, [], [], [], {}, 9), removed=pruner.removed() if pruner else None,
        verification=Verification(0.0, 0.0, 1e-4, "float32", 0.0, 0.0, {}, "llama"), parameters=(2, 1), plan=plan, seconds=1.0,
    )  # fmt: skip
    output.mkdir()
    write_folder(output, report, config, scores=pruner.scores.values if pruner else None)
    return report, pruner


def table(path: Path, heading: str) -> dict[str, str]:
    """Return the rows of the table below a heading: each name in its first cell -> its last cell."""
    section = path.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {name: cells[-1] for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])}


@pytest.mark.parametrize("job", ["prune", "finetune"])
def test_the_documented_keys_of_a_report_are_its_keys(tmp_path: Path, job: str) -> None:
    report, _ = finished_run(tmp_path / "out", job)
    documented = table(ROOT / "docs" / "checkpoint-format.md", "`report.json`")
    absent = {key for key, text in documented.items() if text.lstrip().startswith("with `--")}
    absent |= {key for key, text in documented.items() if job == "finetune" and "(prune only)" in text}
    expected = documented.keys() - absent
    assert set(report.values) == expected
    for key in ("parameters", "perplexity", "verification"):
        if job == "prune":
            assert set(report.values[key]) <= set(re.findall(r"`(\w+)`", documented[key])), key


def test_the_files_of_a_run_are_the_documented_ones(tmp_path: Path) -> None:
    _, pruner = finished_run(tmp_path / "out", "prune")
    assert pruner is not None
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == EMITTED
    text = (ROOT / "docs" / "checkpoint-format.md").read_text(encoding="utf-8")
    assert [name for name in written if f"| `{name}` |" not in text] == []
    assert Plan.read(tmp_path / "out") == pruner.plan
    assert set(load_file(tmp_path / "out" / "scores.safetensors")) == set(pruner.plan.units)
    options = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text(encoding="utf-8"))
    assert set(options) == {field.name for field in fields(PruneConfig)}


def test_the_citation_names_software_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["type"], citation["license"]) == ("loraprune", "software", "Apache-2.0")
    assert citation["references"][0]["title"].startswith("LoRAPrune: Structured Pruning Meets Low-Rank")
