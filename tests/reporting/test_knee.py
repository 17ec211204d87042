"""The knee of curves whose knee is known, and of curves that have none."""

from __future__ import annotations

import pytest

from loraprune.reporting.knee import Point, advise, find_knee

SIZES = (0.9, 0.8, 0.7, 0.6)


def points(losses: tuple[float, ...], *, usable: int = 4) -> list[Point]:
    """Return points of SIZES, of which the first ones are usable."""
    return [
        Point(f"{100 * size:g}%", 1000 * size, loss, usable=place < usable)
        for place, (size, loss) in enumerate(zip(SIZES, losses, strict=False))
    ]


def test_the_knee_is_where_the_loss_begins_to_rise() -> None:
    assert find_knee([(10, 0.0), (9, 0.0), (8, 0.0), (7, 0.5), (6, 1.0)]) == 2
    assert find_knee([(10, 0.0), (9, 0.1), (6, 1.0)]) == 1


@pytest.mark.parametrize(
    "losses",
    [
        (0.0, 0.1, 0.2, 0.3),  # a straight line
        (0.0, 0.2, 0.25, 0.3),  # the first cut costs most
        (0.3, 0.2, 0.1, 0.0),  # smaller models are better
        (0.1, 0.5, 0.0, 0.1),  # the last loses nothing
        (0.0, 0.09, 0.19, 0.3),  # bent by less than what counts
    ],
)
def test_a_curve_without_a_knee_has_none_and_the_smallest_usable_size_is_named(losses: tuple[float, ...]) -> None:
    advice = advise(points(losses, usable=3), start=None, unit="nats a token")
    assert advice.knee is None
    assert advice.recommended == "70%"
    assert advice.reason.startswith("no knee was found; 70% is the smallest size with the verdict usable")
    sharp = advise(points((0.0, 0.0, 0.0, 0.3)), start=None, unit="nats a token")
    assert sharp.knee == sharp.recommended == "70%"  # the control


def test_the_reason_has_the_price_of_a_parameter_on_both_sides() -> None:
    advice = advise(points((0.1, 0.2, 0.3, 3.3)), start=(1000, 0.0), unit="nats a token")
    assert advice.knee == "70%"
    assert "every further 1 % of the parameters costs 0.3 nats a token, and 0.01 up to it" in advice.reason


def test_only_a_usable_size_is_recommended() -> None:
    losses = (0.0, 0.05, 0.1, 3.0)
    assert advise(points(losses, usable=3), start=None, unit="x").recommended == "70%"
    below = advise(points(losses, usable=2), start=None, unit="x")
    assert (below.knee, below.recommended) == ("70%", "80%")
    assert "80% is the smallest size with the verdict usable; smaller ones are not usable" in below.reason
    nothing = advise(points(losses, usable=0), start=None, unit="x")
    assert (nothing.knee, nothing.recommended) == ("70%", None)
    assert nothing.reason.endswith("no size has the verdict usable, so none is recommended")


def test_the_dense_model_makes_a_knee_of_the_largest_size_possible() -> None:
    losses = (0.0, 0.1, 0.2, 0.3)
    assert advise(points(losses), start=(1000, 0.0), unit="x").knee == "90%"
    assert advise(points(losses), start=None, unit="x").knee is None


def test_the_order_of_the_points_does_not_matter() -> None:
    given = points((0.0, 0.0, 0.0, 0.3))
    assert advise(given[::-1], start=None, unit="x") == advise(given, start=None, unit="x")
