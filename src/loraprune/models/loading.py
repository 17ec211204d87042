"""Load weights with the right head, whole and finite, and refuse a checkpoint of another model.

Knows nothing about pruning.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)

from loraprune.errors import CheckpointError, ConfigError, NumericsError
from loraprune.models.adapters.merging import merge_adapter
from loraprune.models.auto_classes import auto_class, find_head, reinitialize_heads
from loraprune.models.compat import as_numbers
from loraprune.models.embeddings import is_untied, untie_config_
from loraprune.models.folder import check_weights
from loraprune.models.opening import HUB_OPTIONS, clear_errors, load_config, opened, quiet, read_config
from loraprune.models.quantised import Quantisation, forget_quantiser, loading_options, prepare_, stored_parameters
from loraprune.models.streaming import load_streamed
from loraprune.runtime.hub import at_home, parts

ADAPTERS = re.compile(r"\blora_|\bmodules_to_save\b|\bbase_layer\b|\boriginal_module\b|\blora_magnitude_vector\b")
SCALES = re.compile(
    r"(scale_inv|weight_scale(_\d)?|input_scale|activation_scale|qweight|qzeros|g_idx|absmax|quant_map|SCB)$"
)
"""names of tensors that quantisers store beside weights, or instead of them"""
FOLLOWS = frozenset({
    "pooler", "rotary_emb", "inv_freq", "position_ids", "token_type_ids", "masked_bias", "mask_token", "relative_position_index",
    "relative_coords_table", "attn_mask", "num_batches_tracked",
})  # fmt: skip
"""parts of the names of other heads' tensors, and of tensors that follow from the configuration"""
DESCRIBED_AT_MOST = 4
"""a configuration that describes so many times what is stored is another model's; less, and the tensor that is missing is named"""

logger = logging.getLogger(__name__)


def from_pretrained(model: str | Path, **options: Any) -> PreTrainedModel:
    """Load a model with the head that its configuration names; a layer-wise one too, for which no code from its folder is run.

    Args:
        model: A folder or a hub id; `demo` is the model that ships with the package.
        options: Options of `from_pretrained` of transformers.

    Raises:
        CheckpointError: for weights that are missing, torn, or of other shapes than the configuration says.
    """
    return _load(str(model), None, None, options)[0]


