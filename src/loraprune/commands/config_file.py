"""Check a file for `--config` before the parser reads it, because the parser would import a class that the file names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from loraprune.errors import ConfigError

LARGEST = 1 << 20
"""maximum bytes of a file, and of values after its aliases are expanded"""
CLASSES = frozenset({"class_path", "init_args", "dict_kwargs"})
"""keys that make the parser import Python code"""


def read_config(name: str) -> dict[str, Any]:
    """Return the options that a file sets.

    Raises:
        ConfigError: if it is not plain YAML: a mapping of limited size, without code to run.
    """
    try:
        if not os.path.isfile(name):
            raise ConfigError(f"--config {name}: no such file; name a YAML file such as a run.yaml")
        if os.path.getsize(name) > LARGEST:
            raise ConfigError(f"--config {name}: larger than {LARGEST:,} bytes; name a YAML file such as a run.yaml")
        text = Path(name).read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"--config {name}: it holds no options; write one a line, such as `ratio: 0.5`")
        if _size(node, {}) > LARGEST:
            raise ConfigError(
                f"--config {name}: its aliases expand to over {LARGEST:,} values; write out what is needed"
            )
        values = yaml.safe_load(text)  # refuses tags that name Python objects
        found = next((key for key in _keys(node, set()) if key in CLASSES), None)
        if found:
            raise ConfigError(f"--config {name}: {found!r} would name Python code to run; only plain values are read")
        return {str(key): value for key, value in values.items()}
    except OSError as error:
        raise ConfigError(f"--config {name}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {name}: not UTF-8 text (byte {error.start}); convert the file to UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"--config {name}: malformed YAML ({why}); correct the file") from None


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a node after every alias is expanded; over the limit for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = 2 * LARGEST  # seen again before it is finished: it contains itself
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    return known[id(node)]


def _keys(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    """Yield every key of every mapping."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield from (str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    for child in _children(node):
        yield from _keys(child, seen)
