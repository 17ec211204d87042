"""Getting models and tokenizers from folders and the hub, with one clear sentence for everything that can be wrong.

Knows nothing about pruning.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
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
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from loraprune.errors import CheckpointError, ConfigError, LoraPruneError, NumericsError, UnsupportedModelError, nearest
from loraprune.folder import check_folder, check_weights
from loraprune.layerwise.register import register_type

DEMO = "demo"
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
"""options of transformers that decide which file is read from the hub"""
DESCRIBED_AT_MOST = 4
"""a configuration that describes so many times what is stored is another model's; less, and the tensor that is missing is named"""


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
        CheckpointError: for a folder that is missing, or not fit to be opened.
    """
    if model == DEMO:
        return str(files("loraprune") / "demo" / "model")
    if os.path.isdir(model):  # unlike Path.is_dir, no error for a name that is too long
        check_folder(Path(model))
    elif os.path.isfile(model):
        raise CheckpointError(f"--model {model}: this is a file; name the folder that holds it and config.json")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointError(f"--model {model}: no such folder; check the path, or name a hub id such as org/name")
    return model


def load_config(model: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration."""
    with quiet(), _clear_errors(model):
        _register(resolve(model))
        config = AutoConfig.from_pretrained(resolve(model), trust_remote_code=trust_remote_code)
    assert isinstance(config, PreTrainedConfig)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"--model {model}: its weights are quantised already and cannot be cut exactly; name the 16- or 32-bit checkpoint"
        )
    return config


def from_pretrained(model: str | Path, **options: Any) -> PreTrainedModel:
    """Load a causal language model, a layer-wise one too, for which no code from its folder is run.

    Args:
        model: A folder or a hub id; `demo` is the model that ships with the package.
        options: Options of `from_pretrained` of transformers.

    Raises:
        CheckpointError: for weights that are missing, torn, or of other shapes than the configuration says.
    """
    with quiet(), _clear_errors(str(model)):
        folder = resolve(str(model))
        _register(folder, **{name: options[name] for name in HUB_OPTIONS if name in options})
        if os.path.isdir(folder):
            _check_size(folder, trust_remote_code=bool(options.get("trust_remote_code")))
        # Pickles are never read; the last two are there to name the tensor in our own words.
        strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded_and_info: Any = AutoModelForCausalLM.from_pretrained(folder, **(options | strict))
    loaded, info = loaded_and_info
    for key, word in (("missing_keys", "lacks"), ("mismatched_keys", "has a wrong shape for")):
        if info.get(key):
            # A mismatch is a tuple of name and both shapes.
            name = min(entry if isinstance(entry, str) else str(entry[0]) for entry in info[key])
            raise CheckpointError(
                f"--model {model}: the checkpoint {word} {name}: it is not whole, or config.json is another model's"
            )
    result: PreTrainedModel = loaded
    return result


def _check_size(folder: str, *, trust_remote_code: bool) -> None:
    """Check that weights are about as many as the configuration says: memory would be taken for all it says.

    Raises:
        CheckpointError: if they are not, or are no whole safetensors files.
    """
    stored = check_weights(Path(folder))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        described = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
    if described > DESCRIBED_AT_MOST * stored:
        raise CheckpointError(
            f"--model {folder}: config.json describes {described:,} parameters, the weights have {stored:,}: it is another model's"
        )


def _register(folder: str, **hub_options: Any) -> None:
    """Make a layer-wise model's type known before transformers looks for it."""
    values, _ = PreTrainedConfig.get_config_dict(folder, **hub_options)
    register_type(str(values.get("model_type", "")))


def load_model(
    model: str, *, device: torch.device, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model; `dtype` None keeps the checkpoint's.

    Raises:
        CheckpointError: for weights that are missing, torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    load_config(model, trust_remote_code=trust_remote_code)
    loaded: Any = from_pretrained(model, dtype=dtype or "auto", trust_remote_code=trust_remote_code)
    for name, tensor in loaded.named_parameters():
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"--model {model}: {name} holds NaN or infinity; use a checkpoint whose training did not diverge"
            )
    result: PreTrainedModel = loaded.to(device)
    return result


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with a padding token (the end-of-text token where it has none)."""
    with quiet(), _clear_errors(model, "its tokenizer"):
        _register(resolve(model))
        tokenizer = AutoTokenizer.from_pretrained(resolve(model), trust_remote_code=trust_remote_code)
        tokenizer("a")  # some of its settings are looked at only now
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"--model {model}: its tokenizer has neither a padding nor an end token; set one and save it")
    result: PreTrainedTokenizerBase = tokenizer
    return result


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many tokens the model has an embedding for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def choose_device(name: str) -> torch.device:
    """Return the device of an option: `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: if this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available[name]:
        raise ConfigError(f"--device {name}: this machine has none; use --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of an option; `auto` keeps the checkpoint's, but uses float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@contextmanager
def _clear_errors(model: str, what: str = "it") -> Iterator[None]:
    """Turn what the libraries raise for a bad checkpoint into one sentence."""
    try:
        yield
    except LoraPruneError:
        raise
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError, RecursionError) as error:
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
    except Exception as error:  # a damaged configuration makes the libraries raise nearly anything
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
        raise CheckpointError(
            f"--model {model}: transformers cannot read {what} ({type(error).__name__}: {text}); check config.json and the tokenizer files"
        ) from None


def _first_line(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0])[:200].rstrip(".") if lines else type(error).__name__
