"""Ready sets of options, one YAML file each: `--recipe NAME` is `--config` with the file of that name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from loraprune.errors import ConfigError, nearest

FOLDER = Path(str(files("loraprune.config"))) / "recipes"


def names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def path(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"unknown recipe {name!r}{nearest(name, names())}: known are {', '.join(names())}")
    return FOLDER / f"{name}.yaml"


def recipe(name: str) -> dict[str, Any]:
    """Return the options of a recipe, for `PruneConfig(**recipe("best"), model=..., data=..., output=...)`."""
    options: dict[str, Any] = yaml.safe_load(path(name).read_text(encoding="utf-8"))
    return options
