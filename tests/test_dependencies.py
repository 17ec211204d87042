"""What the package imports is declared: at once what it always needs, inside functions what an extra brings."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layering import MODULES

PROJECT = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
"""import name -> name in pyproject.toml, where it is not the same with hyphens"""
HOMES = {
    "matplotlib": ("reporting.plotting",),
    "lm_eval": ("evaluation.harness",),
    "sklearn": ("evaluation.metrics",),
    "scipy": ("evaluation.metrics",),
    "bitsandbytes": ("models.quantised",),
    "gguf": ("export",),
    "shtab": ("commands.help",),
    "zstandard": ("data.files",),
    "axolotl": ("axolotl",),
    "pydantic": ("axolotl",),
    "onnxruntime": ("export",),
    "torchao": ("export", "models.quantised"),
    "triton": ("scoring.kernels",),
}
"""library of an extra -> the modules, or packages of modules, that may import it"""
ON_DEMAND = {"scoring.kernels.eq10"}
"""modules that only functions import, once the library is known to be there"""
BY_HAND = {"llama_cpp", "axolotl", "pydantic"}
"""no extra brings it: built from source, or the program that loads this package as a plugin, with what it needs itself"""
LOADERS = {"import_module", "_import", "_library", "library"}
"""functions that import what a string names"""


def declared(start: str, end: str) -> set[str]:
    """Return the names of the distributions in a part of pyproject.toml."""
    part = PROJECT.partition(start)[2].partition(end)[0]
    return {name for name in re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?(?:>=|[";])', part) if name != "loraprune"}


NEEDED = declared("\ndependencies = [", "\n]")
EXTRAS = declared("\n[project.optional-dependencies]", "\ndev = [")


def foreign(tree: ast.AST, *, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield every library that is imported, and whether that happens inside a function."""
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            names = [str(node.args[0].value)] if called in LOADERS else []
        for name in names:
            top = name.partition(".")[0]
            if top != "loraprune" and top not in sys.stdlib_module_names:
                yield top, late
        yield from foreign(node, late=late or isinstance(node, ast.FunctionDef))


def undeclared(module: str, tree: ast.AST) -> list[str]:
    """Return a sentence for every import that an installation may lack."""
    wrong = []
    for name, late in foreign(tree):
        distribution = DISTRIBUTIONS.get(name, name.replace("_", "-").lower())
        if distribution in NEEDED:
            continue
        homes = HOMES.get(name, ("export",) if name in BY_HAND else ())
        if distribution not in EXTRAS and name not in BY_HAND:
            wrong.append(f"{module} imports {name}, which pyproject.toml does not name")
        elif not any(f"{module}.".startswith(f"{home}.") for home in homes):
            wrong.append(f"{module} imports {name}, an extra that only {' and '.join(homes) or 'nobody'} may use")
        elif not late and module not in ON_DEMAND:
            wrong.append(f"{module} imports {name} at once, though only an extra brings it")
    return wrong


def test_what_is_imported_is_declared() -> None:
    assert [sentence for module, tree in MODULES.items() for sentence in undeclared(module, tree)] == []


def test_what_is_declared_is_imported() -> None:
    imported = {name for tree in MODULES.values() for name, _ in foreign(tree)}
    assert NEEDED - {DISTRIBUTIONS.get(name, name.replace("_", "-").lower()) for name in imported} == set()
    assert set(HOMES) - imported == set()


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("evaluation.metrics", "import pandas", "does not name"),
        ("evaluation.metrics", "import matplotlib", "only reporting.plotting may use"),
        ("reporting.plotting", "import matplotlib.figure", "at once"),
        ("models.loading", "def late():\n    import gguf", "only export may use"),
        ("training.guard", "def late():\n    return _import('scipy.stats')", "only evaluation.metrics may use"),
        ("export.gguf.write", "import llama_cpp", "at once"),
    ],
)
def test_an_import_that_may_be_missing_is_seen(module: str, source: str, words: str) -> None:
    (sentence,) = undeclared(module, ast.parse(source))
    assert words in sentence


def test_what_may_be_imported_is_not_refused() -> None:
    assert undeclared("evaluation.metrics", ast.parse("import numpy as np\nfrom PIL import Image\nimport json")) == []
    assert undeclared("export.onnx", ast.parse("def late():\n    import onnxruntime")) == []
