"""Check a model's folder before any library opens it, so that nothing outside it is read and no code is run.

Knows nothing about torch. Links are followed, as the hub's cache consists of them; names that point outside the folder are refused.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from loraprune.errors import CheckpointError

CONFIG, TOKENIZER_CONFIG, ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
"""suffixes of files that can run any code when they are read"""
TOKENIZERS = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "source.", "target.")
TOKENIZER_SUFFIXES = (".model", ".spm", ".tiktoken", ".bpe")
"""what the names of a tokenizer's files begin or end with"""
HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""task_type of adapters whose model has its own head"""
LARGEST_JSON = 1 << 24
"""bytes; a configuration has some thousands, the index of a large model some hundred thousands"""
WHOLE = ("I", "U", "BOOL")
"""what safetensors' names of types without fractions begin with"""
TRAINED = ("weight", "_proj")
"""what the names of parameters end with that have fractions in every model; buffers may hold whole numbers"""
LAYERS = 10_000
"""more than any model has: only a damaged configuration has so many"""


def check_folder(folder: Path, *, option: str = "--model") -> None:
    """Check the files of a model that are read before its weights.

    Raises:
        CheckpointError: for a folder that is empty, has no configuration or a malformed one, or refers to anything outside it.
    """
    with _named(option, folder):
        if not any(folder.iterdir()):
            raise CheckpointError("the folder is empty; name one with config.json and model.safetensors")
        if (folder / ADAPTER).is_file():  # transformers would load whatever base model it names
            if (folder / CONFIG).is_file():
                raise CheckpointError(
                    f"it holds a model and an adapter ({ADAPTER}), and transformers would load the adapter's base model instead; move "
                    "the adapter_* files to a separate folder"
                )
            base = read_json(folder / ADAPTER).get("base_model_name_or_path") or "BASE"
            raise CheckpointError(
                f"it holds only an adapter; give --model {shlex.quote(f'{base}+{folder}')}, and it is merged into its base model first"
            )
        if not (folder / CONFIG).is_file():
            raise CheckpointError("no config.json in the folder; save the model with save_pretrained")
        for key, value in read_json(folder / CONFIG).items():
            if not _is_sensible(key, value):
                raise CheckpointError(f"config.json is invalid ({key} {str(value)[:100]}); use the model's own file")
        if (folder / TOKENIZER_CONFIG).is_file():
            for key, value in read_json(folder / TOKENIZER_CONFIG).items():
                if key.endswith("_file") and isinstance(value, str):
                    _inside(TOKENIZER_CONFIG, value)


def check_adapter(folder: Path, base: Path) -> None:
    """Check that a folder holds an adapter with complete weights that can be merged into the model in `base`.

    A base that is not a folder is not checked.

    Raises:
        CheckpointError: for any other folder.
    """
    with _named("--model: the adapter in", folder):
        if not (folder / ADAPTER).is_file():
            raise CheckpointError(f"no {ADAPTER} in the folder; name one that PEFT's save_pretrained wrote")
        values = read_json(folder / ADAPTER)
        kind = values.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(
                f"its peft_type is {kind!r}; only LORA is merged; merge it by PEFT and save the model"
            )
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise CheckpointError(f"no {ADAPTER_WEIGHTS} in the folder; only safetensors are loaded: save it again")
        _stored(folder / ADAPTER_WEIGHTS)
        new = _new_parameters(folder, base) if values.get("task_type") in HEADED else []
        if new:
            raise CheckpointError(
                f"it brings a head that {base} lacks ({new[0]}), without the names of its classes and perhaps without all of its "
                "layers; merge it by PEFT's merge_and_unload, save the model, and name that folder"
            )


def _new_parameters(folder: Path, base: Path) -> list[str]:
    """Return the parameters that an adapter brings whole and its base lacks; none where the base cannot be looked into."""
    try:
        stored = {name for file in weight_files(base) for name in _stored(file)}
    except CheckpointError:  # no folder, or one that other checks refuse
        return []
    names = _stored(folder / ADAPTER_WEIGHTS)
    return sorted({name.removeprefix("base_model.model.") for name in names if ".lora_" not in name} - stored)


