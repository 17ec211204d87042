"""What recovery sets aside for every layer is in files: its memory does not grow with depth, and its numbers are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraprune.families import find_groups
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.blockwise import weight_scales
from loraprune.pruning.recovery.compensation import solve_refits
from loraprune.pruning.recovery.end_to_end import Outputs
from loraprune.pruning.recovery.recover import Recovery, Steps, recover_
from loraprune.pruning.recovery.trace import Trace
from loraprune.runtime import spool
from loraprune.training.footprint import LiveBytes
from tests.tiny import choose, tiny_model, tokens, with_lora

IDS = tokens(64, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
EVERYTHING = 2**40


def recovered(
    layers: int, monkeypatch: pytest.MonkeyPatch, *, in_memory: int
) -> tuple[int, Recovery, dict[str, Tensor]]:
    """Halve a model by masks and recover it by least squares and by blocks; return the most bytes that this took beside the model."""
    model = with_lora(tiny_model("llama", layers=layers))
    groups = find_groups(model.get_base_model().config)
    kept = choose(groups, {group.name: group.units // 2 for group in groups}, seed=0).kept
    masks, recovery = Masks(model, groups), Recovery()
    outputs, scales = Outputs(model, groups, ROWS, only_aside=True), weight_scales(model, groups)
    recovery.note("before", outputs.distance(model))
    watched = LiveBytes([*model.parameters(), *model.buffers(), IDS], name=lambda _: "tensors")  # mapped ones too
    with monkeypatch.context() as patch, watched:
        patch.setattr(spool, "IN_MEMORY", in_memory)
        refits, trace = solve_refits(model, groups, kept, ROWS), Trace(model, groups, ROWS)
        masks.set(kept)
        steps = Steps(refits, trace, outputs, 2, 0, [group.name for group in groups], scales, 0, False)
        recover_(model, groups, kept, ROWS, steps, recovery)
    return watched.peak, recovery, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_memory_beside_the_model_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = {
        in_memory: recovered(6, monkeypatch, in_memory=in_memory)[0] / recovered(2, monkeypatch, in_memory=in_memory)[0]
        for in_memory in (0, EVERYTHING)
    }
    assert growth[0] < 1.05
    assert growth[EVERYTHING] > 1.3  # the control: all layers in memory, as it was


def test_gains_and_weights_are_the_same_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, filed, weights), (_, held, others) = (
        recovered(2, monkeypatch, in_memory=in_memory) for in_memory in (0, EVERYTHING)
    )
    assert filed == held
    assert len(filed.refits) == len(filed.blocks) == 4
    assert all(torch.equal(weights[name], tensor) for name, tensor in others.items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for in_memory, full in ((0, False), (EVERYTHING, True), (0, True)):
        monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
        if full:
            monkeypatch.setattr(spool.tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115 - the spool closes it
        if full and not in_memory:
            with pytest.raises(OSError, match="No space left"):
                spool.Spool().add("ids", IDS)
        else:
            kept = spool.Spool()
            kept.add("ids", IDS[:5], of=len(IDS))
            kept.add("ids", IDS[5:])
            assert torch.equal(kept["ids"], IDS)
