"""Names in a command line that do not exist (models, data, criteria, tasks, formats), found before torch is imported.

Knows nothing about what is in a model's weights or in data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loraprune.config.base import TASKS, dashed, expanded
from loraprune.config.commands import KNOWN
from loraprune.config.export import FORMATS
from loraprune.config.pruning import CRITERIA
from loraprune.errors import SECRET, Findings, nearest
from loraprune.models.folder import check_adapter, check_folder, check_weights
from loraprune.models.known_shapes import is_published, published
from loraprune.registry import added, unknown
from loraprune.runtime.hub import (
    data_problem,
    model_problem,
    parts,
    scores_problem,
    task_data_problem,
    uncached_data,
    uncached_model,
)

MODELS, DATA = ("model", "models", "against"), ("data", "eval")
"""options that name what a command reads"""
PATHS: Mapping[str, Callable[[str], str | None]] = {"scores": scores_problem, "task_data": task_data_problem}
"""options that name a path of this machine -> what says that it is none"""
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
    models = {
        (option, name): model_problem(name) or uncached_model(name)
        for option in MODELS
        for name in _models(verb, values, option)
    }
    data = {
        (option, name): data_problem(name) or uncached_data(name) for option in DATA for name in _named(values, option)
    }
    return [
        *(problem for option in BUILT_IN for name in _named(values, option) if (problem := _unknown(option, name))),
        *(f"--{option} {name}{_close(verb, name)}: {problem}" for (option, name), problem in models.items() if problem),
        *(
            f"--{dashed(option)} {name}: {problem}"
            for option, problem_of in PATHS.items()
            for name in _named(values, option)
            if (problem := problem_of(name))
        ),
        *(f"--{option} {problem}" for (option, name), problem in data.items() if problem and "=" not in name),
    ]


def wrong_inputs(verb: str, values: Mapping[str, Any]) -> list[str]:
    """Return what `wrong_names` does, and what is wrong with the files of models as far as that can be found without a library."""
    found = Findings()
    for name in (name for option in MODELS for name in _models(verb, values, option) if verb not in MOVING):
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


def _unknown(option: str, name: str) -> str | None:
    known = {*BUILT_IN[option], *added(option)}
    return None if name in known else unknown(option, name, known)


def _models(verb: str, values: Mapping[str, Any], option: str) -> list[str]:
    names = _named(values, option)
    return [name for name in names if not (verb in DESCRIBING and (name == KNOWN or is_published(name)))]


def _close(verb: str, name: str) -> str:
    """Return the nearest of the models whose shapes are known, for a command that needs no more."""
    return nearest(name, published()) if verb in DESCRIBING and "/" not in name else ""


def _named(values: Mapping[str, Any], option: str) -> list[str]:
    """Return the names that an option gives, also in a grid or its named runs; a name that contains a token is reported elsewhere."""
    given = [{**setting, **expanded(setting)}.get(option) for setting in _settings(values)]
    names = [name for value in given for name in _listed(value)]
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and name and not SECRET.search(name)]


def _settings(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the options themselves, the grid of `compare`, and each of its named runs."""
    yield values
    for more in (values.get("grid"), *_listed(values.get("runs"))):
        if isinstance(more, Mapping):
            yield more


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else [value]
