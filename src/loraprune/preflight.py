"""Check the models and data of a command before any work; all problems are reported at once.

Knows nothing about what the command will do with them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from loraprune.data import OWN_NAMES, Columns, naming, open_source
from loraprune.data.images.benchmarks import find_benchmark
from loraprune.errors import Findings
from loraprune.evaluation.tasks import Request, choose_task, find_task
from loraprune.families import find_groups
from loraprune.models.folder import check_weights
from loraprune.models.opening import load_config, resolve
from loraprune.runtime.device import choose_device
from loraprune.runtime.hub import SUFFIXES, data_suffix, needs_no_hub, parts

TRAINED = ("groups", "data", "weights")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("groups",),
    "plan": ("groups",),
    "prune": TRAINED,
    "finetune": TRAINED,
    "compare": TRAINED,
    "evaluate": ("data", "weights"),
    "benchmark": ("weights",),
    "compare-models": ("data", "weights"),
    "export": ("groups", "weights"),
}
"""command -> what it needs of a model besides its configuration; the demo brings its own"""


def check_model(
    model: str, needs: tuple[str, ...], found: Findings, *, trust_remote_code: bool = False
) -> PreTrainedConfig | None:
    """Check a model's configuration and groups; of weights only the headers are read.

    Returns:
        The configuration, None if it cannot be read.
    """
    before, config = len(found.errors), None
    with found.check():
        resolve(model)
    if len(found.errors) > before:  # there is nothing to look at
        return None
    with found.check():
        config = load_config(model, trust_remote_code=trust_remote_code)
        if "groups" in needs:
            find_groups(config)
    base, _ = parts(model)
    if "weights" in needs and os.path.isdir(base):
        with found.check():
            check_weights(Path(base))
    return config


def check_data(
    model: str,
    config: PreTrainedConfig | None,
    data: str | None,
    held_out: str | None,
    found: Findings,
    *,
    task: str | None,
    columns: Columns = OWN_NAMES,
    trust_remote_code: bool = False,
) -> None:
    """Check the training data, the evaluation data and the tokenizer or image processor; all of them are read.

    Without the model's configuration, which `check_model` reads, only texts are checked.
    """
    read: Callable[[str, str, Columns], object] = _read_texts
    if config is not None:
        with found.check():
            name = data or held_out
            task_of = choose_task(config, task, data=name, columns=columns) if name else find_task(config, task)
            read = task_of.read
            task_of.processor(Request(model, config, data, held_out, 0, trust_remote_code=trust_remote_code))
    for option, name, part in (("--data", data, "train"), ("--eval" if data else "--data", held_out, "held_out")):
        if name:
            with found.check(), naming(option):
                read(name, part, columns)


def _read_texts(name: str, part: str, columns: Columns) -> object:
    """Read a source that can only hold texts, or that does not exist."""
    folders = glob.glob(os.path.join(glob.escape(name), "*", ""))
    nowhere = needs_no_hub(name) and not os.path.exists(os.path.expanduser(name)) and not find_benchmark(name)
    if nowhere or data_suffix(name) in SUFFIXES or (os.path.isdir(name) and not folders):
        return open_source(name, columns).read(part)
    return None


def check_evaluated(
    command: str,
    models: Sequence[str],
    texts: Sequence[str],
    *,
    device: str,
    task: str | None = None,
    columns: Columns = OWN_NAMES,
    trust_remote_code: bool = False,
) -> tuple[torch.device, dict[str, PreTrainedConfig]]:
    """Check all inputs of a command that measures models; return the device and the models' configurations.

    Raises:
        LoraPruneError: with all that is wrong.
    """
    found, chosen = Findings(), torch.device("cpu")
    configs: dict[str, PreTrainedConfig] = {}
    with found.check():
        chosen = choose_device(device)
    for model in models:
        config = check_model(model, NEEDS[command], found, trust_remote_code=trust_remote_code)
        configs |= {model: config} if config else {}
        for text in texts:
            check_data(
                model, config, None, text, found, task=task, columns=columns, trust_remote_code=trust_remote_code
            )
    found.raise_all()
    return chosen, configs


def reference_first(model: str, against: str | None) -> list[str]:
    """Return the models that a command measures, each once: the one that it compares with comes first."""
    return list(dict.fromkeys(name for name in (against, model) if name))
