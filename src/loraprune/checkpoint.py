"""Leaving: a pruned model as a stock checkpoint that plain `from_pretrained` loads, where one can hold its widths.

Knows nothing about scores or training.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from loraprune.errors import CheckpointError, PlanError
from loraprune.families.base import families, head_size
from loraprune.groups import Group
from loraprune.layerwise.register import stock_of
from loraprune.layerwise.save import save_layerwise
from loraprune.loading import quiet
from loraprune.output import output_problem
from loraprune.shell import save_tensors


def config_sizes(groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, int] | None:
    """Return the config keys that the counts change, or None if layers differ so that no stock key can hold them."""
    sizes: dict[str, int] = {}
    for group in groups:
        for key, each in group.sizes.items():
            if sizes.setdefault(key, each * counts[group.name]) != each * counts[group.name]:
                return None
    return sizes


def layer_sizes(groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return what the config keys would be in every layer."""
    sizes: dict[str, list[int]] = {}
    for group in groups:
        for key, each in group.sizes.items():
            sizes.setdefault(key, []).append(each * counts[group.name])
    return sizes


def stock_config(config: PreTrainedConfig, sizes: Mapping[str, int]) -> PreTrainedConfig | None:
    """Return a stock configuration with other widths, or None if transformers has none that can hold them.

    A family's stand-in is tried where its own configuration class refuses the widths. `config` may be a layer-wise model's.
    """
    config = stock_of(config)
    changed: dict[str, Any] = dict(sizes)
    if "num_attention_heads" in sizes:
        changed["head_dim"] = head_size(config)
    stand_in = families.get(config.model_type).stand_in(config)
    for values in (config.to_dict(), stand_in):
        if values is None:
            continue
        merged = dict(values) | changed
        try:
            with quiet():
                result = CONFIG_MAPPING[str(merged["model_type"])].from_dict(merged)
        except (StrictDataclassError, ValueError):
            continue
        assert isinstance(result, PreTrainedConfig)
        return result
    return None


def storable_counts(config: PreTrainedConfig, groups: Sequence[Group]) -> Callable[[Mapping[str, int]], bool]:
    """Return the question whether a stock checkpoint of this model can hold some counts."""
    known: dict[tuple[tuple[str, int], ...], bool] = {}

    def storable(counts: Mapping[str, int]) -> bool:
        sizes = config_sizes(groups, counts)
        if sizes is None:
            return False
        # The width of an FFN is a free number in every configuration: only heads decide.
        key = tuple(sorted((name, size) for name, size in sizes.items() if name != "intermediate_size"))
        if key not in known:
            known[key] = stock_config(config, sizes) is not None
        return known[key]

    return storable


def save_stock(
    model: PreTrainedModel,
    folder: Path,
    *,
    config: PreTrainedConfig,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    dtype: torch.dtype | None = None,
) -> None:
    """Save a sliced, merged `model` under the stock class and configuration that its widths need.

    `config` is the dense model's configuration, `groups` its groups; `dtype` None keeps the model's precision.

    Raises:
        PlanError: if no stock configuration can hold the widths.
    """
    sizes = config_sizes(groups, counts)
    stock = stock_config(config, sizes) if sizes is not None else None
    if stock is None:
        raise PlanError(f"no stock configuration of {config.model_type!r} can hold these widths: {sizes}")
    tensors = model.state_dict()
    save_tensors(stock, tensors, folder, dtype=dtype or model.dtype, generation=model.generation_config)


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    config: PreTrainedConfig,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    dtype: torch.dtype | None = None,
) -> None:
    """Save a sliced, merged `model` as a stock checkpoint where one can hold its widths, else with modelling code.

    `config` is the dense model's configuration, `groups` its groups; `dtype` None keeps the model's precision.

    Raises:
        UnsupportedModelError: if widths need modelling code and the dense model is no model of transformers.
    """
    sizes = config_sizes(groups, counts)
    save = save_stock if sizes is not None and stock_config(config, sizes) is not None else save_layerwise
    save(model, folder, config=config, groups=groups, counts=counts, dtype=dtype)


@torch.no_grad()
def round_weights_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight the value that it will have when saved in `dtype`; the precision of computation stays."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


@contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its name only if the block succeeds.

    Raises:
        CheckpointError: if `output` exists and may not be replaced, or its parent cannot be written.
    """
    problem = output_problem(str(output), overwrite=overwrite)
    if problem:
        raise CheckpointError(problem)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise CheckpointError(
            f"--output {output}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    try:
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors makes its files private
        _take_place(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, output: Path) -> None:
    """Rename `new` to `output`; what was there before goes only once that has worked."""
    if not output.exists():
        new.rename(output)
        return
    old = new.with_name(new.name + ".old")
    output.rename(old)
    try:
        new.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old)
