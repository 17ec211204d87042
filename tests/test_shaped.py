"""Shapes in annotations are checked while the tests run: a tensor of another shape does not pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from loraprune.pruning.masking import norm_left
from tests.shaped import HOT, SOURCE

Function = ast.FunctionDef | ast.AsyncFunctionDef


def has_bare_tensor(annotation: ast.expr | None) -> bool:
    """Say whether a tensor is named outside an annotation of jaxtyping, which gives its dtype and shape."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Subscript) and hasattr(jaxtyping, ast.unparse(annotation.value)):
        return False
    return ast.unparse(annotation) in ("Tensor", "torch.Tensor") or any(
        has_bare_tensor(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr)
    )


def annotations(node: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield what is public of a statement of a module or class: signatures, fields and aliases, with their annotations."""
    if isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
        every = node.args
        for argument in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg):
            yield node.name, argument and argument.annotation
        yield node.name, node.returns
    elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        for each in node.body:
            yield from ((f"{node.name}.{name}", annotation) for name, annotation in annotations(each))
    elif isinstance(node, ast.AnnAssign):  # of an alias, the value is the type
        yield ast.unparse(node.target), node.value if ast.unparse(node.annotation) == "TypeAlias" else node.annotation
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
        yield ast.unparse(node.targets[0]), node.value


def bare(path: Path) -> list[str]:
    """Return what a module publishes of tensors without a shape."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [name for node in tree.body for name, annotation in annotations(node) if has_bare_tensor(annotation)]


def test_every_public_signature_names_the_shapes_of_its_tensors(tmp_path: Path) -> None:
    assert {str(path): names for path in (SOURCE / "loraprune").rglob("*.py") if (names := bare(path))} == {}
    (tmp_path / "bare.py").write_text(
        "def shaped(x: Float[Tensor, 'rows']) -> Int[Tensor, '']: ...\n"
        "def given(x: Mapping[str, Tensor]) -> None: ...\n"
        "class Held:\n    field: torch.Tensor | None\n    def _own(self) -> Tensor: ...\n"
        "Alias: TypeAlias = Callable[[Tensor], None]\nOther = Mapping[str, Tensor]\n",
        encoding="utf-8",
    )
    assert bare(tmp_path / "bare.py") == ["given", "Held.field", "Alias", "Other"]


def test_a_tensor_of_another_shape_is_refused() -> None:
    x, left = torch.zeros(2, 4), torch.tensor([0, 2])
    assert norm_left(nn.LayerNorm(4), x, left).shape == x.shape
    with pytest.raises(TypeCheckError, match="left"):
        norm_left(nn.LayerNorm(4), x, left[None])


def test_what_is_not_checked_exists() -> None:
    assert HOT
    for place in (SOURCE / name.replace(".", "/") for name in HOT):
        assert place.is_dir() or place.with_suffix(".py").is_file()
