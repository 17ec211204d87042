"""What readers copy works: every command of the documents is read by the real parser, blocks that load a result run on a tiny one,
and the notebooks run.

Commands are not carried out, as most name models that are not here: their options are built and checked as before a run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertForSequenceClassification

from loraprune import cli
from loraprune.commands.compare.grid import OPTIONS
from loraprune.runtime.output import PARTIAL
from loraprune.runtime.run_file import write_run
from loraprune.scoring.criteria import criteria
from tests.data.images.conftest import save_classifier
from tests.evaluation.tasks.cases import word_tokenizer
from tests.export.cases import exported, save_pruned_tiny
from tests.samples import byte_tokenizer, save_tiny
from tests.test_docs import DOCUMENTS, FENCE, ROOT, by_name

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
KINDS = re.compile(r"|text|json|yaml|python( no-run| run-with \w+)?")
OTHERS = ("python3", "source", "vllm", "jupyter", "llama-cli", "llama-quantize", ".venv/bin/ruff", ".ci/run")
"""first words of commands that are not this project's"""
LEFT_OUT = {"...", "…"}
PLACEHOLDERS = ["--model=M", "--data=D", "--output=O"]
NEEDS = {"--quantize": "bitsandbytes", "--log": "tensorboard"}
"""options that are refused where a library of an extra is missing"""
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def blocks_of(path: Path) -> list[tuple[str, str]]:
    """Return what stands after the backticks, and the block, of every block of a document."""
    return [(match["kind"].strip(), match["code"]) for match in FENCE.finditer(path.read_text(encoding="utf-8"))]


def command_lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of every command in the blocks without a language."""
    for kind, code in blocks_of(path):
        if kind == "":
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("`", ""), comments=True)
                if words:
                    yield words


def check_command(words: list[str], cwd: Path) -> None:
    """Check one command of a document: the parser and the options' own checks must accept it."""
    if words[0] in ("accelerate", "torchrun") and "loraprune" in words:
        words = words[words.index("loraprune") :]
    if words[0] in ("pip", ".venv/bin/pip"):
        check_extras(" ".join(words))
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    elif words[0] in ("python", ".venv/bin/python"):
        assert all((ROOT / word).exists() for word in words if word.endswith(".py")), words
    elif words[0] == "loraprune":
        arguments = [word for word in words[1:] if word not in LEFT_OUT]
        if len(arguments) < len(words) - 1:
            given = {word.partition("=")[0] for word in arguments}
            arguments += [option for option in PLACEHOLDERS if option.partition("=")[0] not in given]
        if "--record" in arguments or words[1] == "push":  # these need a folder that a run wrote
            folder = cwd / arguments[arguments.index("--model") + 1]
            folder.mkdir(exist_ok=True)
            (folder / "report.json").write_text("{}")
        if words[1] == "resume":  # this needs an interrupted run
            partial = cwd / (words[2].rstrip("/") + PARTIAL)
            partial.mkdir(exist_ok=True)
            write_run(partial, "prune", {"model": "M", "data": "D"})
        assert cli.main(arguments) == 0, words
    else:
        assert words[0].startswith(OTHERS), f"{words}: a command that no test knows"


def check_extras(text: str) -> None:
    """Check that the extras that a line names exist."""
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    named = {
        name.strip() for group in re.findall(r"(?:loraprune|\.|whl)\[([\w,]+)\]", text) for name in group.split(",")
    }
    assert named <= set(known), text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: list[Any]) -> Path:
    """Return a folder to work in, with the ready grids where the documents say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def is_absent(option: str, library: str) -> bool:
    return option[2:] not in OPTIONS or find_spec(library) is None


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if list(command_lines(path))], ids=by_name)
def test_the_commands_of_a_document_are_accepted(path: Path, desk: Path) -> None:
    files = [code for kind, code in blocks_of(path) if kind == "yaml"]
    for words in command_lines(path):
        if any(option in words and is_absent(option, library) for option, library in NEEDS.items()):
            continue
        for name in (word for before, word in pairwise(words) if before == "--config"):
            if not Path(name).exists():  # a file that the page itself shows
                Path(name).write_text(files[0])
        check_command(words, desk)


@pytest.mark.parametrize(
    "line",
    ["loraprune prune --model M --data D --output O --rati 0.5", "loraprune prun --model M", "make tset", "python nothing.py",
     "loraprune prune --model M --data D --output O --ratio 1.5", "rm -rf /", "pip install loraprune[nothing]"],
)  # fmt: skip
def test_a_wrong_command_would_be_found(line: str, desk: Path) -> None:
    with pytest.raises(AssertionError):
        check_command(shlex.split(line), desk)


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_name)
def test_every_block_is_of_a_kind_that_is_tested(path: Path) -> None:
    for kind, code in blocks_of(path):
        assert KINDS.fullmatch(kind), kind
        if kind.startswith("python"):
            compile(code, str(path), "exec")
        if kind == "yaml":
            assert isinstance(yaml.safe_load(code), dict)


def save_chat(folder: Path) -> None:
    save_tiny(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


def save_labels(folder: Path) -> None:
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_layerwise(folder: Path) -> None:
    save_pruned_tiny(folder, layerwise=True)


def save_exported(folder: Path) -> None:
    """Write a folder, and beside it what `export` makes of it, but for formats whose libraries are missing."""
    save_pruned_tiny(folder)
    for name, output, library in (
        ("onnx", "small-onnx", "onnxruntime"),
        ("torch", "small-pt2", "torch"),
        ("gguf", "small-gguf", "gguf"),
    ):
        if find_spec(library):
            exported(folder, folder.with_name(output), name)


def save_int8(folder: Path) -> None:
    """Write a classifier, and beside it its int8 graph if onnxruntime is installed."""
    save_labels(folder)
    if find_spec("onnxruntime"):
        exported(folder, folder.with_name("small-int8-onnx"), "onnx", quantization="int8")


RESULTS: dict[str, Callable[[Path], Any]] = {
    "small": save_tiny, "chat": save_chat, "images": save_classifier, "labels": save_labels, "layerwise": save_layerwise,
    "exported": save_exported, "int8": save_int8,
}  # fmt: skip
"""what `run-with` names -> how the folder `small` is made"""
ENGINES = {"onnx_session": "onnxruntime", "InferenceSession": "onnxruntime", "llama_cpp": "llama_cpp", "trl": "trl"}
"""words in a block -> the library without which it cannot run"""
LOADING = [
    pytest.param(kind.split()[-1], code, id=f"{by_name(path)}-{place}")
    for path in DOCUMENTS
    for place, (kind, code) in enumerate(blocks_of(path))
    if kind.startswith("python run-with")
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a result once and returns the folder around it."""

    @cache
    def make(result: str) -> Path:
        root = tmp_path_factory.mktemp(result)
        RESULTS[result](root / "small")
        return root

    return make


@pytest.mark.parametrize(("result", "code"), LOADING)
def test_a_block_that_loads_a_result_runs(
    result: str,
    code: str,
    made: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word, library in ENGINES.items():
        if word in code:
            pytest.importorskip(library)
    shutil.copytree(made(result), tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    exec(compile(code, result, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(criteria, "_entries", dict(criteria._entries))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    exec(compile(code, str(path), "exec"), {"__name__": "__main__"})
    assert all(
        cell.get("outputs") or cell["cell_type"] != "code" for cell in cells if "print(" in "".join(cell["source"])
    )
