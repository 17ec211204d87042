"""The searched shape: key-value heads, query heads, channels and layers are compared after recovery, and nothing of a trial is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.training import PruneConfig
from loraprune.errors import ConfigError
from loraprune.families.depth import gone_layers
from loraprune.models.adapters import base_layer, find_module
from loraprune.pruning import shapes
from loraprune.pruning.correlation import spearman
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery.snapshot import Snapshot
from loraprune.pruning.shapes import FINALISTS, Shape
from loraprune.runtime import launch
from tests.tiny import logits, relative, tiny_model, tokens, with_lora

IDS = tokens(64, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
HEAD, HIDDEN, QUERY_HEADS, LAYERS = 8, 64, 8, 2
HALF_OF_THE_QUERY_HEADS = QUERY_HEADS // 2 * 2 * HEAD * HIDDEN / 30720
"""ratio of the prunable parameters of a layer: q_proj, k_proj, v_proj, o_proj and the FFN"""


def pruner(model: PeftModel | None = None, **options: Any) -> Pruner:
    """Return a pruner that searches for a shape, with scores."""
    values: dict[str, Any] = {"ratio": 0.3, "criterion": "magnitude", "allocation": "searched", "end_to_end": 64}
    found = Pruner(model or with_lora(tiny_model("llama")), LoRAPruneConfig(**values | options))
    found.score()
    return found


def half_empty() -> PeftModel:
    """Return a model in which every second query head contributes nothing."""
    model = with_lora(tiny_model("llama"))
    for layer in range(LAYERS):
        module: Any = find_module(model, f"model.layers.{layer}.self_attn.o_proj")
        for weight in (base_layer(module).weight, module.lora_A["default"].weight):
            weight.data.unflatten(1, (QUERY_HEADS, HEAD))[:, 1::2] = 0.0
    return model


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": True}, {"shrink": False}, {"adapter": "dora"}, {"end_to_end": 0}, {"compensate": False}],
    ids=lambda options: "-".join(options) or "default",
)
def test_the_model_is_bit_identical_after_the_search(options: dict[str, Any]) -> None:
    model = with_lora(tiny_model("llama"), kind=options.get("adapter", "lora"))
    found = pruner(model, **options)
    before, answers = state(model), logits(model, IDS)
    found.measure(ROWS)
    assert same(state(model), before)
    assert torch.equal(logits(model, IDS), answers)
    assert found.shapes is not None
    recovered = [one for one in found.shapes["tried"] if len(one["errors"]) > 1]
    assert len(recovered) == FINALISTS


def nothing(*_: Any, **__: Any) -> None:
    """Undo nothing."""


@pytest.mark.parametrize("what", ["changes", "refits"])
def test_without_undoing_the_model_would_differ(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: both kinds of reconstruction do change weights."""
    if what == "changes":
        monkeypatch.setattr(shapes, "undoing", lambda *_: nothing)
    else:
        monkeypatch.setattr(Snapshot, "restore_", nothing)
    found = pruner()
    before = state(found.model)  # type: ignore[arg-type]
    found.measure(ROWS)
    assert not same(state(found.model), before)  # type: ignore[arg-type]


