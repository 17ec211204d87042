"""Models whose layers are on disk: the weights of a layer are read when it is at work, and dropped afterwards.

Between two uses a weight keeps its shape, precision and device, and holds a single NaN in the place of all its numbers: what is read by
mistake is not a number, and torch refuses to write to it. What is outside of the layers, such as embeddings and head, stays in memory.
Knows nothing about pruning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from jaxtyping import Shaped
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from loraprune.errors import CheckpointError, ConfigError, NumericsError
from loraprune.families import find_groups
from loraprune.groups import layer_of
from loraprune.models.auto_classes import auto_class, find_head
from loraprune.models.empty import described_model, fill_empty_, save_generation
from loraprune.models.folder import INDEX, check_weights
from loraprune.models.opening import opened, quiet
from loraprune.models.stored_tensors import StoredTensors
from loraprune.runtime.hub import at_home, parts
from loraprune.runtime.spool import Spool

HOME = "loraprune_home"
"""attribute of a parameter that is on disk"""


@dataclass(slots=True)
class Home:
    """Where the numbers of a parameter are while nobody needs them."""

    name: str
    source: Mapping[str, Shaped[Tensor, "..."]]
    """the checkpoint, or the spool once they were changed"""
    spool: Spool
    users: int = 0
    """blocks of code that need them now"""

    def read(self) -> Shaped[Tensor, "..."]:
        """Return the numbers; a copy if they were changed, as they are written where they were read."""
        found = self.source[self.name]
        return found.clone() if self.source is self.spool else found

    def write(self, tensor: Shaped[Tensor, "..."]) -> None:
        """Store other numbers."""
        self.spool.put(self.name, tensor)
        self.source = self.spool


def is_streamed(model: nn.Module) -> bool:
    """Return whether layers of a model are on disk."""
    return any(HOME in vars(parameter) for parameter in model.parameters())


@contextmanager
def at_hand(module: nn.Module, *, write: bool = False, deep: bool = True) -> Iterator[None]:
    """Give a module its weights inside the block, and those inside it theirs if it is `deep`; with `write`, store what it makes of them.

    There is nothing to do for weights that are in memory.
    """
    used = _fetch(module, deep=deep)
    try:
        yield
        if write:
            for parameter, home in used:
                home.write(parameter.data)
    finally:
        _drop(used)


def _fetch(module: nn.Module, *, deep: bool = True) -> list[tuple[nn.Parameter, Home]]:
    """Read the weights that are not there yet; return all that are on disk otherwise."""
    found = [(parameter, home) for parameter in module.parameters(deep) if (home := vars(parameter).get(HOME))]
    with torch.inference_mode(False), torch.no_grad():
        for parameter, home in found:
            if not home.users:
                parameter.data = home.read().to(parameter.device, parameter.dtype)
            home.users += 1
    return found


def _drop(used: list[tuple[nn.Parameter, Home]]) -> None:
    """Drop the weights that nobody else uses."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter, home in used:
            home.users -= 1
            if not home.users:
                parameter.data = hollow(parameter.shape, parameter.dtype, parameter.device)


def hollow(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "..."]:
    """Return a tensor of a shape with a single number in memory, which is NaN."""
    return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)


