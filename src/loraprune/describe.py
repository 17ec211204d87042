"""Looking before training: what a model's groups are, and what a run would give, from the configuration alone.

Reads no weights. Knows nothing about data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.adapters import attach_lora
from loraprune.allocation import Counts, Space
from loraprune.checkpoint import config_sizes, layer_sizes, stock_config, storable_kinds
from loraprune.config import LoRAPruneConfig
from loraprune.depth import gone_layers, shallower
from loraprune.families import find_groups
from loraprune.groups import Group, layer_of
from loraprune.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.layerwise.register import stock_of
from loraprune.loading import load_config, quiet
from loraprune.memory import available_memory_bytes
from loraprune.settings import InspectConfig, PlanConfig
from loraprune.shell import empty_model
from loraprune.surgery import check_groups
from loraprune.target import goal_counts, groups_in_play, make_space, target_ratio
from loraprune.tasks import Inputs, Task, find_task

LAYERWISE_WORDS = (
    "any widths, also of single layers: loraprune.from_pretrained, or plain transformers with trust_remote_code=True"
)
NEVER_PRUNED = ["embeddings", "output head", "norms", "residual stream"]
ADAM_BYTES = 12
"""bytes a trained parameter: gradient and two moments in float32"""


@dataclass(frozen=True, slots=True)
class Description:
    """An answer about a model, ready for JSON."""

    values: dict[str, Any]


def inspect(options: InspectConfig) -> Description:
    """Describe the groups of a model.

    Raises:
        UnsupportedModelError: if no family knows it.
    """
    config = load_config(options.model, trust_remote_code=options.trust_remote_code)
    groups = find_groups(config)
    model = empty_model(config, head=find_task(config, options.task).head)
    check_groups(model, groups)
    space = make_space(model, groups, LoRAPruneConfig())
    total = model.num_parameters()
    kinds, storable = [], storable_kinds(config, groups)
    for where, members in _alike(groups).items():
        first = members[0]
        kinds.append({
            "kind": first.kind, "where": where, "groups": len(members), "units": _units(members), "stock": first.kind in storable,
            "parameters_a_unit": space.budget.unit_parameters[first.name],
            "parameters": space.budget.prunable - space.budget.kept({**space.budget.units, **{g.name: 0 for g in members}}),
            "spans": list(dict.fromkeys(f"{_inside(s.module, first)} {s.side} x{s.width}" for s in first.spans)),
        })  # fmt: skip
    return Description({
        "model": options.model, "family": config.model_type, "layers": _layers(config, groups), "parameters": total,
        "prunable": space.budget.prunable, "prunable_fraction": space.budget.prunable / total, "kinds": kinds,
        "formats": {"stock": _stock_words(config, groups), "layerwise": LAYERWISE_WORDS},
        "never_pruned": ["output head"] if "channel" in storable else NEVER_PRUNED,
    })  # fmt: skip


NUMBER = re.compile(r"\b\d+(?=\.|$)")


def _alike(groups: tuple[Group, ...]) -> dict[str, tuple[Group, ...]]:
    """Return groups that differ in their layer alone, by their name with stars for numbers."""
    found: dict[str, tuple[Group, ...]] = {}
    for group in groups:
        where = NUMBER.sub("*", group.name)
        found[where] = (*found.get(where, ()), group)
    return found


def _inside(module: str, group: Group) -> str:
    """Return the path of a module below its group, with stars for the layers of a group that spans some, or below its layer."""
    if module.startswith(f"{group.name}."):
        return NUMBER.sub("*", module.removeprefix(f"{group.name}."))
    layer = layer_of(group)
    return module.removeprefix(f"{layer}.") if layer else module


def _layers(config: PreTrainedConfig, groups: tuple[Group, ...]) -> int:
    """Return how many layers a model has, in all stacks together, also where it has stages."""
    depths: Sequence[int] | None = getattr(config, "depths", None)
    return sum(depths) if depths else len({layer_of(group) for group in groups} - {None}) or 1


def _units(members: tuple[Group, ...]) -> int | list[int]:
    """Return the units of each group: one number where all have the same."""
    units = [group.units for group in members]
    return units[0] if len(set(units)) == 1 else units


def _stock_words(config: PreTrainedConfig, groups: tuple[Group, ...]) -> str:
    """Say which widths plain `from_pretrained` can load."""
    uneven = {group.kind for group in groups if any(o.kind == group.kind and o.units != group.units for o in groups)}
    if uneven and config.model_type.startswith(TYPE_PREFIX):
        return "only equal widths in all layers, which these are not"
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
            good = []
            for units in range(1, members[0].units + 1):
                stock = stock_config(config, config_sizes(members, {group.name: units for group in members}) or {})
                if stock is not None:
                    good.append(units * members[0].sizes.get("num_attention_heads", 1))
                    other |= {stock.model_type} - {config.model_type}
            words.append(f"{good} " + ("query heads" if kind == "attention" else f"units of kind {kind}"))
    refused = f"; saved as {', '.join(sorted(other))} where {config.model_type} refuses the head count" if other else ""
    return f"{' and '.join(reversed(words))}, the same in all layers{refused}"


def dry_run(options: PlanConfig) -> Description:
    """Predict shapes, parameters, file size and training memory of a pruning run.

    Raises:
        PlanError: if the target cannot be reached.
    """
    config = load_config(options.model, trust_remote_code=options.trust_remote_code)
    groups = find_groups(config)
    model = empty_model(config, head=find_task(config, options.task).head)
    check_groups(model, groups)
    in_play = groups_in_play(config, groups, options)
    space = make_space(model, in_play, options)
    dense = model.num_parameters()
    counts = goal_counts(space, options, model_parameters=dense)
    pruned = dense - space.budget.prunable + space.budget.kept(counts) - _beside_units(model, space, counts)
    sizes = config_sizes(in_play, counts)
    stock = stock_config(shallower(config, counts), sizes) if sizes is not None else None
    if sizes and (gone := gone_layers(counts)):
        sizes = {"num_hidden_layers": _layers(config, groups) - len(gone)} | sizes
    bytes_each = 4 if options.dtype in ("float32", "auto") else 2
    memory = _memory(model, groups, options, find_task(config, options.task), bytes_each=bytes_each)
    return Description({
        "model": options.model, "family": config.model_type,
        "ratio_requested": None if options.has_dimensions else target_ratio(space, options, model_parameters=dense),
        "ratio_reached": space.budget.ratio(counts), "ratio_of_whole_model": 1 - pruned / dense,
        "parameters": {"dense": dense, "pruned": pruned, "prunable_dense": space.budget.prunable,
                       "prunable_pruned": space.budget.kept(counts)},
        "kinds": list(space.by_kind()),
        "shapes": sizes or layer_sizes(in_play, counts),
        "saved_as": stock.model_type if stock else TYPE_PREFIX + stock_of(config).model_type,
        "file_bytes": {"dense": dense * bytes_each, "pruned": pruned * bytes_each},
        "training_memory_bytes": memory, "machine_memory_bytes": available_memory_bytes(),
    })  # fmt: skip


def _beside_units(model: PreTrainedModel, space: Space, counts: Counts) -> int:
    """Return the parameters that go with whole layers beside those of their units: norms, and biases that no unit owns."""
    layers = gone_layers(counts)
    owned = sum(space.budget.unit_parameters[g.name] * g.units for g in space.groups if layer_of(g) in layers)
    return sum(p.numel() for layer in layers for p in model.get_submodule(layer).parameters()) - owned


def _memory(
    model: PreTrainedModel, groups: tuple[Group, ...], options: PlanConfig, task: Task, *, bytes_each: int
) -> dict[str, int]:
    """Estimate the peak of training before anything is cut, in bytes."""
    weights, config = model.num_parameters() * bytes_each, model.config
    with torch.device("meta"), quiet():
        adapted = attach_lora(model, groups, rank=options.rank, alpha=options.alpha, dropout=options.dropout, seed=0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    adapters = trained * (4 + ADAM_BYTES)
    if task.unit == "images":
        kept = options.batch * _saved_numbers(adapted, task.probe(config, 1, 1)) * bytes_each
        return {"weights": weights, "adapters_and_optimiser": adapters, "activations": kept,
                "total": weights + adapters + kept}  # fmt: skip
    tokens = options.batch * options.length
    per_layer = _activation_numbers(groups, config) * tokens * bytes_each
    layers = _layers(config, groups)
    kept = (
        tokens * config.hidden_size * bytes_each * layers + per_layer if options.checkpointing else per_layer * layers
    )
    logits = tokens * config.vocab_size * (bytes_each + 8)
    return {"weights": weights, "adapters_and_optimiser": adapters, "activations": kept, "logits": logits,
            "total": weights + adapters + kept + logits}  # fmt: skip


def _saved_numbers(model: nn.Module, inputs: Inputs) -> int:
    """Return the numbers that a forward pass leaves behind for the backward pass, by running it without memory."""
    own = {id(parameter) for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            saved[id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.device("meta"):
        model.train()(**{name: each.to("meta") if isinstance(each, Tensor) else each for name, each in inputs.items()})
    return sum(tensor.numel() for tensor in saved.values())


def _activation_numbers(groups: tuple[Group, ...], config: PreTrainedConfig) -> int:
    """Return the numbers that one token leaves behind in a layer, on average, for the backward pass.

    The inputs that LoRA keeps for the gradient of A (with dropout: masked copies), what attention keeps (q, k, v, output),
    the gate, up and product of the FFN, and four copies of the residual stream for norms and additions.
    """
    layers = _layers(config, groups)
    rows = sum(g.units * s.width for g in groups for s in g.spans if s.side == "out")
    columns = sum(g.units * s.width for g in groups for s in g.spans if s.side == "in")
    inputs = sum(1 for g in groups for s in g.spans if s.side == "out") * config.hidden_size
    return (2 * rows + 2 * columns + inputs) // layers + 4 * config.hidden_size
