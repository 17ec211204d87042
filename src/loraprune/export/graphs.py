"""A model as a module of tensors alone, which torch.export can trace: its logits, or one step with a key-value cache.

Knows nothing about files.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel

from loraprune.errors import UnsupportedModelError
from loraprune.evaluate import dropout_off
from loraprune.loading import quiet
from loraprune.verify import probe_of

BATCH, PAST, NEW = 2, 3, 4
"""sizes that are traced: all above 1, which torch.export would take for a constant"""


class Logits(nn.Module):
    """A model that takes a dictionary of tensors and returns its logits."""

    def __init__(self, model: PreTrainedModel, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.fixed = model, dict(fixed)

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "..."]:
        """Return the logits."""
        logits: Tensor = self.model(**inputs, **self.fixed).logits
        return logits


class Step(nn.Module):
    """A causal model that reads new tokens beside a cache: `past` has the keys and values of every layer in turn."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        # Named so from transformers 5.24 on; the former name is deprecated there.
        self.cache_name = "cache" if "cache" in known else "past_key_values"
        self.reads_positions = "position_ids" in known

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return logits (batch, new, vocabulary), and keys and values of every layer with the new ones behind.

        Inputs are (batch, new), (batch, past and new), (batch, new), and (batch, heads of the layer, past, size of a head) each.
        """
        # Shapes are no annotations here: while this is traced, sizes are symbols, and a check would pin them.
        cache: Any = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
        places = {"position_ids": position_ids} if self.reads_positions else {}
        given = {self.cache_name: cache, "use_cache": True, **places}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def cache_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return (heads, size of a head) of keys and of values, layer by layer."""
    cache: Any = DynamicCache()
    name = Step(model).cache_name
    with torch.inference_mode(), dropout_off(model):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, **{name: cache})
    return [(each.shape[1], each.shape[3]) for layer in cache.layers for each in (layer.keys, layer.values)]


def trace_logits(model: PreTrainedModel) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """Trace the logits of any model with any batch and number of tokens; return the inputs too, by name.

    Raises:
        UnsupportedModelError: if torch.export cannot trace the model.
    """
    probe = probe_of(model)
    inputs = {name: value for name, value in probe.items() if isinstance(value, Tensor)}
    wrapped = Logits(model, {name: value for name, value in probe.items() if name not in inputs})
    return _trace(wrapped, (inputs,), ({name: _dynamic(value) for name, value in inputs.items()},)), inputs


def _dynamic(tensor: Tensor) -> dict[int, Any]:
    """Return the dimensions that vary: rows, and tokens of what is counted in them; an image has its size."""
    return {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if tensor.ndim == 2 else {0: Dim.DYNAMIC}


def trace_step(model: PreTrainedModel, shapes: Sequence[tuple[int, int]]) -> ExportedProgram:
    """Trace one step of a causal model with any batch, numbers of new and of former tokens.

    Raises:
        UnsupportedModelError: if torch.export cannot trace the model.
    """
    past = [torch.zeros(BATCH, heads, PAST, size) for heads, size in shapes]
    places = torch.arange(PAST, PAST + NEW).expand(BATCH, NEW).contiguous()
    ones = torch.ones(BATCH, PAST + NEW, dtype=torch.long)
    varies = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    dynamic = (varies, varies, varies, [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in past])
    return _trace(Step(model), (ones[:, :NEW].clone(), ones, places, past), dynamic)


def _trace(module: Logits | Step, args: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    with quiet_tracing(), torch.no_grad(), dropout_off(module):
        try:
            return torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # a tracer fails with nearly anything
            kind = module.model.config.model_type
            why = " ".join(str(error).split())[:200]
            raise UnsupportedModelError(
                f"{kind!r} cannot be traced by torch.export {torch.__version__} ({type(error).__name__}: {why}); use the "
                "folder as it is"
            ) from None


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep tracers from printing what they think of the libraries: what they wrote is verified."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
