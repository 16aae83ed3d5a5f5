"""Two runs held against each other: the spread of their steps, their wait for data, and their energy."""

import pytest
from compare_factory import amend, cells, compared, limited, lora_and_rows, number, shown, two_attempts

from rowsft.report.compare import compare
from rowsft.report.compare.units import amounts, change
from rowsft.store import Store

ENERGY = {"kind": "nvml_whole_gpu", "select_joules": 12.5, "train_joules": 3000.0, "evaluate_joules": 0.25}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lora_and_rows(tmp_path_factory.mktemp("compare") / "runs")


def metered(tmp_path, a, b):
    """The folders of two runs with such an energy."""
    folders = two_attempts(tmp_path, **({"energy": b} if b else {}))
    if a:
        amend(Store(tmp_path / "before"), folders[0].name, energy=a)
    return folders


def test_the_spread_of_steps_and_the_wait_for_data(pair):
    comparison = compared(pair)
    names = [number.name for number in comparison.numbers]
    first = names.index("step_seconds.p25")
    assert names[first : first + 7] == [
        "step_seconds.p25",
        "step_seconds.median",
        "step_seconds.p75",
        "step_seconds.p95",
        "data_seconds.median",
        "data_seconds.total",
        "tokens_per_second",
    ]
    # Single steps, and how many were timed, are no results.
    assert not [name for name in names if name.endswith((".min", ".max", ".mean", "_steps"))]
    quartile = number(comparison, "step_seconds.p75")
    assert (quartile.a, quartile.b) == pytest.approx((0.77, 0.671))
    text = shown(comparison)
    assert cells(text, "step_seconds.p25")[:4] == ["630.0", "ms", "549.0", "ms"]
    assert cells(text, "data_seconds.median") == ["2.0", "ms", "2.0", "ms", "0", "0", "%"]
    assert cells(text, "data_seconds.total")[:4] == ["250.0", "ms", "250.0", "ms"]
    outcomes = compared(pair, "step_seconds.p75=+0", "p95=-1%", "data_seconds_total=0").verdicts
    assert [(verdict.name, verdict.outcome) for verdict in outcomes] == [
        ("step_seconds.p75", "within"),
        ("step_seconds.p95", "over"),
        ("data_seconds.total", "within"),
    ]


def test_energy_by_phase(tmp_path):
    folders = metered(tmp_path, ENERGY, ENERGY | {"train_joules": 2700.0})
    comparison = compare(*map(str, folders))
    train = number(comparison, "energy.train_joules")
    assert (train.a, train.b, train.difference, train.change_percent) == (3000.0, 2700.0, -300.0, -10.0)
    assert comparison.environment == {}
    text = shown(comparison)
    assert cells(text, "energy.train_joules") == ["3.00", "kJ", "2.70", "kJ", "-300.00", "J", "-10.00", "%"]
    assert cells(text, "energy.select_joules")[:4] == ["12.50", "J", "12.50", "J"]
    assert cells(text, "energy.evaluate_joules")[:4] == ["250.0", "mJ", "250.0", "mJ"]
    assert limited(folders, "train_joules=-10%") == "within" and limited(folders, "train.joules=-299") == "over"


def test_energy_that_was_not_counted_is_absent_and_never_zero(pair, tmp_path):
    folders = metered(tmp_path, None, {"kind": "nvml_whole_gpu", "train_joules": 5.0})
    comparison = compare(*map(str, folders), limits=["*_joules=+10%"])
    assert [(verdict.name, verdict.reason) for verdict in comparison.verdicts] == [
        ("energy.train_joules", "not measured in A")
    ]
    assert comparison.environment == {"energy.kind": {"b": "nvml_whole_gpu"}}
    text = shown(comparison)
    assert cells(text, "energy.train_joules") == ["–", "5.00", "J", "–", "–"] and "select_joules" not in text
    assert "joules" not in shown(compared(pair))
    (verdict,) = compared(pair, "energy.train_joules=+10%").verdicts
    assert verdict.reason == "not measured in A and B"


def test_records_from_before_there_were_quartiles(tmp_path):
    old = {"step_seconds": {"median": 0.7, "p95": 0.8}, "data_seconds": None}
    folders = two_attempts(tmp_path, **old)
    text = shown(compare(*map(str, folders)))
    assert cells(text, "step_seconds.p25") == ["630.0", "ms", "–", "–", "–"]
    assert cells(text, "data_seconds.total") == ["250.0", "ms", "–", "–", "–"]
    amend(Store(tmp_path / "before"), folders[0].name, **old)
    text = shown(compare(*map(str, folders)))
    assert cells(text, "step_seconds.p95")[:2] == ["800.0", "ms"]
    assert "p25" not in text and "data_seconds" not in text
    assert limited(folders, "step_seconds.p25=+1%") == "missing"


@pytest.mark.parametrize(
    "value, expected", [(-1234.5, "-1.23 kJ"), (999.0, "+999.00 J"), (0.5, "+500.0 mJ"), (0, "0"), (None, "–")]
)
def test_joules_are_for_readers(value, expected):
    assert change("energy.train_joules", value) == expected
    assert amounts("energy.train_joules", (2000.0, 1.0)) == ["2.00 kJ", "0.00 kJ"]
