"""ResNet: channels of convolutions, through batch norm, residual additions and downsampling.

Everything that is added to one residual stream shares its channels, so a channel of a stream is one unit: a row of every
convolution that writes it, with its batch norm, and a column of every convolution that reads it. The channels between the
convolutions of one layer are separate groups. Removed channels are never read, so batch norm, which acts on each channel alone,
changes nothing: masked and sliced model agree in training too.

A stock checkpoint holds what its `hidden_sizes` say: a bottleneck's inner width is a fixed fraction of its stage's stream.
Source: transformers' modeling_resnet.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, register_family
from loraprune.groups import Group, Span

REDUCTION = 4
"""width of a stream over that inside its bottlenecks"""


@register_family("resnet")
def resnet(config: Config) -> Iterator[Group]:
    """Yield the streams, and the channels inside every layer."""
    stem = "resnet.embedder.embedder"
    name, units, spans, sizes = "resnet.embedder", config.embedding_size, writes(stem), {"embedding_size": 1}
    for stage, (depth, width) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        layers = [f"resnet.encoder.stages.{stage}.layers.{index}" for index in range(depth)]
        spans.append(reads(f"{layers[0]}.layer.0"))
        strided = stage > 0 or config.downsample_in_first_stage
        if units != width or strided:
            spans.append(reads(f"{layers[0]}.shortcut"))
            yield Group(name, "channel", units, tuple(spans), sizes, residual=False)
            name, units, spans, sizes = f"resnet.encoder.stages.{stage}", width, writes(f"{layers[0]}.shortcut"), {}
        sizes[f"hidden_sizes.{stage}"] = 1
        for layer in layers:
            inner = range(2 if config.layer_type == "bottleneck" else 1)
            yield from (between(layer, index, width, config) for index in inner)
            spans += writes(f"{layer}.layer.{len(inner)}")
            spans += [reads(f"{layer}.layer.0")] if layer != layers[0] else []
    spans.append(Span("classifier.1", "head", 1))
    yield Group(name, "channel", units, tuple(spans), sizes, residual=False)


def between(layer: str, index: int, width: int, config: Config) -> Group:
    """Return the channels between two convolutions of a layer, of which the first is number `index`."""
    each = REDUCTION if config.layer_type == "bottleneck" else 1
    stage = layer.split(".")[3]
    spans = (*writes(f"{layer}.layer.{index}"), reads(f"{layer}.layer.{index + 1}"))
    sizes = {f"hidden_sizes.{stage}": each}
    return Group(f"{layer}.layer.{index}", "channel", width // each, spans, sizes, residual=False)


def writes(path: str) -> list[Span]:
    """Return the spans of a convolution that writes channels, and of its batch norm."""
    return [Span(f"{path}.convolution", "out", 1), Span(f"{path}.normalization", "table", 1)]


def reads(path: str) -> Span:
    """Return the span of a convolution that reads channels."""
    return Span(f"{path}.convolution", "in", 1)