def load_streamed(
    model: str, head: str | None, config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with its layers left on disk; `head` and `dtype` are as in `load_with_head`. Every weight is read once, to check it.

    Returns:
        The model, and the names of tensors that it lacks.

    Raises:
        ConfigError: for weights that are not safetensors files of a folder, with the names that the model has.
        CheckpointError: for weights that are torn, or of other shapes than the configuration says.
        NumericsError: for NaN or infinite weights.
    """
    folder = streamed_folder(model)
    check_weights(folder)
    stored = StoredTensors.of(folder)
    given = config.dtype if isinstance(config.dtype, torch.dtype) else stored[min(stored)].dtype
    with quiet(), init_empty_weights(include_buffers=False):
        shell: Any = auto_class(head or find_head(config)).from_config(config, dtype=dtype or given)
    shell.tie_weights()
    layers = {layer_of(group) for group in find_groups(config)} - {None}
    names, tensors = _names(shell, stored, model), dict[str, Tensor]()

    def is_inside(name: str) -> bool:
        return any(name.startswith(f"{layer}.") for layer in layers)

    for name, source in names.items():
        tensor = stored[source]
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"--model {model}: {source} holds NaN or infinity; use a checkpoint whose training did not diverge"
            )
        wanted = shell.dtype if tensor.is_floating_point() else tensor.dtype
        tensors[name] = (
            hollow(tensor.shape, wanted, device) if is_inside(name) else tensor.to(device, wanted, copy=True)
        )
    fill_empty_(shell, tensors)
    loaded: PreTrainedModel = shell.to(device)  # buffers that are not stored; the others are there
    spool = Spool(in_memory=0)
    for name, parameter in loaded.named_parameters():
        if is_inside(name):
            setattr(parameter, HOME, Home(names[name], stored, spool))
    for layer in layers:
        _read_at_work(loaded.get_submodule(str(layer)))
    loaded.config.architectures = [type(loaded).__name__]
    if (folder / "generation_config.json").is_file():
        loaded.generation_config = GenerationConfig.from_pretrained(folder)
    return loaded.eval(), sorted(set(stored) - set(names.values()))


def streamed_folder(model: str) -> Path:
    """Return the folder whose files a model is read from.

    Raises:
        ConfigError: for a hub id, a GGUF file, and an adapter that is to be merged.
    """
    folder, file = opened(model)
    if file or parts(at_home(model))[1] or not Path(folder).is_dir():
        raise ConfigError(
            f"--base streamed --model {model}: layers are read from the safetensors files of a folder; download or save the model there, "
            "and name that folder"
        )
    return Path(folder)


def _names(shell: PreTrainedModel, stored: Mapping[str, Tensor], model: str) -> dict[str, str]:
    """Return the name of every tensor of a model -> the name it is stored by, which is another one where it is shared.

    Raises:
        ConfigError: if one is not stored.
    """
    shared: dict[int, list[str]] = {}
    for name, tensor in shell.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    found: dict[str, str] = {}
    for names in shared.values():
        sources = [name for name in names if name in stored]
        if not sources:
            raise ConfigError(
                f"--base streamed --model {model}: no file has {names[0]} by this name; save the model once with this transformers, "
                "or leave --base out"
            )
        if any(not torch.equal(stored[sources[0]], stored[other]) for other in sources[1:]):
            raise ConfigError(
                f"--base streamed --model {model}: config.json says that {sources[0]} and {sources[1]} are one, and they differ; leave "
                "--base out"
            )
        found |= dict.fromkeys(names, sources[0])
    return found


def _read_at_work(layer: nn.Module) -> None:
    """Read the weights of a layer before each of its passes, and drop them afterwards."""
    used: list[list[tuple[nn.Parameter, Home]]] = []
    layer.register_forward_pre_hook(lambda module, _: used.append(_fetch(module)))
    layer.register_forward_hook(lambda *_: _drop(used.pop()), always_call=True)


class StreamedState(Mapping[str, Tensor]):
    """The tensors of a model by name, each shared one once; those on disk are read when they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        kept = model.state_dict().keys()
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._tensors |= {name: buffer for name, buffer in model.named_buffers() if name in kept}

    def __getitem__(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor on the CPU."""
        tensor = self._tensors[name]
        home: Home | None = vars(tensor).get(HOME)
        return home.read().to(tensor.dtype) if home else tensor.detach().cpu()

    def __iter__(self) -> Iterator[str]:
        """Yield all names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._tensors)

    def shapes(self, dtype: torch.dtype) -> dict[str, Shaped[Tensor, "..."]]:
        """Return tensors of the same shapes without memory, in one precision; nothing is read."""
        return {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in self._tensors.items()}


def save_streamed(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    folder: Path,
    *,
    dtype: torch.dtype,
    head: str,
    max_shard_size: str,
) -> None:
    """Save a model with layers on disk as the model of `config`, one file of weights after the other.

    Raises:
        CheckpointError: if the model of `config` has other names or shapes.
    """
    state, empty = StreamedState(model), described_model(config, dtype=dtype, head=head)
    shapes = state.shapes(dtype)
    wanted = StreamedState(empty).shapes(dtype)
    if odd := [
        name
        for name in shapes | wanted
        if getattr(shapes.get(name), "shape", 0) != getattr(wanted.get(name), "shape", 0)
    ]:
        raise CheckpointError(f"{config.model_type!r} has other tensors than the model: {odd[:3]}")
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=max_shard_size)
    with quiet():
        empty.save_pretrained(folder, state_dict={})  # config.json, and the modelling code where there is some
        if model.generation_config is not None and empty.can_generate():
            save_generation(model.generation_config, folder)
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: state[name].to(dtype).contiguous() for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
