"""Load models and tokenizers from folders and the hub, with one clear sentence for everything that can be wrong.

Knows nothing about pruning.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from loraprune.errors import CheckpointError, ConfigError, NumericsError
from loraprune.models.adapters.merged import merge_adapter
from loraprune.models.auto_classes import auto_class, find_head, forget_code_, start_anew
from loraprune.models.compat import as_numbers
from loraprune.models.embeddings import is_untied, untie_config_
from loraprune.models.folder import TOKENIZER_CONFIG, check_adapter, check_folder, check_tokenizer, check_weights
from loraprune.models.layerwise.register import register_type
from loraprune.models.library_errors import clear_errors
from loraprune.models.quantised import Quantisation, forget_quantiser, loading_options, prepare_, stored_parameters
from loraprune.models.unread import check_unread
from loraprune.runtime.held import held
from loraprune.runtime.hub import DEMO, at_home, is_gguf, model_problem, parts

HUB_SECONDS = 10
"""how long the hub may take to answer"""
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
"""options of transformers that decide which file is read from the hub"""
PLAIN = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""switches of a configuration that decide what forward returns"""
DESCRIBED_AT_MOST = 4
"""a configuration that describes so many times what is stored is another model's; less, and the tensor that is missing is named"""


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


def _opened(model: str) -> tuple[str, dict[str, str]]:
    """Return the name and the options by which transformers opens a model: a GGUF file is named beside its folder."""
    place = resolve(model)
    if not is_gguf(place):
        return place, {}
    folder, name = os.path.split(place)
    return folder or os.curdir, {"gguf_file": name}


def load_config(model: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration."""
    with quiet(), clear_errors(model):
        config = _config(model, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"--model {model}: its weights are quantised already, and would be rounded a second time; name the 16- or 32-bit checkpoint, "
            "and give --quantize to hold it in 8 or 4 bits"
        )
    return config


def _config(model: str, **options: Any) -> PreTrainedConfig:
    folder, file = _opened(model)
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
        config = options.get("config") or _config(model, **chosen)
        kind, (folder, file) = auto_class(head or find_head(config)), _opened(model)
        if os.path.isdir(folder) and not file:
            _check_size(folder, kind, config, trust_remote_code=bool(options.get("trust_remote_code")))
        # Pickles are never read; the last two are there to name the tensor in our own words.
        strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if quantising:
            with torch.device("meta"):
                shell = kind.from_config(config, trust_remote_code=bool(options.get("trust_remote_code")))
            strict |= quantising(shell)
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


def _register(folder: str, **hub_options: Any) -> None:
    """Register a layer-wise model's type before transformers looks for it."""
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
    original: PreTrainedConfig | None = None,
    values: Mapping[str, Any] | None = None,
    new: Callable[[str], bool] | None = None,
    seed: int = 0,
    quantisation: Quantisation | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a model with the head of an Auto class, None for its own; parameters that `new` names may be missing.

    They are then initialised from the seed. `original` is its configuration if already read, `values` are keys of it to set,
    such as num_labels. With a `quantisation` weights are quantised one by one as they are read: the whole model is never in memory
    in 16 bits.

    Returns:
        The model, and the paths of the initialised modules.

    Raises:
        CheckpointError: for other weights that are missing, torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    config = copy.deepcopy(original) if original else load_config(model, trust_remote_code=trust_remote_code)
    named = dict(config.id2label or {})
    config.update(dict(values or {}))
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trust_remote_code, "config": config}
    quantising = None
    if quantisation:
        computed = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
        quantising = partial(loading_options, quantisation, dtype=computed, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded, fresh = _load(model, head, new, options, quantising)
        if new and config.id2label != named:
            fresh = start_anew(loaded, new, fresh)
    if quantisation:
        del loaded.config.quantization_config  # what is saved later has no quantised weights
        prepare_(loaded)
        _let_go_of_files(loaded)
    for name, tensor in stored_parameters(loaded):
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"--model {model}: {name} holds NaN or infinity; use a checkpoint whose training did not diverge"
            )
    placed: Any = loaded
    result: PreTrainedModel = loaded if quantisation else placed.to(device)
    return result, fresh


def _let_go_of_files(model: nn.Module) -> None:
    """Copy the tensors that were not quantised: on a CPU they may be views of the whole file, which would stay in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.clone()


def resolve_processor(model: str) -> str:
    """Return the folder or hub id of a model's tokenizer or image processor."""
    return held().processors.get(model) or resolve(model)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with a padding token (the end-of-text token where it has none)."""
    (folder, file), adapter = _opened(model), parts(at_home(model))[1]
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
