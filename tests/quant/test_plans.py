"""A quantised base is planned to the byte: codes, scales, and what a product unpacks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plan_accuracy import compare, planned_bytes
from planning import small_case

CELLS = [
    {"method": "row_sft", "quantize": "nf4"},
    {"method": "row_sft columns", "quantize": "nf4"},
    {"method": "row_sft neurons", "quantize": "nf4", "family": "bert", "padded": True},
    {"method": "dora", "quantize": "nf4"},
    {"method": "row_sft", "quantize": "nf4_double"},
    {"method": "row_sft", "quantize": "int8"},
    {"method": "lora", "quantize": "int8"},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", CELLS, ids=lambda changes: " ".join(map(str, changes.values())))
def test_planned_bytes_are_the_measured_ones(changes):
    found = compare(small_case(**{"attention": "eager", "padded": False, "width": 64, **changes}))
    assert found["planned_bytes"] == found["measured_bytes"]


@pytest.mark.filterwarnings("ignore")
def test_checkpointing_is_planned_closely():
    case = small_case(attention="eager", padded=False, width=64, method="lora", quantize="nf4", checkpointing=True)
    assert abs(compare(case)["relative_error"]) < 1e-3


def test_bits_of_a_weight():
    """Of a wide model nearly all is in the packed layers: 4.5 and 4.13 bits an entry beside 32."""
    sizes = {"method": "row_sft", "layers": 4, "width": 512, "batch": 1, "length": 8}
    entries = 4 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 3 * 512 * 512)
    plain = planned_bytes(small_case(**sizes))
    for kind, bits in (("nf4", 4.5), ("nf4_double", 4.127)):
        saved = plain - planned_bytes(small_case(**sizes, quantize=kind))
        # Less the one weight that is unpacked at the peak.
        assert saved == pytest.approx(entries * (32 - bits) / 8, rel=0.1)


def test_int8_saves_no_memory_of_a_step_without_checkpointing():
    """torchao's product keeps the unpacked weight for its backward, so that of every layer is there at the peak."""
    sizes = {"method": "row_sft", "layers": 4, "width": 512, "batch": 1, "length": 8}
    plain = planned_bytes(small_case(**sizes))
    assert planned_bytes(small_case(**sizes, quantize="int8")) > plain
    checkpointed = {**sizes, "checkpointing": True}
    assert planned_bytes(small_case(**checkpointed, quantize="int8")) < 0.6 * plain
