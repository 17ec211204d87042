"""The fused Eq 10 against its definition in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from loraprune.groups import Side
from loraprune.models.adapters import Projection
from loraprune.models.quantised.forms import NF4_BLOCK, NF4_LEVELS, Nf4Blocks, Weight
from loraprune.scoring import kernels
from loraprune.scoring.criteria import Saliency, criteria
from loraprune.scoring.kernels import MAX_RANK, eq10_fits, tiles
from loraprune.scoring.kernels.factors import Factors
from loraprune.scoring.scorers.saliency import saliency_sums
from tests.scoring.kernels.stored import FORMS, expected, random_factors, stored, to_int8, to_nf4

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPLIT = 5e-5 if DEVICE.type == "cuda" else 3e-4
"""two BF16 pieces keep a factor to 2^-17; the interpreter cuts off where a GPU rounds, and keeps it to 2^-15"""
TOLERANCE = dict.fromkeys(FORMS, SPLIT) | {"float32": 1e-5}

every_form = pytest.mark.parametrize("form", FORMS)


def joined(*each: Factors) -> Factors:
    """Return the factors of several weights together."""
    parts = (torch.cat(tensors) for tensors in zip(*(one.tensors() for one in each), strict=True))
    return Factors(*parts, scaling=each[0].scaling)


def alone(reduce: Callable[..., Any], weight: Weight, factors: Factors, **options: Any) -> list[torch.Tensor | None]:
    """Return the sums of a single weight."""
    return [None if sums is None else sums[0] for sums in reduce([weight], factors, **options)]


eq10_sums, eq10_tiles = partial(alone, kernels.eq10_sums), partial(alone, kernels.eq10_tiles)


def error(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    assert found is not None
    return float(((found.double() - wanted) / wanted).abs().max())


SHAPES = ((37, 53, 3), (130, 200, 20), (7, 66, 1))
"""out, in and rank"""
EVERY_PAIR = [
    (form, (number + place) % 2 + 1, *shape) for number, form in enumerate(FORMS) for place, shape in enumerate(SHAPES)
]
"""every form with every shape and power, and every shape with both powers; the interpreter takes long for all three together"""


@pytest.mark.parametrize(("form", "power", "out", "in_", "rank"), EVERY_PAIR)
def test_sums_are_those_of_the_float64_reference(form: str, power: int, out: int, in_: int, rank: int) -> None:
    in_ += in_ % 2 if form == "nf4" else 0
    weight, exact = stored(form, torch.randn(out, in_, device=DEVICE))
    factors = random_factors(out, in_, rank, DEVICE)
    found = eq10_sums(weight, factors, power=power)
    for sums, wanted in zip(found, expected(exact, factors, power=power), strict=True):
        assert error(sums, wanted) < TOLERANCE[form]
    # The other power, or one code of the weight for another, is seen.
    for sums, wanted in zip(found, expected(exact, factors, power=3 - power), strict=True):
        assert error(sums, wanted) > 0.01
    for sums, wanted in zip(found, expected(exact.flip(0), factors, power=power), strict=True):
        assert error(sums, wanted) > 0.01


@every_form
@pytest.mark.parametrize("left_out", range(3))
def test_every_term_of_equation_9_is_in_the_sums(form: str, left_out: int) -> None:
    weight, exact = stored(form, torch.randn(40, 70, device=DEVICE))
    factors = random_factors(40, 70, 4, DEVICE)
    signs = (1, 1, -1)
    terms = tuple(0 if place == left_out else sign for place, sign in enumerate(signs))
    for sums, wanted in zip(
        eq10_sums(weight, factors, power=2), expected(exact, factors, power=2, terms=terms), strict=True
    ):
        assert error(sums, wanted) > 0.01


@pytest.mark.parametrize("rank", [16, 17, 33, MAX_RANK])
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_high_ranks_keep_the_precision(form: str, rank: int) -> None:
    weight, exact = stored(form, 10 * torch.randn(70, 66, device=DEVICE))
    factors = random_factors(70, 66, rank, DEVICE)
    for sums, wanted in zip(eq10_sums(weight, factors, power=2), expected(exact, factors, power=2), strict=True):
        assert error(sums, wanted) < SPLIT


@every_form
def test_what_is_not_wanted_is_not_made_and_changes_nothing(form: str) -> None:
    weight, _ = stored(form, torch.randn(70, 66, device=DEVICE))
    factors = random_factors(70, 66, 8, DEVICE)
    both = eq10_sums(weight, factors, power=2)
    rows, nothing = eq10_sums(weight, factors, power=2, columns=False)
    assert nothing is None
    torch.testing.assert_close(rows, both[0], rtol=1e-5, atol=0)
    nothing, columns = eq10_sums(weight, factors, power=2, rows=False)
    assert nothing is None
    torch.testing.assert_close(columns, both[1], rtol=1e-5, atol=0)


@every_form
def test_the_same_input_gives_the_same_bits(form: str) -> None:
    weight, _ = stored(form, torch.randn(70, 66, device=DEVICE))
    factors = random_factors(70, 66, 8, DEVICE)
    first, again = (eq10_sums(weight, factors, power=2) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


def test_many_tiles_for_every_program_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program for each column block goes down all tiles of rows, the last of them ragged."""
    from loraprune.scoring.kernels import eq10

    sizes = eq10.Blocks(bm=16, bn=32, warps=4, stages=2, programs=1)
    monkeypatch.setattr(eq10, "blocks", lambda *_, **__: sizes)
    weight, exact = stored("float32", torch.randn(75, 70, device=DEVICE))
    factors = random_factors(75, 70, 8, DEVICE)
    for sums, wanted in zip(eq10_sums(weight, factors, power=2), expected(exact, factors, power=2), strict=True):
        assert error(sums, wanted) < TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("reduce", "room"),
    [
        pytest.param(kernels.eq10_sums, 0, id="kernel"),  # which has no tiles of that kind
        pytest.param(kernels.eq10_tiles, 1 << 20, id="all"),
        pytest.param(kernels.eq10_tiles, 4 * 66 * 50, id="cut"),
        pytest.param(kernels.eq10_tiles, 4 * 66 * 120, id="twos"),
        pytest.param(kernels.eq10_tiles, 4 * 66 * 300, id="fours"),
    ],
)
@every_form
def test_weights_that_are_alike_are_scored_together(
    form: str, room: int, reduce: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles hold all of them, less than one, two and four."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", room)
    weights, factors = [], [random_factors(60, 66, 4, DEVICE) for _ in range(5)]
    wanted = []
    for each in factors:
        weight, exact = stored(form, torch.randn(60, 66, device=DEVICE))
        weights.append(weight)
        wanted.append(expected(exact, each, power=2))
    for side, sums in enumerate(reduce(weights, joined(*factors), power=2)):
        assert sums.shape == (5, (60, 66)[side])
        for place, mine in enumerate(wanted):
            assert error(sums[place], mine[side]) < TOLERANCE[form]
            assert error(sums[place - 1], mine[side]) > 0.01  # the control: those of another one