def _load(
    model: str,
    head: str | None,
    new: Callable[[str], bool] | None,
    options: dict[str, Any],
    quantising: Callable[[nn.Module], dict[str, Any]] | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with a head; return it and the paths of the modules that `new` allows the checkpoint to lack."""
    with quiet(), clear_errors(model):
        chosen = {name: options[name] for name in (*HUB_OPTIONS, "trust_remote_code") if name in options}
        config = options.get("config") or read_config(model, **chosen)
        kind, (folder, file) = auto_class(head or find_head(config)), opened(model)
        if os.path.isdir(folder) and not file:
            _check_size(folder, kind, config, trust_remote_code=bool(options.get("trust_remote_code")))
        # Pickles are never read; the last two are there to name the tensor in our own words.
        strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if quantising:
            with torch.device("meta"):
                empty = kind.from_config(config, trust_remote_code=bool(options.get("trust_remote_code")))
            strict |= quantising(empty)
        if file:
            strict |= as_numbers()
        loaded_and_info: Any = kind.from_pretrained(folder, **(options | strict | file))
    loaded, info = loaded_and_info
    if file:
        forget_quantiser(loaded)
    fresh: set[str] = set()
    for key, word in (("missing_keys", "lacks"), ("mismatched_keys", "has a wrong shape for")):
        # A mismatch is a tuple of name and both shapes.
        names = {entry if isinstance(entry, str) else str(entry[0]) for entry in info.get(key) or ()}
        allowed = set(filter(new, names)) if new else set()
        fresh |= {name.rpartition(".")[0] for name in allowed}
        wrong = names - allowed
        named = ", ".join(config.architectures or ())
        if wrong and head and type(loaded).__name__ not in named.split(", ") and key == "missing_keys":
            raise CheckpointError(
                f"--model {model}: it has no head for {head.removeprefix('AutoModelFor')} ({named or 'config.json'} lacks {min(wrong)}); "
                "name a checkpoint that has one, or give data with labels"
            )
        if wrong:
            raise CheckpointError(
                f"--model {model}: the checkpoint {word} {min(wrong)}: it is incomplete, or config.json belongs to another model"
            )
    check_unread(model, loaded, [str(name) for name in info.get("unexpected_keys") or ()])
    if adapter := parts(at_home(model))[1]:
        loaded, brought = merge_adapter(loaded, Path(adapter))
        fresh -= brought
    if is_untied(loaded):
        untie_config_(loaded.config)
    loaded.config.architectures = [type(loaded).__name__]
    return loaded, tuple(sorted(fresh))


def _check_size(folder: str, kind: Any, config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Check that there are about as many weights as the configuration says: memory would be allocated for all of them.

    Raises:
        CheckpointError: if there are not, or if they are not complete safetensors files.
    """
    stored = check_weights(Path(folder))
    with torch.device("meta"):
        described = kind.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
    if described > DESCRIBED_AT_MOST * stored:
        raise CheckpointError(
            f"--model {folder}: config.json describes {described:,} parameters, the weights have {stored:,}: it is another model's"
        )


def load_model(
    model: str, *, device: torch.device, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model with the head that its configuration names; `dtype` None keeps the checkpoint's.

    Raises:
        CheckpointError: for weights that are missing, torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    return load_with_head(model, None, device=device, dtype=dtype, trust_remote_code=trust_remote_code)[0]


def load_with_head(
    model: str,
    head: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    original: PreTrainedConfig | None = None,
    values: Mapping[str, Any] | None = None,
    new: Callable[[str], bool] | None = None,
    seed: int = 0,
    quantisation: Quantisation | None = None,
    streamed: bool = False,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with the head of an Auto class, None for its own; parameters that `new` names may be missing.

    They are then initialised from the seed. `original` is its configuration if already read, `values` are keys of it to set,
    such as num_labels. With a `quantisation` weights are quantised one by one as they are read: the whole model is never in memory
    in 16 bits. `streamed` leaves the layers on disk.

    Returns:
        The model, and the paths of the initialised modules.

    Raises:
        CheckpointError: for other weights that are missing, torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    config = copy.deepcopy(original) if original else load_config(model, trust_remote_code=trust_remote_code)
    named = dict(config.id2label or {})
    config.update(dict(values or {}))
    if streamed:
        left_on_disk, unread = load_streamed(model, head, config, device=device, dtype=dtype)
        check_unread(model, left_on_disk, unread)
        return left_on_disk, ()
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trust_remote_code, "config": config}
    quantising = None
    if quantisation:
        computed = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
        quantising = partial(loading_options, quantisation, dtype=computed, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded, fresh = _load(model, head, new, options, quantising)
        if new and config.id2label != named:
            fresh = reinitialize_heads(loaded, new, fresh)
    if quantisation:
        del loaded.config.quantization_config  # what is saved later has no quantised weights
        prepare_(loaded)
        _release_files_(loaded)
    for name, tensor in stored_parameters(loaded):
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"--model {model}: {name} holds NaN or infinity; use a checkpoint whose training did not diverge"
            )
    placed: Any = loaded
    result: PreTrainedModel = loaded if quantisation else placed.to(device)
    return result, fresh


def _release_files_(model: nn.Module) -> None:
    """Copy the tensors that were not quantised: on a CPU they may be views of the whole file, which would stay in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.clone()


def check_unread(source: str, model: PreTrainedModel, names: Sequence[str]) -> None:
    """Refuse a checkpoint with tensors that a `model` loaded from it lacks and needs; warn of the others, such as another head's.

    Raises:
        ConfigError: for an adapter that was not merged, and for quantised weights.
        CheckpointError: for tensors of the backbone, such as more layers than the configuration says.
    """
    if adapter := next(filter(ADAPTERS.search, names), None):
        raise ConfigError(
            f"--model {source}: it holds an adapter that is not merged ({adapter}); merge it by PEFT's merge_and_unload and save that"
        )
    if scale := next(filter(SCALES.search, names), None):
        raise ConfigError(
            f"--model {source}: its weights are quantised ({scale}) and config.json does not say how; name the 16- or 32-bit checkpoint"
        )
    inside = [name for name in names if _is_inside(model, name)]
    if inside:
        raise CheckpointError(
            f"--model {source}: the checkpoint holds {min(inside)}, which a model of this config.json does not have "
            f"({len(inside)} such tensors): config.json belongs to another model"
        )
    if names:
        _warn(source, type(model).__name__, tuple(sorted(names)))


def _is_inside(model: PreTrainedModel, name: str) -> bool:
    """Return whether a tensor belongs to the layers below the head, named with or without the backbone's prefix."""
    first, *others = name.split(".")
    if not FOLLOWS.isdisjoint(others):
        return False
    layers = model.base_model
    return (layers is not model and first == model.base_model_prefix) or first in dict(layers.named_children())


@cache
def _warn(source: str, kind: str, names: tuple[str, ...]) -> None:
    """Warn once of tensors that are left out."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    logger.warning(
        "%s: %s does not use these tensors, which are left out: %s%s", source, kind, ", ".join(names[:3]), more
    )
