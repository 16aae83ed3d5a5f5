"""One number of a comparison: its unit, its change, its place among the others."""

import pytest
from compare_factory import MIB

from rowsft.report.compare.limits import judge, parse
from rowsft.report.compare.number import Number, paired_up
from rowsft.report.compare.units import amounts, change, percent
from rowsft.store.files import LARGEST


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("x_bytes", -40, "-40 B"),
        ("x_bytes", 3 * 2**10, "+3.00 KiB"),
        ("x_bytes", 0, "0"),
        ("step_seconds.p95", 2e-5, "+20.0 µs"),
        ("flops", 1_500_000_000, "+1.500 GFLOP"),
        ("flops", 12, "+12 FLOP"),
        ("accuracy", 1e-6, "+1.0e-06"),
        ("accuracy", 0.0, "0"),
        ("parameters.adapter", 1000, "+1,000"),
        ("tokens_per_second", -0.5, "-0.5000"),
        ("accuracy", None, "–"),
    ],
)
def test_a_small_difference_is_never_shown_as_none(name, value, expected):
    assert change(name, value) == expected


def test_two_values_share_the_unit_of_the_larger():
    assert amounts("x_bytes", (2 * MIB, 2**19)) == ["2.00 MiB", "0.50 MiB"]
    assert amounts("metrics.test.accuracy_bytes", (0.0833, 0.375)) == ["0.0833", "0.3750"]
    assert amounts("step_seconds", (0.2, None)) == ["200.0 ms", "–"]
    assert [percent(value) for value in (None, 0.0, 12.345, 1e-4)] == ["–", "0 %", "+12.35 %", "+1.0e-04 %"]


def test_names_of_one_side_keep_their_place():
    merged = paired_up({"a": 1, "c": 1}, {"z": 2, "a": 2, "b": 2, "c": 2}, {})
    assert [(number.name, number.a, number.b) for number in merged] == [
        ("z", None, 2),
        ("a", 1, 2),
        ("b", None, 2),
        ("c", 1, 2),
    ]


def test_a_change_from_zero_has_no_percent():
    assert Number("x", 0, 3).change_percent is None and Number("x", 0, 0).change_percent == 0.0
    assert Number("x", -2.0, -3.0).change_percent == -50.0


@pytest.mark.parametrize(
    "a, b, difference, change_percent",
    [
        (5e-324, LARGEST, LARGEST, None),
        (-LARGEST, LARGEST, 2 * LARGEST, 200.0),
        (-(10**100), 10**100, 2 * 10**100, 200.0),
        (2**53, 2**53 + 1, 1, 100 / 2**53),
    ],
)
def test_a_change_of_the_largest_and_of_a_single_byte(a, b, difference, change_percent):
    moved = Number("x", a, b)
    assert (moved.difference, moved.change_percent) == (difference, change_percent)
    limit = parse("x=+0%")
    assert not limit.allows(a, b) and judge(limit, [moved])[0].outcome == "over"


@pytest.mark.parametrize("name", ["x", "step_seconds", "x_bytes", "flops"])
def test_numbers_that_nobody_counts_stay_short(name):
    for value in (1.7e308, 10**308, -(10**308), 1e20):
        said = [*amounts(name, (value, 5e-324)), change(name, value), percent(float(value))]
        assert all(len(text) < 30 for text in said), said
    assert amounts("flops", (123e12, 7)) == ["123,000.000 GFLOP", "0.000 GFLOP"]