def test_a_transposed_weight_is_read_in_place() -> None:
    weight = torch.randn(60, 40, device=DEVICE).T
    factors = random_factors(40, 60, 4, DEVICE)
    for sums, wanted in zip(
        eq10_sums(weight, factors, power=2), expected(weight.double(), factors, power=2), strict=True
    ):
        assert error(sums, wanted) < TOLERANCE["float32"]


def test_factors_of_16_bits_and_tiny_gradients_are_not_lost() -> None:
    weight = torch.randn(40, 64, device=DEVICE)
    factors = random_factors(40, 64, 4, DEVICE)
    tiny = dataclasses.replace(
        factors, a=factors.a.bfloat16(), b=0 * factors.b, grad_b=1e-12 * factors.grad_b, grad_a=0 * factors.grad_a
    )
    for sums, wanted in zip(
        eq10_sums(weight.bfloat16(), tiny, power=1), expected(weight.bfloat16().double(), tiny, power=1), strict=True
    ):
        assert error(sums, wanted) < SPLIT


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("form", ["float64", "float32", "bfloat16"])
def test_tiles_of_torch_give_the_same_sums(form: str, power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 4 * 53 * 10)  # tiles of ten and five rows, the last of them ragged
    weight, exact = stored(form, torch.randn(37, 53))
    factors = random_factors(37, 53, 3, torch.device("cpu"))
    if form == "float64":
        factors = Factors(*(tensor.double() for tensor in factors.tensors()), scaling=2.0)
    wanted = expected(exact, factors, power=power)
    for sums, right in zip(eq10_tiles(weight, factors, power=power), wanted, strict=True):
        assert error(sums, right) < (1e-12 if form == "float64" else 1e-5)
    rows, nothing = eq10_tiles(weight, factors, power=power, columns=False)
    assert nothing is None
    assert error(rows, wanted[0]) < 1e-5
    nothing, columns = eq10_tiles(weight, factors, power=power, rows=False)
    assert nothing is None
    assert error(columns, wanted[1]) < 1e-5


