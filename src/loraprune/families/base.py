"""The registry of families and the two building blocks that most of them share.

Knows nothing about torch or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeAlias

from loraprune.errors import UnsupportedModelError
from loraprune.families.query_heads import with_query_heads
from loraprune.groups import Group, Span
from loraprune.registry import Registry

Config: TypeAlias = Any
"""a transformers PreTrainedConfig; its attributes differ from family to family, so no narrower type helps"""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of model: how its groups follow from a configuration, and how a result can be stored."""

    name: str
    groups: Callable[[Config], Iterator[Group]]
    stand_in: Callable[[Config], Mapping[str, object] | None]
    """for widths that the family's own configuration refuses: a configuration of another model type with the same
    weights and the same mathematics, or None"""
    per_layer: tuple[str, ...] | None = None
    """keys of the configuration with one entry for every layer; None where the layers are not interchangeable, so that
    none of them may go"""


families: Registry[Family] = Registry(
    "model type", UnsupportedModelError, "; docs/add-a-family.md shows how to add one in a dozen lines"
)

SHIFTED_POSITIONS = ("roberta", "xlm-roberta")
OLDER_NAME = ("llama", "qwen2", "qwen3", "qwen3_moe", "smollm3")
"""model types with another name for the layers of a model that answers with spans, see `trunk`"""

GroupFunction: TypeAlias = Callable[[Config], Iterator[Group]]


def transformers_version() -> tuple[int, ...]:
    """Return major and minor version of the installed transformers, which need not be imported for that."""
    return tuple(int(part) for part in version("transformers").split(".")[:2])


def no_stand_in(config: Config) -> None:
    """Say that no other model type computes the same."""


def register_family(
    *model_types: str,
    stand_in: Callable[[Config], Mapping[str, object] | None] = no_stand_in,
    per_layer: tuple[str, ...] | None = None,
) -> Callable[[GroupFunction], GroupFunction]:
    """Register a function `config -> groups` for the `model_type`s of transformers that it describes; options are Family's."""

    def register(function: GroupFunction) -> GroupFunction:
        for model_type in model_types:
            families.add(model_type, Family(model_type, function, stand_in, per_layer))
        return function

    return register


def find_groups(config: Config) -> tuple[Group, ...]:
    """Return the prunable groups of the model that `config` describes.

    A layer-wise model's configuration is that of the dense model and a record of the units that are left.

    Raises:
        UnsupportedModelError: if no family knows the model type.
    """
    record = getattr(config, "loraprune", None)
    if record is None:
        return tuple(families.get(config.model_type).groups(config))
    groups = families.get(config.model_type.removeprefix("loraprune_")).groups(config)
    try:
        return tuple(_left(group, record) for group in groups)
    except (KeyError, TypeError) as error:
        raise UnsupportedModelError(f"`loraprune` in config.json has no `units` of all groups: {error}") from None


def positions(config: Config) -> int | None:
    """Return how many tokens a model has positions for; None where nothing limits them."""
    count: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    # RoBERTa and its kin number positions from after the padding token's.
    return count - config.pad_token_id - 1 if count and config.model_type in SHIFTED_POSITIONS else count


def fitting_lengths(lengths: Iterable[int], configs: Iterable[Config]) -> list[int]:
    """Return numbers of tokens, cut to what every model has positions for, each once."""
    most = [count for config in configs if (count := positions(config))]
    return list(dict.fromkeys(min([length, *most]) for length in lengths))


def _left(group: Group, record: Mapping[str, Any]) -> Group:
    """Return what a layer-wise model has left of a group of the dense model."""
    units = record["units"][group.name]
    smaller = replace(group.resize(units), whole=units == group.units)
    heads = record.get("query_heads", {}).get(group.name)
    return smaller if heads is None else with_query_heads(smaller, heads)


def trunk(config: Config) -> str:
    """Return the path of a decoder's layers below its head.

    Source: `base_model_prefix` in transformers' modeling_llama.py and those like it, which kept an older name where spans are answered.
    """
    spans = any(name.endswith("ForQuestionAnswering") for name in config.architectures or ())
    return "transformer" if spans and config.model_type.removeprefix("loraprune_") in OLDER_NAME else "model"


def head_size(config: Config) -> int:
    """Return the size of one attention head, also where the configuration leaves it implicit."""
    explicit: int | None = getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def attention(
    path: str,
    config: Config,
    *,
    out: str = "o_proj",
    key_value_heads: int | None = None,
    norms: tuple[str, str] | None = None,
    attributes: Mapping[str, int] | None = None,
    residual: bool = True,
    stock: bool = True,
) -> Group:
    """Return the attention group of a layer with separate projections q_proj, k_proj, v_proj and `out`.

    A unit is a key-value head with all query heads that share it, so grouped-query attention keeps its shape; give the number
    of key-value heads where the configuration has none. `norms` names RMS norms over all query and over all key channels;
    `attributes` and `residual` are Group's; `stock` says that the configuration can state fewer heads, by `head_dim` beside.
    """
    head = head_size(config)
    units = key_value_heads or config.num_key_value_heads
    shared = config.num_attention_heads // units
    spans = [
        Span(f"{path}.q_proj", "out", shared * head, heads=shared),
        Span(f"{path}.k_proj", "out", head),
        Span(f"{path}.v_proj", "out", head),
        Span(f"{path}.{out}", "in", shared * head, heads=shared),
    ]
    if norms:
        spans += [Span(norms[0], "norm", shared * head, heads=shared), Span(norms[1], "norm", head)]
    sizes = {"num_attention_heads": shared, "num_key_value_heads": 1} if stock else {}
    return Group(path, "attention", units, tuple(spans), sizes, attributes or {}, residual=residual)


def fused_by_head(
    path: str, units: int, *, rows: int, columns: int, attributes: Mapping[str, int] | None = None
) -> Group:
    """Return the attention group of a layer whose `query_key_value` holds the rows of one unit after those of another.

    A unit owns `rows` of it and `columns` of `dense`. No configuration of such a family states the size of a head.
    """
    spans = (Span(f"{path}.query_key_value", "out", rows), Span(f"{path}.dense", "in", columns))
    return Group(path, "attention", units, spans, attributes=attributes or {})


def gated_mlp(path: str, config: Config, *, residual: bool = True) -> Group:
    """Return the FFN group of a layer with gate, up and down projections: a unit is one channel; `residual` is Group's."""
    spans = (
        Span(f"{path}.gate_proj", "out", 1),
        Span(f"{path}.up_proj", "out", 1),
        Span(f"{path}.down_proj", "in", 1),
    )
    return Group(path, "ffn", config.intermediate_size, spans, {"intermediate_size": 1}, residual=residual)


def mlp(path: str, width: int, *, up: str, down: str, key: str | None, residual: bool = True) -> Group:
    """Return the FFN group of a layer with two projections and no gate; `key` in config.json states its width."""
    spans = (Span(f"{path}.{up}", "out", 1), Span(f"{path}.{down}", "in", 1))
    return Group(path, "ffn", width, spans, {key: 1} if key else {}, residual=residual)