def check_tokenizer(folder: Path, *, option: str) -> None:
    """Check that a folder, if it is one, holds a tokenizer of any kind.

    Raises:
        CheckpointError: if it holds none of the files that tokenizers are saved as.
    """
    if os.path.isdir(folder) and not any(
        file.name.startswith(TOKENIZERS) or file.suffix in TOKENIZER_SUFFIXES for file in folder.iterdir()
    ):
        raise CheckpointError(
            f"{option}: the folder holds no tokenizer (tokenizer.json); save the model's own into it with save_pretrained"
        )


def _is_sensible(key: str, value: object) -> bool:
    """Return whether a model can have such a configuration, as far as its classes do not look themselves."""
    if key == "id2label" and isinstance(value, dict):
        return all(isinstance(name, str | int | float) for name in value.values())
    if not isinstance(value, int | float):
        return True
    return 0 < value <= LAYERS if key == "num_hidden_layers" else "drop" not in key or 0 <= value <= 1


def check_weights(folder: Path, *, option: str = "--model") -> int:
    """Check that the weights of a folder are whole safetensors files inside it; nothing but their headers is read.

    Returns:
        How many numbers they hold.

    Raises:
        CheckpointError: for weights that are missing, pickled, torn, outside the folder, or whole numbers that stand for others.
    """
    with _named(option, folder):
        files = weight_files(folder)
        stored = {file: _stored(file) for file in files}
        if not read_json(folder / CONFIG).get("quantization_config"):
            _check_types(stored)
        return sum(math.prod(shape) for tensors in stored.values() for shape, _ in tensors.values())


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model of a folder."""
    explicit = read_json(folder / CONFIG).get("transformers_weights")
    if explicit is not None:
        raise CheckpointError(
            f"config.json names a file of weights itself ({explicit!r}); rename the file to {WEIGHTS}"
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickled:
            raise CheckpointError(
                f"its weights are pickled ({pickled[0]}), which can run any code when read: only safetensors are loaded; "
                "have whoever made it save it with save_pretrained"
            )
        raise CheckpointError(f"no {WEIGHTS} in the folder; save the model with save_pretrained")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{INDEX} has no weight_map; download it again")
    files = [_inside(INDEX, place) for place in dict.fromkeys(places.values() if _all_text(places) else [None])]
    for file in files:
        if not file.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX} names {file!r}: only safetensors are loaded")
        if not (folder / file).is_file():
            raise CheckpointError(f"{INDEX} names {file!r}, which is not in the folder; download it again")
    return [folder / file for file in files]


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_JSON else None
        values = json.loads(data.decode("utf-8")) if data is not None else None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        why = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{path.name} is torn or malformed ({why}); download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} holds no JSON object; download it again")
    return values


def _all_text(values: Mapping[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def _inside(source: str, name: str | None) -> str:
    """Return a relative name, or raise a CheckpointError if it leads out of the folder, on any system."""
    paths = (PurePosixPath(name or "/"), PureWindowsPath(name or "/"))
    if not name or "\0" in name or any(path.anchor or ".." in path.parts for path in paths):
        raise CheckpointError(f"{source} refers to {name!r}, outside the folder; nothing there is read")
    return name


def _stored(file: Path) -> dict[str, tuple[list[int], str]]:
    """Return the name, the shape and the type of every tensor in a file."""
    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = ((name, opened.get_slice(name)) for name in opened.keys())  # noqa: SIM118  it is not a mapping
            return {name: (tensor.get_shape(), str(tensor.get_dtype())) for name, tensor in tensors}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file.name} is torn or malformed ({error}); download it again") from None


def _check_types(stored: Mapping[Path, Mapping[str, tuple[list[int], str]]]) -> None:
    """Refuse weights that are stored as whole numbers: nothing says what they stand for, and each would be taken as it is."""
    for file, tensors in stored.items():
        types = {name: kind for name, (_, kind) in tensors.items()}
        whole = [name for name, kind in types.items() if name.endswith(TRAINED) and kind.startswith(WHOLE)]
        if whole:
            raise CheckpointError(
                f"{whole[0]} is stored as {types[whole[0]]}, whole numbers that a quantiser made of the weights, and config.json does not "
                f"say how ({len(whole)} such tensors in {file.name}); name the 16- or 32-bit checkpoint, and give --quantize to hold it in "
                "8 or 4 bits"
            )


@contextmanager
def _named(option: str, folder: Path) -> Iterator[None]:
    """Add to an error the option that named the folder."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{option} {folder}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{option} {folder}: cannot be read ({error.strerror}); check its permissions") from None
