"""An independent tool removes the same units: Torch-Pruning, which finds what hangs together by tracing the model.

Source: Fang et al., DepGraph (arXiv 2301.12900).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from loraprune.families import find_groups
from loraprune.groups import Group, kept_entries
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_
from tests.tiny import EVERY, choose, output, relative, tiny_model, uneven_plan

tp = pytest.importorskip("torch_pruning", reason="the oracle needs the extra `test`: torch-pruning")
SAME = 2e-5


class Logits(nn.Module):
    """A model that maps token ids or pixels to logits alone: what the oracle can trace."""

    def __init__(self, model: Any, variant: str) -> None:
        super().__init__()
        self.model = model
        self.others = dict(EVERY[variant].inputs())
        self.name = next(iter(self.others))
        self.example = self.others.pop(self.name)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(**{self.name: given}, **self.others).logits
        return found


def oracle_slice_(model: Any, groups: tuple[Group, ...], plan: Plan, variant: str) -> None:
    """Remove the dropped units by the oracle: it is told one producing projection, and finds the others by itself."""
    for group in groups:
        for span in (span for span in group.spans if span.side == "out"):
            layer = model.get_submodule(span.module)
            if layer.out_features < group.units * span.width:
                continue  # it went with another one
            kept = kept_entries(layer.out_features, [span], group.units, plan.kept[group.name])
            gone = sorted(set(range(layer.out_features)) - set(kept.tolist()))
            traced = Logits(model, variant)
            graph = tp.DependencyGraph().build_dependency(traced, example_inputs=traced.example)
            graph.get_pruning_group(layer, tp.prune_linear_out_channels, idxs=gone).prune()
        for path, each in group.attributes.items():
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, each * len(plan.kept[group.name]))


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")  # RMS norms, which lose nothing here
@pytest.mark.parametrize("kind", ["ffn", "attention"])
@pytest.mark.parametrize("variant", ["llama-mha", "opt", "gptj", "bert", "vit"])
def test_the_oracle_removes_the_same_entries(variant: str, kind: str) -> None:
    ours = tiny_model(variant)
    ours.set_attn_implementation("eager")
    theirs, other = copy.deepcopy(ours), copy.deepcopy(ours)
    groups = tuple(group for group in find_groups(ours.config) if group.kind == kind)
    plan = uneven_plan(groups)
    slice_(ours, groups, plan.kept)
    oracle_slice_(theirs, groups, plan, variant)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert relative(output(ours, variant), output(theirs, variant)) < SAME
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    slice_(other, groups, choose(groups, counts, seed=7).kept)  # as many units, but others
    assert relative(output(other, variant), output(theirs, variant)) > 1e-2
