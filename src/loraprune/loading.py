"""Getting models and tokenizers from folders and the hub, with one clear sentence for everything that can be wrong.

Knows nothing about pruning.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from loraprune.errors import CheckpointError, ConfigError, LoraPruneError, NumericsError, UnsupportedModelError, nearest
from loraprune.heads import auto_class, find_head, start_anew
from loraprune.layerwise.register import register_type

DEMO = "demo"
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
"""options of transformers that decide which file is read from the hub"""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing load reports and bars: whatever they say is checked and raised here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def resolve(model: str) -> str:
    """Return the folder of the embedded model for `demo`, and check that a folder can be a model.

    Raises:
        CheckpointError: for a folder that is missing, empty, or without a configuration.
    """
    if model == DEMO:
        return str(files("loraprune") / "demo" / "model")
    path = Path(model)
    if path.is_dir():
        if not any(path.iterdir()):
            raise CheckpointError(
                f"--model {model}: the folder is empty; name one with config.json and model.safetensors"
            )
        if not (path / "config.json").is_file():
            raise CheckpointError(f"--model {model}: no config.json in the folder; save the model with save_pretrained")
    elif path.is_file():
        raise CheckpointError(f"--model {model}: this is a file; name the folder that holds it and config.json")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointError(f"--model {model}: no such folder; check the path, or name a hub id such as org/name")
    return model


def load_config(model: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration."""
    with quiet(), _clear_errors(model):
        config = _config(model, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"--model {model}: its weights are quantised already and cannot be cut exactly; name the 16- or 32-bit checkpoint"
        )
    return config


def _config(model: str, **options: Any) -> PreTrainedConfig:
    folder = resolve(model)
    _register(folder, **{name: options[name] for name in HUB_OPTIONS if name in options})
    config = AutoConfig.from_pretrained(folder, **options)
    assert isinstance(config, PreTrainedConfig)
    return config


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
    model: str, head: str | None, new: Callable[[str], bool] | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with a head; return it and the paths of the modules that `new` allows the checkpoint to lack."""
    with quiet(), _clear_errors(model):
        chosen = {name: options[name] for name in (*HUB_OPTIONS, "trust_remote_code") if name in options}
        config = options.get("config") or _config(model, **chosen)
        # Wrong shapes are let pass to name the tensor in our own words.
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded_and_info: Any = auto_class(head or find_head(config)).from_pretrained(
            resolve(model), **(options | strict)
        )
    loaded, info = loaded_and_info
    fresh: set[str] = set()
    for key, word in (("missing_keys", "lacks"), ("mismatched_keys", "has a wrong shape for")):
        # A mismatch is a tuple of name and both shapes.
        names = {entry if isinstance(entry, str) else str(entry[0]) for entry in info.get(key) or ()}
        allowed = set(filter(new, names)) if new else set()
        fresh |= {name.rpartition(".")[0] for name in allowed}
        wrong = names - allowed
        if wrong:
            raise CheckpointError(
                f"--model {model}: the checkpoint {word} {min(wrong)}: it is not whole, or config.json is another model's"
            )
    loaded.config.architectures = [type(loaded).__name__]
    return loaded, tuple(sorted(fresh))


def _register(folder: str, **hub_options: Any) -> None:
    """Make a layer-wise model's type known before transformers looks for it."""
    values, _ = PreTrainedConfig.get_config_dict(folder, **hub_options)
    register_type(str(values.get("model_type", "")))


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
    values: Mapping[str, Any] | None = None,
    new: Callable[[str], bool] | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with the head of an Auto class, None for its own; parameters that `new` names may be missing.

    They are drawn by the seed then. `values` are keys of its configuration to set, such as num_labels.

    Returns:
        The model, and the paths of the modules that started anew.

    Raises:
        CheckpointError: for other weights that are missing, torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    config = load_config(model, trust_remote_code=trust_remote_code)
    named = dict(config.id2label or {})
    config.update(dict(values or {}))
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trust_remote_code, "config": config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded, fresh = _load(model, head, new, options)
        if new and config.id2label != named:
            fresh = start_anew(loaded, new, fresh)
    for name, tensor in loaded.named_parameters():
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"--model {model}: {name} holds NaN or infinity; use a checkpoint whose training did not diverge"
            )
    placed: Any = loaded
    result: PreTrainedModel = placed.to(device)
    return result, fresh


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with a padding token (the end-of-text token where it has none)."""
    with quiet(), _clear_errors(model):
        _register(resolve(model))
        tokenizer = AutoTokenizer.from_pretrained(resolve(model), trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"--model {model}: its tokenizer has neither a padding nor an end token; set one and save it")
    result: PreTrainedTokenizerBase = tokenizer
    return result


@contextmanager
def _clear_errors(model: str) -> Iterator[None]:
    """Turn what the libraries raise for a bad checkpoint into one sentence."""
    try:
        yield
    except LoraPruneError:
        raise
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError) as error:
        raise CheckpointError(
            f"--model {model}: a file is torn or malformed ({_first_line(error)}); download it again"
        ) from None
    except StrictDataclassError as error:
        raise CheckpointError(f"--model {model}: config.json is invalid ({_first_line(error)})") from None
    except (OSError, HFValidationError) as error:
        offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise CheckpointError(
            f"--model {model}: cannot be loaded{offline}: {_first_line(error)}; name a folder with config.json, "
            "model.safetensors and tokenizer files, or a hub id that this machine can reach"
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        text = _first_line(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"--model {model}: it needs code from the checkpoint; if you trust it, give --trust-remote-code"
            ) from None
        unknown = re.search(r"has model type `([^`]+)`", str(error))
        if unknown:
            raise UnsupportedModelError(
                f"--model {model}: unknown model type {unknown[1]!r}{nearest(unknown[1], CONFIG_MAPPING)}: update transformers "
                "if it is a new one; docs/add-a-family.md shows how to add a family"
            ) from None
        if "model type" in text or "Unrecognized model" in text or "Unrecognized configuration" in text:
            raise UnsupportedModelError(
                f"--model {model}: {text}; docs/add-a-family.md shows how to add a family"
            ) from None
        raise CheckpointError(f"--model {model}: {text}") from None


def _first_line(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0])[:200].rstrip(".") if lines else type(error).__name__
