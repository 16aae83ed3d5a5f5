"""benchmarks/calibration.py: what it measures on a tiny model, counted here again, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
from tiny_workshop import build_workshop

from rowsft.selection.ids import overlap

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import calibration  # noqa: E402


def test_the_shares_are_those_of_the_choices(tmp_path, monkeypatch, capsys):
    workshop = build_workshop(tmp_path)
    whole = calibration.compose

    def compose(given):
        rest = [text for text in given if not text.startswith(("model=", "task="))]
        return whole([*workshop.overrides("bert"), "trainer.batch_size=2", *rest])

    monkeypatch.setattr(calibration, "compose", compose)
    given = ["--runs", "tiny:texts", "--metrics", "taylor", "--budgets", "2", "--most", "4", "--seeds", "2"]
    assert calibration.main([*given, "--out", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "calibration.json").read_text())["rows"]
    for index, seed in enumerate((1, 2)):
        chosen = calibration.choices("tiny", "texts", "taylor", [2], seed, 4)["chosen"][2]
        assert row["double"]["1"][index] == overlap(chosen[1], chosen[2])
        assert row["all"]["1"][index] == overlap(chosen[1], chosen[4])
        assert row["double"]["2"][index] == row["all"]["2"][index] == overlap(chosen[2], chosen[4])
    assert set(row["seconds"]) == {"1", "2", "4"}
    assert row["double_median_at_1"] == sum(row["double"]["1"]) / 2
    assert "| tiny | texts | taylor | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"), [(["--metrics", "l2"], "l2: read no data"), (["--most", "6"], "expected a power of two")]
)
def test_what_cannot_be_measured_is_refused(given, said, capsys):
    with pytest.raises(SystemExit):
        calibration.main(given)
    assert said in capsys.readouterr().err