def test_query_heads_go_where_they_contribute_least() -> None:
    model = half_empty()
    dense = logits(model, IDS)
    found = pruner(model, ratio=HALF_OF_THE_QUERY_HEADS, end_to_end=0, compensate=None)
    found.remove(1.0, rows=ROWS)
    assert found.plan.parts
    assert [len(found.plan.kept[name]) for name in found.plan.parts] == [QUERY_HEADS // 2] * LAYERS
    assert {unit % 2 for name in found.plan.parts for unit in found.plan.kept[name]} == {0}
    assert relative(dense, logits(model, IDS)) < 1e-4
    # Ratios refer to the same parameters as without the search.
    removed = found.removed()
    assert removed.ratio_reached == found.ratio() == pytest.approx(HALF_OF_THE_QUERY_HEADS, abs=1e-9)
    assert removed.prunable_dense == 30720 * LAYERS
    # The control: whole key-value heads and channels all contribute.
    control = half_empty()
    measured = pruner(control, ratio=HALF_OF_THE_QUERY_HEADS, allocation="measured", end_to_end=0)
    measured.remove(1.0, rows=ROWS)
    assert not measured.plan.parts
    assert relative(dense, logits(control, IDS)) > 1e-2


def test_shapes_of_every_kind_and_equal_size_are_tried() -> None:
    found = pruner(depth=True, ratio=0.5)
    found.measure(ROWS)
    assert found.shapes is not None
    tried = found.shapes["tried"]
    assert {one["kind"] for one in tried} == {"attention", "query", "layers"}
    assert {one["kind"] for one in tried if "end_to_end" in one["errors"]} == {"attention", "query", "layers"}
    assert [one["ratio"] for one in tried] == pytest.approx([0.5] * len(tried), abs=2 * found.space.half_step())
    assert len({one["shape"] for one in tried}) == len(tried)
    (kept,) = [one for one in tried if one["kept"]]
    ends = [one["errors"]["end_to_end"] for one in tried if "end_to_end" in one["errors"]]
    assert kept["errors"]["end_to_end"] == min(ends)
    assert all(math.isfinite(one["losses"]["removed"]) for one in tried)
    for one in found.shapes["rank_correlation"]:
        pairs = [[each["errors"][stage] for stage in one["stages"]] for each in tried if "end_to_end" in each["errors"]]
        assert one["spearman"] == spearman(*map(list, zip(*pairs, strict=True)))
    assert [one["stages"] for one in found.shapes["rank_correlation"]] == [
        ["removed", "refitted"], ["removed", "end_to_end"], ["refitted", "end_to_end"],
    ]  # fmt: skip
    assert found.shapes["seconds"] > 0
    found.remove(1.0, rows=ROWS)


def test_the_ranking_after_recovery_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery that turns the ranking around changes the choice: what is best with masks alone is no longer taken."""

    def turned(shape: Shape, **_: Any) -> None:
        shape.found.errors["end_to_end"] = 1 / shape.found.errors["removed"]

    chosen, first = [], []
    for recover in (turned, nothing):
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "_recover", recover)
            found = pruner()
            found.measure(ROWS)
        assert found.shapes is not None
        chosen.append(next(one["shape"] for one in found.shapes["tried"] if one["kept"]))
        first.append(min(found.shapes["tried"], key=lambda one: one["errors"]["removed"])["shape"])
    assert first[0] == first[1] == chosen[1] != chosen[0]


def test_the_choice_is_the_same_each_time_and_survives_in_the_state() -> None:
    pruners = [pruner(half_empty(), ratio=HALF_OF_THE_QUERY_HEADS) for _ in range(2)]
    for each in pruners:
        each.remove(1.0, rows=ROWS)
    first, second = ({**(each.shapes or {}), "seconds": 0} for each in pruners)
    assert first == second
    again = pruner(half_empty(), ratio=HALF_OF_THE_QUERY_HEADS)
    again.load_state_dict(pruners[0].state_dict())
    assert again.plan == pruners[0].plan
    assert again.plan.parts
    assert again.shapes == pruners[0].shapes
    assert torch.equal(logits(again.model, IDS), logits(pruners[0].model, IDS))


def test_scores_of_both_kinds_of_heads_survive_before_the_choice() -> None:
    first = pruner(half_empty(), ratio=HALF_OF_THE_QUERY_HEADS)
    again = Pruner(half_empty(), first.config)
    again.load_state_dict(first.state_dict())
    for each in (first, again):
        each.remove(1.0, rows=ROWS)
    assert again.plan == first.plan


def kinds_of(model: PeftModel, **options: Any) -> Sequence[str]:
    found = pruner(model, **options)
    found.measure(ROWS)
    return sorted({one["kind"] for one in (found.shapes or {"tried": ()})["tried"]})


def test_query_heads_are_tried_only_where_they_can_go() -> None:
    assert kinds_of(with_lora(tiny_model("llama"))) == ["attention", "query"]
    assert kinds_of(with_lora(tiny_model("llama-mha"))) == ["attention"]  # no key-value head is shared
    assert kinds_of(with_lora(tiny_model("llama")), kinds="attention,ffn") == ["attention"]
    assert kinds_of(with_lora(tiny_model("llama")), kinds="query,ffn") == ["query"]
    assert kinds_of(with_lora(tiny_model("gpt2"))) == []  # one shape: fewer channels


def test_with_depth_a_layer_that_does_nothing_goes() -> None:
    model = with_lora(tiny_model("llama", layers=4))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        module: Any = find_module(model, f"model.layers.2.{name}")
        for weight in (base_layer(module).weight, module.lora_B["default"].weight):
            weight.data.zero_()
    found = pruner(model, ratio=0.25, depth=True)
    found.remove(1.0, rows=ROWS)
    assert gone_layers(found.counts()) == ("model.layers.2",)


def test_what_cannot_be_searched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="allocation='searched' schedule='cubic': the split is measured once"):
        LoRAPruneConfig(allocation="searched", schedule="cubic")
    with pytest.raises(ConfigError, match="end_to_end=0: shapes are compared after reconstruction"):
        LoRAPruneConfig(allocation="searched", compensate=False, end_to_end=0)
    with pytest.raises(ConfigError, match=r"--rounds 2 --allocation searched: .* use --allocation measured"):
        PruneConfig(model="demo", data="stdlib", output="out", allocation="searched", rounds=2)
    LoRAPruneConfig(allocation="searched", end_to_end=0)  # the control
    monkeypatch.setattr(launch, "is_sharded", lambda: True)
    with pytest.raises(ConfigError, match=r"--allocation searched: FSDP shards weights.*launch without --use_fsdp"):
        Pruner(
            with_lora(tiny_model("llama")), LoRAPruneConfig(allocation="searched", compensate=False, end_to_end=None)
        )
