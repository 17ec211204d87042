"""A person finds the options: signatures and documentation have all that the configuration classes have, with their defaults."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import fields
from typing import Any

import pytest

import loraprune
from loraprune.config.base import Options
from loraprune.config.commands import BenchmarkConfig, CompareModelsConfig, EvaluateConfig, InspectConfig, PlanConfig
from loraprune.config.export import ExportConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.functions.arguments import option_help

OWN = {"model", "models", "data", "eval", "output", "against", "tokenizer"}
"""what takes objects, or is documented by the function"""
KINDS: dict[str, type[Options]] = {
    "prune": PruneConfig, "finetune": FinetuneConfig, "inspect": InspectConfig, "plan": PlanConfig, "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig, "compare": CompareModelsConfig, "export": ExportConfig,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_function_shows_every_option_with_its_default_and_help(name: str) -> None:
    function, kind = getattr(loraprune, name), KINDS[name]
    shown = inspect.signature(function).parameters
    page = pydoc.plain(pydoc.render_doc(function))
    known: dict[str, Any] = {one.name: one.default for one in fields(kind)}
    assert set(known) <= set(shown)
    for option in set(known) - OWN - {"batches"}:
        assert shown[option].default == known[option], option
        assert f"        {option}: " in page, option
    assert "ratoi" not in shown  # the control


def test_every_option_has_a_help() -> None:
    for kind in KINDS.values():
        assert set(option_help(kind)) >= {one.name for one in fields(kind)}
