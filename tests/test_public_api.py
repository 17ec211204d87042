"""What `import loraprune` offers is listed, sorted, importable and documented."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import loraprune

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "loraprune"
FILES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def names_for_type_checkers() -> dict[str, str]:
    """Return name -> module of what __init__ imports under TYPE_CHECKING."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: (node.module or "").removeprefix("loraprune.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_all_is_sorted_and_the_same_as_the_homes_and_the_imports_for_type_checkers() -> None:
    assert list(loraprune.__all__) == sorted(set(loraprune.__all__))
    assert set(loraprune.__all__) == set(loraprune._HOMES)
    assert names_for_type_checkers() == loraprune._HOMES


@pytest.mark.parametrize("name", loraprune.__all__)
def test_a_public_name_is_its_homes_own_and_documented(name: str) -> None:
    thing = getattr(loraprune, name)
    assert thing is getattr(import_module(f"loraprune.{loraprune._HOMES[name]}"), name)
    assert thing.__module__.startswith(f"loraprune.{loraprune._HOMES[name]}")
    assert (inspect.getdoc(thing) or "").strip()


def test_a_person_finds_the_names_and_the_version() -> None:
    assert set(loraprune.__all__) | {"__version__"} == set(dir(loraprune))
    assert loraprune.__version__ == version("loraprune")
    assert all(
        name in (loraprune.__doc__ or "") for name in ("prune", "plan", "evaluate", "export", "LoRAPruneCallback")
    )


@pytest.mark.parametrize("name", ["plan", "export"])
def test_a_function_is_not_replaced_by_the_module_of_its_name(name: str) -> None:
    module = import_module(f"loraprune.{name}")
    assert inspect.ismodule(module)  # the control: there is one
    assert inspect.isfunction(getattr(loraprune, name))
    assert inspect.ismodule(loraprune.groups)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        loraprune.prone  # noqa: B018
    with pytest.raises(ImportError):
        exec("from loraprune import prone")


@pytest.mark.parametrize("name", loraprune.__all__)
def test_a_public_name_appears_in_the_documentation(name: str) -> None:
    assert [path.name for path in DOCUMENTS if name in path.read_text(encoding="utf-8")]


def test_every_module_says_what_it_is_for() -> None:
    assert len(FILES) > 100
    found = {
        str(path.relative_to(PACKAGE)): ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES
    }
    assert [name for name, text in found.items() if len((text or "").partition("\n")[0]) <= 20] == []
