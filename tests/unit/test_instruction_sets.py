"""The tests run with one instruction set, and a plan is right with a processor's own, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.whole

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Scratch is that of one layer: several percent of a tiny model, little of eight layers.
COMPARE = """
import json
from plan_accuracy import Case, compare
for family, method in (("llama", "lora"), ("bert", "row_sft"), ("bert", "dora")):
    case = Case(family, method, 8, 256, 4, 64, "float32", "eager", False, family == "bert", autocast=True)
    print(json.dumps(compare(case)))
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
def test_no_kernel_is_beyond_avx2(capfd):
    """conftest.py asks for it; oneDNN says which kernel it runs."""
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.nn.functional.gelu(torch.ones(64))
    (kernel,) = [line for line in capfd.readouterr().out.splitlines() if ",exec,cpu," in line]
    assert "eltwise" in kernel
    assert "avx512" not in kernel


@pytest.mark.parametrize("instruction_set", ["ALL", "AVX512_CORE"])
def test_a_step_with_larger_sets_is_planned_within_a_percent(instruction_set):
    """ALL is whatever this processor has. Without bfloat16 instructions, as with AVX512_CORE, scratch is largest."""
    found = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instruction_set},
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    errors = {(row["family"], row["method"]): row["relative_error"] for row in rows}
    assert len(errors) == 3
    assert max(map(abs, errors.values())) < 0.01, errors