def test_the_kernel_is_not_for_the_cpu() -> None:
    assert not eq10_fits(torch.randn(8, 6), random_factors(8, 6, 2, torch.device("cpu")))


def test_a_machine_that_cannot_build_the_kernel_goes_on_with_tiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernels._runs.__wrapped__(DEVICE)
    monkeypatch.setattr(kernels, "eq10_sums", fail)
    assert not kernels._runs.__wrapped__(DEVICE)
    assert "scoring uses tiles of PyTorch: Failed to find C compiler" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not kernels._runs.__wrapped__(DEVICE)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
def test_what_fits_on_a_gpu() -> None:
    factors = random_factors(8, 6, 2, DEVICE)
    weight = torch.randn(8, 6, device=DEVICE)
    assert eq10_fits(weight, factors)
    assert not eq10_fits(weight.double(), factors)
    assert not eq10_fits(weight.cpu(), factors)
    assert not eq10_fits(weight, random_factors(8, 6, MAX_RANK + 1, DEVICE))
    odd = Nf4Blocks(torch.zeros(20, dtype=torch.uint8, device=DEVICE), torch.ones(1, device=DEVICE), (8, 5))
    assert not eq10_fits(odd, random_factors(8, 5, 2, DEVICE))


def test_the_scorer_takes_the_kernel_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter the check is told that it fits."""
    layer = nn.Linear(50, 40, bias=False, device=DEVICE)
    factors = random_factors(40, 50, 4, DEVICE)
    a, b = nn.Parameter(factors.a[0]), nn.Parameter(factors.b[0])
    a.grad, b.grad = factors.grad_a[0], factors.grad_b[0]
    proj = Projection("layer", layer, a, b, 2.0)
    criterion = criteria.get("lora")
    assert isinstance(criterion, Saliency)

    def sums(criterion: Saliency, wanted: set[Side]) -> dict[Side, torch.Tensor]:
        with torch.no_grad():
            return saliency_sums(criterion, proj, torch.Generator(), power=2, wanted=wanted)

    slow = sums(dataclasses.replace(criterion, fused=None), {"out", "in"})
    monkeypatch.setattr("loraprune.scoring.criteria.lora.eq10_fits", lambda *_: True)
    monkeypatch.setattr("loraprune.scoring.criteria.lora.eq10_tiles", None)
    fast = dataclasses.replace(criterion, function=lambda tile: pytest.fail("the elementwise form was used"))
    for side in ("out", "in"):
        torch.testing.assert_close(sums(fast, {side})[side], slow[side], rtol=1e-5, atol=0)
    assert set(sums(fast, {"in"})) == {"in"}


def test_the_formats_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    dense = torch.randn(32, 128, device=DEVICE)
    packed, state = functional.quantize_4bit(dense, blocksize=NF4_BLOCK, quant_type="nf4")
    assert state.code.tolist() == pytest.approx(NF4_LEVELS, abs=1e-7)
    mine, values = to_nf4(dense)
    torch.testing.assert_close(functional.dequantize_4bit(packed, state).double(), values, rtol=1e-6, atol=1e-6)
    assert torch.equal(packed.flatten(), mine.packed)
    torch.testing.assert_close(state.absmax, mine.absmax)

    codes, absmax, _ = functional.int8_vectorwise_quant(dense.half())
    mine8, _ = to_int8(dense.half().float())
    torch.testing.assert_close(absmax, mine8.absmax)
    assert int((codes.int() - mine8.codes.int()).abs().max()) <= 1  # halves may be rounded to either side
    found = functional.int8_vectorwise_dequant(codes, absmax)
    torch.testing.assert_close(found, codes.float() * absmax[:, None] / 127, rtol=1e-5, atol=0)
