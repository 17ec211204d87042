"""`safetensors`: a folder that vLLM and SGLang serve: 16 bits, every width explicit, layers' own widths in `per_layer_config`.

Neither engine is run here; the entries that they read are written and checked. Sources: vLLM 0.33.0, "Writing custom models"
(auto_map.AutoModel, divisibility by the tensor-parallel size) and its Transformers backend, which sizes the attention of each layer by
`per_layer_config` of transformers >= 5.14.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from loraprune.config.export import QUANTIZATIONS, ExportConfig
from loraprune.errors import CheckpointError, ConfigError, NumericsError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.base import Format, Source, check_task, formats, tokenizer_of
from loraprune.families import find_groups
from loraprune.families.base import head_size
from loraprune.groups import layer_of
from loraprune.models.auto_classes import find_head
from loraprune.models.empty import save_tensors
from loraprune.models.folder import CONFIG, TOKENIZER_CONFIG
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.layerwise.register import stock_of
from loraprune.models.loading import load_model
from loraprune.models.opening import resolve
from loraprune.pruning.verify import check_difference

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SIZES = (1, 2, 4, 8, 16)
"""tensor-parallel sizes that are tried"""
NOT_RUN = "plain transformers; neither vLLM nor SGLang was run"


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the folder, load it, and compare."""
    dtype = DTYPES[source.quantization]
    config = source.config.__class__.from_dict(source.config.to_dict())
    layerwise = config.model_type.startswith(TYPE_PREFIX)
    tensors = source.model.state_dict()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.to(dtype)).all():
            raise NumericsError(f"--quantization {source.quantization}: {name} holds values beyond its range; use bf16")
    generation = getattr(source.model, "generation_config", None)
    save_tensors(config, tensors, folder, dtype=dtype, generation=generation, head=find_head(source.config))
    tokenizer_of(source).save_pretrained(folder)
    added = serving_keys(source.config)
    path = folder / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | added, indent=2) + "\n", encoding="utf-8")
    check_folder_keys(folder, layerwise=layerwise)
    reloaded = load_model(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    probe = probe_of(source.model)
    found = difference(logits_of(source.model, probe), logits_of(reloaded, probe))
    flags = " --trust-remote-code --model-impl transformers" if layerwise else ""
    return {
        "verification": {"source_vs_exported": check_difference("model and its folder", found, dtype)},
        "verified_by": NOT_RUN,
        "tensor_parallel_sizes": [size for size in SIZES if next(indivisible(source.config, size), None) is None],
        "load": f"vllm serve FOLDER{flags}, or python -m sglang.launch_server --model-path FOLDER{flags}",
    }


def serving_keys(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keys that engines need and that a folder may leave implicit."""
    stock = stock_of(config)
    keys: dict[str, Any] = {}
    if getattr(stock, "num_attention_heads", None):
        keys["head_dim"] = head_size(stock)
    if config.model_type.startswith(TYPE_PREFIX):
        keys["per_layer_config"] = {str(layer): dict(widths) for layer, widths in widths_of(config).items()}
        keys["allow_global_per_layer_attribute_access"] = True
    return keys


def widths_of(config: PreTrainedConfig) -> Mapping[int, Mapping[str, int]]:
    """Return the keys of config.json that each layer has its own values for.

    Raises:
        ConfigError: if a group has no keys, or is part of no layer.
    """
    found: dict[int, dict[str, int]] = {}
    for group in find_groups(config):
        layer = layer_of(group)
        if layer is None or not group.sizes:
            raise ConfigError(
                f"--format safetensors: no key of config.json states the width of {group.name!r}, so no engine could size it; "
                "use --format onnx"
            )
        widths = found.setdefault(int(layer.rpartition(".")[2]), {})
        widths |= {key: int(each * group.units) for key, each in group.sizes.items()}
    return found


def indivisible(config: PreTrainedConfig, size: int) -> Iterator[str]:
    """Yield a sentence for every width that `size` devices cannot share; key-value heads may be repeated."""
    for layer, widths in widths_of(config).items():
        for key, value in widths.items():
            repeated = key == "num_key_value_heads" and size % value == 0
            if value % size and not repeated:
                yield f"layer {layer} has {key} {value}"


def check_folder_keys(folder: Path, *, layerwise: bool) -> None:
    """Check config.json as an engine reads it, without loraprune.

    Raises:
        CheckpointError: if a key is missing.
    """
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    needed = ["architectures", "dtype", "model_type"]
    missing = [key for key in needed if not values.get(key)]
    codes = values.get("auto_map", {})
    if layerwise:
        missing += [f"auto_map.{key}" for key in ("AutoConfig", "AutoModel") if key not in codes]
        missing += [
            name for name in {code.split(".")[0] + ".py" for code in codes.values()} if not (folder / name).is_file()
        ]
    if missing:
        raise CheckpointError(
            f"--format safetensors: {', '.join(missing)} is missing in what was saved; nothing was written"
        )


def check(config: PreTrainedConfig, options: ExportConfig) -> None:
    """Raise a LoraPruneError if an engine could not serve the model."""
    check_task("safetensors", config, "causal-lm")
    folder = Path(resolve(options.model))
    if folder.is_dir() and not (folder / TOKENIZER_CONFIG).is_file():
        raise CheckpointError(f"--model {options.model}: it has no tokenizer, which engines need")
    wrong = list(indivisible(config, options.tensor_parallel))
    if wrong:
        raise ConfigError(
            f"--tensor-parallel {options.tensor_parallel}: {wrong[0]}"
            f"{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}, which so many devices cannot share; prune to a multiple "
            "(--round for FFNs), or serve on fewer"
        )


formats.add("safetensors", Format(write, check, quantizations=QUANTIZATIONS["safetensors"]))
