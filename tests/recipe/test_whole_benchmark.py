"""`benchmarks/step.py` from end to end: real processes, interleaved turns, and a method that fails in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("alone", [False, True], ids=["side by side", "alone"])
def test_two_methods_side_by_side(tmp_path, alone):
    options = ["--shape", "tiny_bert", "--methods", "floor", "rows", "--rounds", "2", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "step.py"), *options, "--out", str(tmp_path), *["--alone"] * alone],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "step.json").read_text())
    floor, rows = result["rows"]
    assert (floor["method"], rows["method"], rows["shape"]) == ("floor", "rows", "tiny_bert")
    assert floor["trainable_parameters"] == 0 < rows["trainable_parameters"]
    assert floor["timed_steps"] == rows["timed_steps"] == 4
    assert rows["step_seconds_min"] <= rows["step_seconds_median"] <= rows["step_seconds_p95"]
    spread = rows["step_seconds_over_floor"]
    assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert rows["flops_over_floor"] == rows["flops"] / floor["flops"]
    assert result["command"].startswith("python benchmarks/step.py --shape tiny_bert")
    assert result["environment"]["packages"]["peft"]
    assert "| rows |" in (tmp_path / "step.md").read_text()
    assert (tmp_path / "step.png").stat().st_size > 0


def test_a_method_that_fails_has_a_row_and_the_others_go_on(tmp_path):
    options = ["--shape", "tiny_llama", "--methods", "floor", "--device", "nowhere", "--rounds", "1", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "step.py"), *options, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert row["method"] == "floor" and row["error"].startswith("RuntimeError")
    assert "| floor | failed: RuntimeError" in (tmp_path / "step.md").read_text()
