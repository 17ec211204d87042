"""Looking at what a command is given before any of the work: models and texts, each on its own, all problems at once.

Knows nothing about what the command will do with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.data.sources import open_source
from loraprune.errors import DataError, Findings
from loraprune.families import find_groups
from loraprune.folder import check_weights, lies_here
from loraprune.loading import load_config, load_tokenizer, resolve

TRAINED = ("groups", "tokenizer", "weights")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("groups",),
    "plan": ("groups",),
    "prune": TRAINED,
    "finetune": TRAINED,
    "compare": TRAINED,
    "evaluate": ("tokenizer", "weights"),
    "benchmark": ("weights",),
    "export": ("groups", "weights"),
}
"""command -> what it needs of a model besides its configuration; the demo brings its own"""
MODELS, TEXTS = ("model", "against"), ("data", "eval")
"""options that name a model, and options that name a text"""


def check_model(model: str, needs: tuple[str, ...], found: Findings, *, trust_remote_code: bool = False) -> None:
    """Look at a model's configuration and at what else is needed of it; of weights only the headers are read."""
    before = len(found.errors)
    with found.check():
        resolve(model)
    if len(found.errors) > before:  # there is nothing to look at
        return
    with found.check():
        config = load_config(model, trust_remote_code=trust_remote_code)
        if "groups" in needs:
            find_groups(config)
    if "tokenizer" in needs:
        with found.check():
            load_tokenizer(model, trust_remote_code=trust_remote_code)
    if "weights" in needs and os.path.isdir(model):
        with found.check():
            check_weights(Path(model))


def check_text(option: str, name: str, found: Findings) -> None:
    """Look at a text: all of its files are read."""
    with found.check():
        try:
            open_source(name).read("held_out" if option == "eval" else "train")
        except DataError as error:
            raise DataError(f"--{option} {error}") from None


def local_problems(command: str, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the models and texts that options name, as far as they lie on this machine.

    For options some of which are wrong already: the hub is not asked for anything then.
    """
    found, needs = Findings(), NEEDS.get(command, ())
    for option in MODELS:
        if lies_here(values.get(option)):
            check_model(values[option], needs, found, trust_remote_code=values["trust_remote_code"])
    for option in TEXTS:
        if lies_here(values.get(option)):
            check_text(option, values[option], found)
    return found.problems()
