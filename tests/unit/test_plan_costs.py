"""Operations and bytes moved, against torch's own counts and closed forms."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plan_accuracy import attached, batch_of
from planning import SMALL, planned, small_case

from rowsft.plan.cost import Costs
from rowsft.plan.step import plan_step


@pytest.mark.parametrize(("family", "method"), [("llama", "row_sft"), ("mixtral", "row_sft"), ("mixtral", "full")])
def test_flops_are_those_that_torch_counts(family, method):
    case = small_case(family=family, method=method, attention="eager", padded=False)
    model, batch = attached(case), batch_of(case)
    if family == "mixtral":
        # One expert after the other by plain products: torch does not count those of a group.
        model.config._experts_implementation = "eager"
    with FlopCounterMode(display=False) as counted:
        model(**batch).loss.backward()
    with torch.device("meta"):
        blank = attached(case)
    step = plan_step(blank, {name: tensor.to("meta") for name, tensor in batch.items()}, False, False)
    assert step.costs.flops == counted.get_total_flops()


def test_of_an_indexed_tensor_only_the_entries_taken_or_put_are_moved():
    weight, ids, wide = torch.zeros(100, 8), torch.tensor([3, 5]), torch.zeros(100, 2)
    rows, row_bytes, id_bytes = weight[:2].clone(), 2 * 8 * 4, 2 * 8
    for work, expected in (
        (lambda: weight.index_select(0, ids), 2 * row_bytes + id_bytes),
        (lambda: torch.index_select(weight, 0, ids, out=rows), 2 * row_bytes + id_bytes),
        (lambda: weight[ids], 2 * row_bytes + id_bytes),
        (lambda: torch.nn.functional.embedding(ids, weight), 2 * row_bytes + id_bytes),
        (lambda: weight.index_copy_(0, ids, rows), 2 * row_bytes + id_bytes),
        (lambda: weight.__setitem__((slice(None), ids), wide), 2 * wide.nbytes + id_bytes),
        (lambda: torch.empty_like(weight), 0),
        (lambda: weight.add_(1), weight.nbytes),
    ):
        with Costs() as costs:
            work()
        assert costs.bytes_moved == expected


def test_all_micro_batches_cost_alike():
    """The last one is run; measured against a run with three in tests/recipe."""
    one, two, five = (planned(*SMALL, "method=lora", f"trainer.gradient_accumulation={n}") for n in (1, 2, 5))
    assert (two.step.costs.flops, five.step.costs.flops) == (2 * one.step.costs.flops, 5 * one.step.costs.flops)
    assert five.peak_bytes == two.peak_bytes >= one.peak_bytes
