"""Models as modules with tensor inputs only, which torch.export can trace: logits, or one step with a key-value cache.

For an encoder-decoder: the cross-attention inputs of a source, and one step of the target. Knows nothing about files.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from loraprune.errors import UnsupportedModelError
from loraprune.evaluation.tasks import probe_of
from loraprune.models.cache import cache_name
from loraprune.models.modes import dropout_off
from loraprune.models.opening import quiet

BATCH, PAST, NEW = 2, 3, 4
"""sizes that are traced: all above 1, which torch.export would take for a constant"""


class Logits(nn.Module):
    """A model that takes a dictionary of tensors and returns its logits."""

    def __init__(self, model: PreTrainedModel, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.fixed = model, dict(fixed)

    def forward(self, inputs: dict[str, Shaped[Tensor, "..."]]) -> Float[Tensor, "..."]:
        """Return the logits."""
        logits: Tensor = self.model(**inputs, **self.fixed).logits
        return logits


class Step(nn.Module):
    """A causal model that reads new tokens beside a cache: `past` has the keys and values of every layer in turn."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.cache_name = cache_name(model)
        self.reads_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self,
        input_ids: Int[Tensor, "..."],
        attention_mask: Int[Tensor, "..."],
        position_ids: Int[Tensor, "..."],
        past: list[Float[Tensor, "..."]],
    ) -> tuple[Float[Tensor, "..."], ...]:
        """Return logits (batch, new, vocabulary), and keys and values of every layer with the new ones behind.

        Inputs are (batch, new), (batch, past and new), (batch, new), and (batch, heads of the layer, past, size of a head) each.
        """
        # The sizes are no annotations here: while this is traced they are symbols, and a check would pin them.
        cache: Any = filled(past)
        places = {"position_ids": position_ids} if self.reads_positions else {}
        given = {self.cache_name: cache, "use_cache": True, **places}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits
        return (logits, *in_turn(cache))


class Encoding(nn.Module):
    """What the decoder of an encoder-decoder reads of a source: keys and values of cross-attention, layer by layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.cache_name = model, cache_name(model)

    def forward(
        self, input_ids: Int[Tensor, "..."], attention_mask: Int[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], ...]:
        """Return (batch, heads of the layer, source, size of a head) each; inputs are (batch, source)."""
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # The decoder makes them of the source alone, whatever token it reads; the rest of its work leaves the graph as nobody asks for it.
        given = {self.cache_name: cache, "use_cache": True, "decoder_input_ids": torch.zeros_like(input_ids[:, :1])}
        self.model(input_ids=input_ids, attention_mask=attention_mask, **given)
        return in_turn(cache.cross_attention_cache)


class TargetStep(nn.Module):
    """The decoder of an encoder-decoder, which reads new tokens of the target beside a cache and an `Encoding`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.cache_name = model, cache_name(model)

    def forward(
        self,
        input_ids: Int[Tensor, "..."],
        encoder_attention_mask: Int[Tensor, "..."],
        past: list[Float[Tensor, "..."]],
        source: list[Float[Tensor, "..."]],
    ) -> tuple[Float[Tensor, "..."], ...]:
        """Return logits (batch, new, vocabulary), and keys and values of every layer's self-attention with the new ones behind.

        Inputs are (batch, new), (batch, source), (batch, heads of the layer, past, size of a head) each, and an `Encoding`'s.
        """
        cache: Any = EncoderDecoderCache(filled(past), filled(source))
        # Of the encoder's states nothing but the shape is looked at, as their keys and values are there.
        size = (-1, -1, self.model.config.hidden_size)
        states = encoder_attention_mask.unsqueeze(-1).expand(*size).to(past[0])
        given = {self.cache_name: cache, "use_cache": True, "attention_mask": encoder_attention_mask}
        logits = self.model(encoder_outputs=(states,), decoder_input_ids=input_ids, **given).logits
        return (logits, *in_turn(cache.self_attention_cache))


def filled(tensors: Sequence[Float[Tensor, "..."]]) -> DynamicCache:
    """Return a cache of keys and values in turn, (batch, heads of the layer, past, size of a head) each."""
    return DynamicCache(list(zip(tensors[0::2], tensors[1::2], strict=True)))


def in_turn(cache: Any) -> tuple[Float[Tensor, "..."], ...]:
    """Return keys and values of every layer of a cache in turn."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def cache_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return (heads, size of a head) of keys and of values, layer by layer."""
    cache: Any = DynamicCache()
    with torch.inference_mode(), dropout_off(model):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, **{cache_name(model): cache})
    return [(each.shape[1], each.shape[3]) for each in in_turn(cache)]


def trace_logits(model: PreTrainedModel) -> tuple[ExportedProgram, dict[str, Shaped[Tensor, "rows ..."]]]:
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


def trace_pair(model: PreTrainedModel) -> tuple[ExportedProgram, ExportedProgram, int]:
    """Trace an encoder-decoder as an `Encoding` and a `TargetStep` with any batch and lengths; return its decoder's layers too.

    Raises:
        UnsupportedModelError: if torch.export cannot trace the model.
    """
    ids = torch.zeros(BATCH, NEW + 1, dtype=torch.long)
    mask = torch.ones_like(ids)
    varies, kept = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
    given = {cache_name(model): cache, "use_cache": True, "decoder_input_ids": ids[:, :PAST]}
    with _plain_attention(model):
        with torch.inference_mode(), dropout_off(model):
            model(input_ids=ids, attention_mask=mask, **given)
        past, source = (
            [torch.zeros(each.shape) for each in in_turn(part)]
            for part in (cache.self_attention_cache, cache.cross_attention_cache)
        )
        encoder = _trace(Encoding(model), (ids, mask), (varies, varies))
        shapes = (varies, varies, [kept for _ in past], [kept for _ in source])
        decoder = _trace(TargetStep(model), (ids[:, :NEW].clone(), mask, past, source), shapes)
    return encoder, decoder, len(past) // 2


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make a model compute attention as products and a softmax: PyTorch 2.13 exports a view of T5's fused one that it then refuses."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _trace(module: Logits | Step | Encoding | TargetStep, args: tuple[Any, ...], shapes: Any) -> ExportedProgram:
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
    """Silence the tracers' remarks about libraries: their output is verified."""
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
