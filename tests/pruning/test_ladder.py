"""The search comes close to the limit in few tries, whatever the curve of losses, and always ends with a cut that holds or none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.pruning.ladder import FACTOR, ladder, next_rung
from loraprune.pruning.target import find_target
from tests.samples import tiny_llama

RUNGS = [step / 100 for step in range(1, 95)]
CURVES: dict[str, Callable[[float], float]] = {
    "as guessed": lambda ratio: 1.5 * ratio**1.5,
    "gentle": lambda ratio: 0.3 * ratio**1.2,
    "steep": lambda ratio: 5 * ratio**1.3,
    "late": lambda ratio: 0.001 + 2 * ratio**3,
    "broken line": lambda ratio: 0.1 * ratio if ratio < 0.3 else 0.03 + 3 * (ratio - 0.3),
}


def search(
    loss: Callable[[float], float], limit: float, *, tries: int, rungs: list[float] = RUNGS
) -> dict[float, float]:
    """Return ratio -> loss of all tries, in order."""
    found: dict[float, float] = {}
    while (ratio := next_rung(rungs, found, limit, left=tries - len(found))) is not None:
        assert ratio in rungs
        assert ratio not in found
        found[ratio] = loss(ratio)
    return found


@pytest.mark.parametrize("limit", [0.02, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("name", CURVES)
def test_five_tries_come_within_three_hundredths(name: str, limit: float) -> None:
    loss = CURVES[name]
    found = search(loss, limit, tries=5)
    best = max(ratio for ratio, lost in found.items() if lost <= limit)
    possible = max(ratio for ratio in RUNGS if loss(ratio) <= limit)
    assert len(found) <= 5
    assert possible - best <= 0.03 + 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_enough_tries_find_the_largest_cut_that_holds(name: str) -> None:
    found = search(CURVES[name], 0.05, tries=94)
    best = max(ratio for ratio, lost in found.items() if lost <= 0.05)
    assert best == max(ratio for ratio in RUNGS if CURVES[name](ratio) <= 0.05)
    assert len(found) <= 12


@pytest.mark.parametrize("tries", [1, 2, 5, 40])
def test_where_nothing_holds_the_smallest_cut_is_among_the_tries(tries: int) -> None:
    found = search(lambda ratio: 1 + ratio, 0.05, tries=tries)
    assert min(found) == RUNGS[0]
    assert len(found) <= tries


def test_where_everything_holds_the_largest_cut_is_found_and_small_losses_are_not_believed() -> None:
    found = search(lambda ratio: 1e-6 * ratio, 0.05, tries=9)
    assert max(found) == RUNGS[-1]
    assert all(later <= FACTOR * earlier for earlier, later in zip(found, list(found)[1:], strict=False))


def test_gains_and_losses_that_jump_about_do_not_end_the_search_early() -> None:
    noise = {ratio: 0.03 * math.sin(40 * ratio) for ratio in RUNGS}
    found = search(lambda ratio: max(0.0, 1.5 * ratio**1.5 + noise[ratio] - 0.02), 0.05, tries=6)
    assert any(lost <= 0.05 for lost in found.values())


def test_two_rungs_are_enough_and_none_is_the_end() -> None:
    assert search(lambda ratio: ratio, 0.5, tries=5, rungs=[0.4, 0.6]) == {0.4: 0.4, 0.6: 0.6}
    assert next_rung([0.4], {0.4: 1.0}, 0.5, left=4) is None


def test_the_rungs_are_different_shapes_and_none_is_the_dense_one() -> None:
    config = LoRAPruneConfig(allocation="uniform")
    target = find_target(tiny_llama(), config)
    rungs = ladder(target.space, config)
    shapes = [
        tuple(find_target(tiny_llama(), LoRAPruneConfig(allocation="uniform", ratio=ratio)).counts.values())
        for ratio in rungs
    ]
    dense = tuple(group.units for group in target.groups)
    assert 3 < len(rungs) < 60
    assert len({*shapes, dense}) == len(rungs) + 1
    fine = ladder(find_target(tiny_llama(), LoRAPruneConfig(allocation="uniform", round=1)).space, config)
    assert len(fine) > len(rungs)  # the control: finer shapes are more rungs


def test_a_wide_model_has_rungs_closer_than_a_hundredth() -> None:
    config = LoRAPruneConfig(allocation="uniform")
    wide = find_target(tiny_llama(intermediate_size=4096), config)
    small = [ratio for ratio in ladder(wide.space, config) if 0.01 <= ratio <= 0.02]
    assert len(small) > 4
    narrow = find_target(tiny_llama(), config)
    assert (
        len([ratio for ratio in ladder(narrow.space, config) if 0.01 <= ratio <= 0.02]) < 2
    )  # the control: a shape is one rung
