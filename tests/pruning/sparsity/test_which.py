"""Which weights become zero, and when."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraprune.pruning.schedule import Schedule
from loraprune.pruning.sparsity.scores import GONE, candidates, lowest
from loraprune.pruning.sparsity.sparsifier import Sparsifier
from loraprune.training.callback import LoRAPruneCallback
from tests import fitting
from tests.pruning.sparsity.cases import learn, saliencies, sparsifier


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "unstructured"])
def test_a_dropped_weight_scores_below_every_kept_one_of_its_block(pattern: str) -> None:
    result = sparsifier(sparsity=pattern)
    result.score()
    for progress in (0.3, 0.7, 1.0):
        before = {path: values.clone().float() for path, values in result.scores.values.items()}
        result.remove(progress)
        for path, values in before.items():
            block = values.shape[1] if pattern == "unstructured" else int(pattern[-1])
            high = values.masked_fill(result.kept[path], -torch.inf)
            low = values.masked_fill(~result.kept[path], torch.inf)
            if pattern == "unstructured":
                assert high.max() <= low.min()
            elif progress == 1:
                assert (high.unflatten(1, (-1, block)).amax(-1) <= low.unflatten(1, (-1, block)).amin(-1)).all()
            may_go = candidates(before[path].bfloat16(), result.pattern)
            assert high.max() <= low[may_go].min()  # of all that may go, the lowest went
        learn(result, seed=int(10 * progress))
        result.score()


def test_the_running_average_decides_and_not_the_last_step() -> None:
    path = "model.layers.0.mlp.gate_proj"
    result, forgetful = sparsifier(decay=0.9), sparsifier(decay=0.0)
    seen = []
    for seed in range(4):
        for each in (result, forgetful):
            learn(each, seed=seed)
            each.score()
        seen.append(saliencies(result, path))
    expected = sum(0.1 * 0.9 ** (3 - step) * saliency for step, saliency in enumerate(seen))
    torch.testing.assert_close(result.scores.values[path].float(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(forgetful.scores.values[path].float(), seen[-1], rtol=0.005, atol=0)
    for each in (result, forgetful):
        each.remove(1.0)
    assert not torch.equal(result.kept[path], forgetful.kept[path])


def test_a_slow_average_is_not_rounded_away() -> None:
    path = "model.layers.0.mlp.gate_proj"
    result = sparsifier(decay=0.999)
    for _ in range(30):
        result.score()
    expected = (1 - 0.999**30) * saliencies(result, path)
    torch.testing.assert_close(result.scores.values[path], expected, rtol=1e-4, atol=0)


def test_random_zeros_are_spread_evenly_over_rows_and_columns() -> None:
    result = sparsifier(criterion="random", sparsity="unstructured")
    result.score()
    result.remove(1.0)
    kept = result.kept["model.layers.0.mlp.gate_proj"].float()
    assert kept.mean() == 0.5
    for dim in (0, 1):  # of 96 or 64 independent weights a standard deviation of 0.05 or 0.06 is expected
        assert kept.mean(dim).std() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [0, 1, 37, 96])
def test_the_lowest_are_those_of_a_stable_sort(dtype: torch.dtype, count: int) -> None:
    values = torch.randint(0, 12, (8, 12), generator=torch.Generator().manual_seed(count)).to(dtype) / 7  # many ties
    values[2, 3:6] = GONE
    chosen = lowest(values, torch.ones_like(values, dtype=torch.bool), count)
    order = values.flatten().argsort(descending=True, stable=True)
    expected = torch.zeros(96, dtype=torch.bool)
    expected[order[96 - count :]] = True
    assert torch.equal(chosen.flatten(), expected)


@pytest.mark.parametrize(("sparsity", "ratio"), [("2:4", 0.5), ("unstructured", 0.7)])
def test_the_ratio_follows_the_schedule(sparsity: str, ratio: float, tmp_path: Path) -> None:
    settings = fitting.config(sparsity=sparsity, ratio=ratio)
    _, callback, _ = fitting.prune(tmp_path, settings, steps=20)
    schedule = Schedule("cubic", 20, settings.interval, settings.warmup, settings.cooldown)
    events = [step for step in range(1, 21) if schedule.is_event(step)]
    assert [entry["step"] for entry in callback.history] == events
    assert len(events) > 5
    for entry in callback.history:
        assert entry["ratio"] == pytest.approx(ratio * schedule.progress(int(entry["step"])), abs=1e-3)
    assert callback.pruner is not None
    assert callback.pruner.is_done


def test_masked_weights_stay_masked_while_training_goes_on(tmp_path: Path) -> None:
    settings = fitting.config(
        sparsity="unstructured", ratio=0.6, decay=0.0
    )  # a step's scores alone would bring them back
    seen: list[dict[str, Tensor]] = []

    class Watch(LoRAPruneCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            super().on_step_end(*arguments, **options)
            assert isinstance(self.pruner, Sparsifier)
            seen.append({path: kept.clone() for path, kept in self.pruner.kept.items()})

    fitting.fit(fitting.adapted(settings), fitting.arguments(tmp_path, steps=12), [Watch(settings)])
    assert len(seen) == 12
    assert sum(int(kept.sum()) for kept in seen[-1].values()) < sum(int(kept.sum()) for kept in seen[0].values())
    for earlier, later in pairwise(seen):
        assert all((later[path] <= earlier[path]).all() for path in earlier)
