"""Names in a command line that do not exist (models, data, criteria, tasks, formats), found before torch is imported.

Knows nothing about what is in a model's weights or in data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.config.base import TASKS, expanded
from loraprune.config.commands import KNOWN
from loraprune.config.export import FORMATS
from loraprune.config.pruning import CRITERIA
from loraprune.errors import SECRET, Findings
from loraprune.models.folder import check_adapter, check_folder, check_weights
from loraprune.models.known_shapes import is_published
from loraprune.registry import added, unknown
from loraprune.runtime.hub import data_problem, model_problem, parts, uncached_data, uncached_model

MODELS, DATA = ("model", "models", "against"), ("data", "eval")
"""options that name what a command reads"""
BUILT_IN: Mapping[str, tuple[str, ...]] = {"criterion": CRITERIA, "task": TASKS, "format": FORMATS}
"""option -> names that are known before what registers them is imported"""
DESCRIBING = ("inspect", "plan")
"""commands that read no weights, and know the shapes of published models without their files"""
MOVING = ("push", "report")
"""commands that take a folder instead of a model to load"""


def wrong_names(verb: str, values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every name that does not exist, as far as that can be found without the network."""
    if verb in MOVING:
        return []
    models = {name: model_problem(name) or uncached_model(name) for name in _models(verb, values)}
    data = {
        (option, name): data_problem(name) or uncached_data(name) for option in DATA for name in _named(values, option)
    }
    return [
        *(problem for option in BUILT_IN if (problem := _unknown(option, values.get(option)))),
        *(f"--model {name}: {problem}" for name, problem in models.items() if problem),
        *(f"--{option} {problem}" for (option, name), problem in data.items() if problem and "=" not in name),
    ]


def wrong_inputs(verb: str, values: Mapping[str, Any]) -> list[str]:
    """Return what `wrong_names` does, and what is wrong with the files of models as far as that can be found without a library."""
    found = Findings()
    for name in _models(verb, values) if verb not in MOVING else []:
        base, adapter = parts(name)
        with found.check():
            if os.path.isdir(base):
                check_folder(Path(base))
                if verb not in DESCRIBING:
                    check_weights(Path(base))
        with found.check():
            if adapter and os.path.isdir(adapter):
                check_adapter(Path(adapter), Path(base))
    return [*wrong_names(verb, values), *found.problems()]


def _unknown(option: str, name: str | None) -> str | None:
    known = {*BUILT_IN[option], *added(option)}
    return unknown(option, name, known) if name is not None and name not in known else None


def _models(verb: str, values: Mapping[str, Any]) -> list[str]:
    names = [name for option in MODELS for name in _named(values, option)]
    return [name for name in names if not (verb in DESCRIBING and (name == KNOWN or is_published(name)))]


def _named(values: Mapping[str, Any], option: str) -> list[str]:
    """Return the names that an option gives; a name that contains a token is reported elsewhere."""
    value = expanded(values).get(option)
    names = value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str) and name and not SECRET.search(name)]
