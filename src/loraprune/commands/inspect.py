"""The command `inspect`: show the groups of a model from its configuration, without loading weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import InspectConfig
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.evaluation.tasks import find_task
from loraprune.families import find_groups
from loraprune.families.query_heads import by_query_heads, query_heads
from loraprune.groups import Group, layer_of
from loraprune.models.auto_classes import find_head
from loraprune.models.empty import empty_model
from loraprune.models.known_shapes import published_config
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.opening import load_config
from loraprune.models.saving import config_sizes, stock_config, storable_kinds
from loraprune.plan import Budget
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import make_space, measure_budget

LAYERWISE_WORDS = (
    "any widths, also of single layers: loraprune.from_pretrained, or plain transformers with trust_remote_code=True"
)
NEVER_PRUNED = ["embeddings", "output head", "norms", "residual stream"]


@dataclass(frozen=True, slots=True)
class Description:
    """Facts about a model, as JSON values."""

    values: dict[str, Any]


def inspect(options: InspectConfig) -> Description:
    """Describe the groups of a model.

    Raises:
        UnsupportedModelError: if no family supports it.
    """
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    groups = find_groups(config)
    head = find_task(config, options.task).head if options.task else find_head(config)
    model = empty_model(config, head=head)
    check_groups(model, groups)
    space = make_space(model, groups, LoRAPruneConfig())
    total = model.num_parameters()
    kinds, single = describe_kinds(config, groups, space.budget), single_heads(groups)
    if single:
        found = describe_kinds(config, single, measure_budget(model, single))
        kinds += [entry | {"instead_of": "attention"} for entry in found]
    return Description({
        "model": options.model, "family": config.model_type, "layers": count_layers(config, groups), "parameters": total,
        "prunable": space.budget.prunable, "prunable_fraction": space.budget.prunable / total, "kinds": kinds,
        "formats": {"stock": _stock_words(config, groups), "layerwise": LAYERWISE_WORDS},
        "vocabulary": describe_vocabulary(model),
        "never_pruned": ["output head"] if any(kind["kind"] == "channel" and kind["stock"] for kind in kinds) else NEVER_PRUNED,
    })  # fmt: skip


def describe_kinds(config: PreTrainedConfig, groups: tuple[Group, ...], budget: Budget) -> list[dict[str, Any]]:
    """Return an entry for every kind of groups, and for groups of one kind in different places."""
    found, storable = [], storable_kinds(config, groups)
    for where, members in _alike(groups).items():
        first = members[0]
        found.append({
            "kind": first.kind, "where": where, "groups": len(members), "units": _units(members), "stock": first.kind in storable,
            "parameters_a_unit": budget.unit_parameters[first.name],
            "parameters": budget.prunable - budget.kept({**budget.units, **{g.name: 0 for g in members}}),
            "spans": list(dict.fromkeys(f"{_inside(s.module, first)} {s.side} x{s.width}" for s in first.spans)),
        })  # fmt: skip
    return found


def single_heads(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Return the groups whose units are key-value heads with several query heads, with these as units: what --kinds query removes."""
    return tuple(by_query_heads(group) for group in groups if query_heads(group) > 1)


def describe_vocabulary(model: PreTrainedModel) -> dict[str, int] | None:
    """Return the tokens of a model and the parameters of its embedding and output layer; None for a model without text."""
    if not getattr(model.config.get_text_config(), "vocab_size", None):
        return None
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(read, nn.Embedding):  # the image model of a pair
        return None
    weights = {
        id(layer.weight): layer.weight.numel()
        for layer in (read, written)
        if isinstance(layer, nn.Embedding | nn.Linear)
    }
    return {"tokens": read.num_embeddings, "parameters": sum(weights.values())}


NUMBER = re.compile(r"\b\d+(?=\.|$)")


def _alike(groups: tuple[Group, ...]) -> dict[str, tuple[Group, ...]]:
    """Return groups that differ only in their layer, by their name with stars for numbers."""
    found: dict[str, tuple[Group, ...]] = {}
    for group in groups:
        where = NUMBER.sub("*", group.name)
        found[where] = (*found.get(where, ()), group)
    return found


def _inside(module: str, group: Group) -> str:
    """Return the path of a module relative to its group, with stars for layers, or relative to its layer."""
    if module.startswith(f"{group.name}."):
        return NUMBER.sub("*", module.removeprefix(f"{group.name}."))
    layer = layer_of(group)
    return module.removeprefix(f"{layer}.") if layer else module


def count_layers(config: PreTrainedConfig, groups: tuple[Group, ...]) -> int:
    """Return the number of layers of a model, over all stacks and stages."""
    depths: Sequence[int] | None = getattr(config, "depths", None)
    return sum(depths) if depths else len({layer_of(group) for group in groups} - {None}) or 1


def _units(members: tuple[Group, ...]) -> int | list[int]:
    """Return the units of each group, or one number if all are equal."""
    units = [group.units for group in members]
    return units[0] if len(set(units)) == 1 else units


def _stock_words(config: PreTrainedConfig, groups: tuple[Group, ...]) -> str:
    """Describe which widths plain `from_pretrained` can load."""
    uneven = {group.kind for group in groups if any(o.kind == group.kind and o.units != group.units for o in groups)}
    if uneven and config.model_type.startswith(TYPE_PREFIX):
        return "only equal widths in all layers, and these are not equal"
    storable = storable_kinds(config, groups)
    if not storable:
        return "no smaller widths: this model type has no key for them"
    words, other = [], set()
    for kind in dict.fromkeys(group.kind for group in groups):
        members = [group for group in groups if group.kind == kind]
        if kind in uneven:
            words.append(f"any fraction of the {kind} units" if kind in storable else f"all {kind} units")
        elif kind == "ffn":
            words.append("any FFN width" if kind in storable else "the full FFN width")
        elif kind not in storable:
            words.append(f"all {members[0].units} units of kind {kind}")
        else:
            good, types = _stock_units(config, members)
            single, more = _stock_units(config, single_heads(tuple(members)))
            other |= types | more
            beside = f" (with all key-value heads {single})" if single else ""
            words.append(f"{good} " + (f"query heads{beside}" if kind == "attention" else f"units of kind {kind}"))
    refused = f"; saved as {', '.join(sorted(other))} where {config.model_type} refuses the head count" if other else ""
    return f"{' and '.join(reversed(words))}, the same in all layers{refused}"


def _stock_units(config: PreTrainedConfig, members: Sequence[Group]) -> tuple[list[int], set[str]]:
    """Return how many query heads, or other units, a stock checkpoint can hold, and other model types that it then is of."""
    good, other = [], set()
    for units in range(1, members[0].units + 1) if members else ():
        sizes = config_sizes(members, {group.name: units for group in members})
        stock = stock_config(config, sizes) if sizes is not None else None
        if stock is not None:
            good.append(int(units * members[0].sizes.get("num_attention_heads", 1)))
            other |= {stock.model_type} - {config.model_type}
    return good, other
