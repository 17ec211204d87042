"""Find models in folders and on the hub, and open their configurations and tokenizers.

One clear sentence for everything that can be wrong with them; knows nothing about weights.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from loraprune.errors import CheckpointError, ConfigError, LoraPruneError, UnsupportedModelError, nearest
from loraprune.models.auto_classes import forget_code_
from loraprune.models.folder import TOKENIZER_CONFIG, check_adapter, check_folder, check_tokenizer
from loraprune.models.layerwise.register import register_type
from loraprune.runtime.held import held
from loraprune.runtime.hub import DEMO, at_home, is_gguf, like, model_problem, parts

HUB_SECONDS = 10
"""how long the hub may take to answer"""
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadTimeout")
"""names of httpx's errors where nothing answers; not OSErrors; the classes are not imported, as only the hub's client depends on httpx"""
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
"""options of transformers that decide which file is read from the hub"""
PLAIN = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""switches of a configuration that decide what forward returns"""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing load reports and bars: what they report is checked and raised here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    if level == logging.ERROR and not bars:  # inside another; setting a level empties the caches of all loggers
        yield
        return
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def clear_errors(model: str, what: str = "the model") -> Iterator[None]:
    """Turn the libraries' errors for a bad checkpoint in the block into one sentence."""
    try:
        yield
    except LoraPruneError:
        raise
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError, RecursionError) as error:
        raise CheckpointError(
            f"--model {model}: a file of {what} is torn or malformed ({_first_line(error)}); download it again"
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
        if type(error).__name__ in UNREACHABLE:
            raise CheckpointError(
                f"--model {model}: no such folder{like(model)}, and the hub cannot be reached ({type(error).__name__}: {text}); check the "
                "path or the network"
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
            f"--model {model}: transformers cannot read {what} ({type(error).__name__}: {text}); check its files"
        ) from None


def _first_line(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0])[:200].rstrip(".") if lines else type(error).__name__


def resolve(model: str) -> str:
    """Return where a model is: a folder, a hub id or a GGUF file.

    Of BASE+ADAPTER that is the base, of `demo` the folder of the embedded model, and of a model in memory the folder that holds it.

    Raises:
        CheckpointError: for a folder that is missing, or not fit to be opened.
    """
    if model in held().models:
        return held().models[model]
    model = at_home(model)
    if problem := model_problem(model):
        raise CheckpointError(f"--model {model}: {problem}")
    base, adapter = parts(model)
    if adapter:
        check_adapter(Path(adapter), Path(base))
    if base == DEMO:
        return str(files("loraprune.models") / "demo")
    if os.path.isdir(base):
        check_folder(Path(base))
    return base


def opened(model: str) -> tuple[str, dict[str, str]]:
    """Return the name and the options by which transformers opens a model: a GGUF file is named beside its folder."""
    place = resolve(model)
    if not is_gguf(place):
        return place, {}
    folder, name = os.path.split(place)
    return folder or os.curdir, {"gguf_file": name}


def load_config(model: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration."""
    with quiet(), clear_errors(model):
        config = read_config(model, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"--model {model}: its weights are quantised already, and would be rounded a second time; name the 16- or 32-bit checkpoint, "
            "and give --quantize to hold it in 8 or 4 bits"
        )
    return config


def read_config(model: str, **options: Any) -> PreTrainedConfig:
    """Read a configuration with options of transformers; `load_config` also says in one sentence what is wrong."""
    folder, file = opened(model)
    if (
        not os.path.isdir(folder)
        and not constants.HF_HUB_OFFLINE
        and try_to_load_from_cache(folder, "config.json") is None
    ):
        HfApi().model_info(
            folder, timeout=HUB_SECONDS
        )  # says at once what transformers says after a minute of attempts
    _register(folder, **file, **{name: options[name] for name in HUB_OPTIONS if name in options})
    config = AutoConfig.from_pretrained(folder, **file, **options)
    assert isinstance(config, PreTrainedConfig)
    if not options.get("trust_remote_code"):
        forget_code_(config)
    plain_outputs_(config)
    return config


def plain_outputs_(config: PreTrainedConfig) -> None:
    """Make a model return only its logits; attentions, hidden states and tuples are returned only on request."""
    for part in (config, config.get_text_config()):
        for name, plain in PLAIN.items():
            if getattr(part, name, plain) != plain:
                setattr(part, name, plain)


def _register(folder: str, **hub_options: Any) -> None:
    """Register a layer-wise model's type before transformers looks for it."""
    values, _ = PreTrainedConfig.get_config_dict(folder, **hub_options)
    register_type(str(values.get("model_type", "")))


def resolve_processor(model: str) -> str:
    """Return the folder or hub id of a model's tokenizer or image processor."""
    return held().processors.get(model) or resolve(model)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with a padding token (the end-of-text token where it has none)."""
    (folder, file), adapter = opened(model), parts(at_home(model))[1]
    # An adapter's own tokenizer has the chat template that it was tuned with.
    place = adapter if adapter and (Path(adapter) / TOKENIZER_CONFIG).is_file() else resolve_processor(model)
    place, file = (folder, file) if file else (place, {})
    if not file:
        check_tokenizer(Path(place), option=f"--model {model}")
    with quiet(), clear_errors(model, "its tokenizer"):
        if place in (folder, adapter):
            _register(folder, **file)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **file)
        forget_code_(tokenizer)
        tokenizer("a")  # some of its settings are looked at only now
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"--model {model}: its tokenizer has neither a padding nor an end token; set one and save it")
    result: PreTrainedTokenizerBase = tokenizer
    return result
