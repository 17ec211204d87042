"""Vision transformers built like ViT: separate projections with biases, an FFN of two projections.

Where the attention of transformers reads `head_dim` from the configuration, a stock checkpoint holds fewer heads; CLIP's
divides the hidden size by the head count, so its attention groups have no `sizes`. DINOv2's FFN width is a whole multiple
of the hidden size in its configuration. Source: transformers' modeling_vit.py, modeling_deit.py, modeling_beit.py,
modeling_dinov2.py, modeling_clip.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from loraprune.families.base import Config, head_size, register_family, transformers_version
from loraprune.groups import Group, Span

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")
HEADS: Mapping[str, int | Fraction] = {"num_attention_heads": 1}


@register_family("vit")
def vit(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    yield from layers("vit", config)


@register_family("deit")
def deit(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    yield from layers("deit", config)


def layers(model: str, config: Config) -> Iterator[Group]:
    """Yield the groups of the layers of the module called `model`."""
    for index in range(config.num_hidden_layers):
        layer = f"{model}.layers.{index}"
        yield heads([f"{layer}.attention"], config.num_attention_heads, head_size(config), sizes=HEADS)
        yield ffn(f"{layer}.mlp", config.intermediate_size, sizes={"intermediate_size": 1})


@register_family("beit")
def beit(config: Config) -> Iterator[Group]:
    """Yield the groups of BEiT, whose heads have position biases: tables of every layer, or one that all layers read.

    With the latter a head is one unit through all layers.
    """
    # Layer scale multiplies what the sub-layers give before it is added.
    residual = config.layer_scale_init_value <= 0
    units, size = config.num_attention_heads, head_size(config)
    paths = [f"beit.layers.{index}" for index in range(config.num_hidden_layers)]
    if config.use_shared_relative_position_bias:
        table = "beit.shared_position_bias"
        attentions = [f"{path}.attention" for path in paths]
        shared = heads(attentions, units, size, sizes=HEADS, table=table, residual=residual)
        yield replace(shared, name="beit.layers")
    for path in paths:
        if not config.use_shared_relative_position_bias:
            own = f"{path}.relative_position_bias" if config.use_relative_position_bias else None
            yield heads([f"{path}.attention"], units, size, sizes=HEADS, table=own, residual=residual)
        yield ffn(f"{path}.mlp", config.intermediate_size, sizes={"intermediate_size": 1}, residual=residual)


@register_family("dinov2")
def dinov2(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer; layer scale multiplies what they give."""
    units, size = config.num_attention_heads, head_size(config)
    for index in range(config.num_hidden_layers):
        path = f"dinov2.encoder.layer.{index}"
        if transformers_version() >= (5, 18):
            yield heads([f"{path}.attention"], units, size, sizes=HEADS, residual=False)
        else:  # ViT's layout before transformers 5, which has no `head_dim`
            inner = f"{path}.attention.attention"
            names = ("attention.query", "attention.key", "attention.value", "output.dense")
            attributes = {f"{inner}.num_attention_heads": 1, f"{inner}.all_head_size": size}
            yield heads([f"{path}.attention"], units, size, names=names, attributes=attributes, residual=False)
        yield dinov2_ffn(f"{path}.mlp", config)


def dinov2_ffn(path: str, config: Config) -> Group:
    """Return the FFN group of a DINOv2 layer, plain or gated."""
    width = int(config.hidden_size * config.mlp_ratio)
    if not config.use_swiglu_ffn:
        return ffn(path, width, residual=False)
    width = (int(width * 2 / 3) + 7) // 8 * 8
    if transformers_version() >= (5, 18):
        both = (Span(f"{path}.gate_proj", "out", 1), Span(f"{path}.up_proj", "out", 1))
        return Group(path, "ffn", width, (*both, Span(f"{path}.down_proj", "in", 1)), residual=False)
    fused = (Span(f"{path}.weights_in", "out", 1), Span(f"{path}.weights_in", "out", 1, width))
    return Group(path, "ffn", width, (*fused, Span(f"{path}.weights_out", "in", 1)), residual=False)


@register_family("clip")
def clip(config: Config) -> Iterator[Group]:
    """Yield the groups of CLIP's vision tower, which classifies images without the text tower."""
    vision, sizes = config.vision_config, {"vision_config.intermediate_size": 1}
    for index in range(vision.num_hidden_layers):
        layer = f"vision_model.encoder.layers.{index}"
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        yield heads([f"{layer}.self_attn"], vision.num_attention_heads, head_size(vision), names=names)
        yield ffn(f"{layer}.mlp", vision.intermediate_size, sizes=sizes)


def heads(
    paths: Sequence[str],
    units: int,
    size: int,
    *,
    names: Sequence[str] = NAMES,
    sizes: Mapping[str, int | Fraction] | None = None,
    attributes: Mapping[str, int] | None = None,
    table: str | None = None,
    residual: bool = True,
) -> Group:
    """Return the group of heads that the attention modules at `paths` share; `table` is their table of position biases."""
    spans = [Span(f"{path}.{each}", "in" if each == names[-1] else "out", size) for path in paths for each in names]
    spans += [Span(table, "table", 1)] if table else []
    return Group(
        paths[0], "attention", units, tuple(spans), sizes or {}, attributes or {}, residual=residual
    )  # fmt: skip


def ffn(path: str, units: int, *, sizes: Mapping[str, int | Fraction] | None = None, residual: bool = True) -> Group:
    """Return the FFN group of a layer with two projections: a unit is one channel."""
    spans = (Span(f"{path}.fc1", "out", 1), Span(f"{path}.fc2", "in", 1))
    return Group(path, "ffn", units, spans, sizes or {}, residual=residual)
