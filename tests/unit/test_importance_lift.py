"""lift and first: against a whole singular value decomposition in float64, on every kind of layer and of base."""

import pytest
import torch
from scoring import AXES, CASES, close_axes, same, snapshot, weights
from scoring import score_axes as score_eligible
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft import RowSFTConfig, attach, score
from rowsft.errors import UserError
from rowsft.importance import Context, metric, score_layers
from rowsft.importance.low_rank import factors
from rowsft.measure.memory import AllocationPeak
from rowsft.methods.base import selected
from rowsft.methods.row_sft import RowSFT
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets


def score_axes(model, importance, axes=AXES, seed=0):
    """Scores of every eligible layer, or of all layers of a plain stack."""
    if isinstance(model, nn.Sequential):
        return score_layers(dict(model.named_children()), importance, Context(model, seed=seed), axes)
    return score_eligible(model, importance, axes=axes, seed=seed)


def low_rank(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The best approximation of that rank, put together in full."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]


def reference(model, rank):
    matrices = {name: low_rank(weight, rank) for name, weight in weights(model).items()}
    return {name: {"rows": m.norm(dim=1), "columns": m.norm(dim=0)} for name, m in matrices.items()}


def falling(rows: int, columns: int) -> torch.Tensor:
    """A matrix whose singular values fall by a fifth each, in float64."""
    generator = torch.Generator().manual_seed(1)
    ends = [
        torch.linalg.qr(torch.randn(side, 24, generator=generator, dtype=torch.float64)).Q for side in (rows, columns)
    ]
    return ends[0] @ torch.diag(0.8 ** torch.arange(24, dtype=torch.float64)) @ ends[1].T


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("case", CASES)
def test_lift_is_what_brute_force_gives(case, rank):
    model = CASES[case][0](torch.float64)
    close_axes(score_axes(model, f"lift(rank={rank})"), reference(model, rank))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_the_factors_are_the_best_approximation_in_32_bit_too(shape):
    matrix = falling(*shape)
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        left, right = factors(matrix.to(kind), 6)
        assert (left.shape, right.shape, left.dtype) == ((shape[0], 6), (shape[1], 6), kind)
        torch.testing.assert_close((left @ right.T).double(), low_rank(matrix, 6), rtol=0, atol=tolerance)
        torch.testing.assert_close(left.T @ left, torch.eye(6, dtype=kind), rtol=0, atol=10 * tolerance)
        values = torch.diag(0.8 ** (2 * torch.arange(6, dtype=kind)))
        torch.testing.assert_close(right.T @ right, values, rtol=0, atol=10 * tolerance)


def test_a_rank_beyond_the_layer_is_the_weight_itself():
    model = tiny_gpt2(torch.float64)
    norms = score_axes(model, "l2")
    expected = {name: {axis: score.sqrt() for axis, score in of_layer.items()} for name, of_layer in norms.items()}
    close_axes(score_axes(model, "lift"), expected)


def test_columns_are_the_rows_of_the_transposed_weight():
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    layers = [nn.Linear(20, 12), nn.Linear(12, 20), Conv1D(12, 20)]
    for layer, stored in zip(layers, (matrix, matrix.T, matrix.T), strict=True):
        layer.weight = nn.Parameter(stored.contiguous())
    linear, transposed, conv = (score_axes(nn.Sequential(layer), "lift(rank=2)")["0"] for layer in layers)
    for axis, other in (("rows", "columns"), ("columns", "rows")):
        torch.testing.assert_close(linear[axis], transposed[other])
        torch.testing.assert_close(linear[axis], conv[axis])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_base_scores_as_its_weights_in_32_bit(dtype):
    model = tiny_llama(dtype)
    close_axes(score_axes(model, "lift(rank=4)"), score_axes(tiny_llama(dtype).float(), "lift(rank=4)"), rtol=0)


def test_no_seed_changes_it():
    first, other = (score_axes(tiny_llama(), "lift(rank=2)", seed=seed) for seed in (3, 4))
    close_axes(first, other, rtol=0)


def test_one_axis_gives_what_both_do():
    both = score_axes(tiny_bert(), "lift(rank=3)")
    for axis in ("rows", "columns"):
        alone = score_axes(tiny_bert(), "lift(rank=3)", axes=(axis,))
        assert all(of_layer.keys() == {axis} for of_layer in alone.values())
        assert all(torch.equal(alone[name][axis], both[name][axis]) for name in both)


@pytest.mark.parametrize("name", ["lift(rank=3)", "lowest(lift)", "first"])
@pytest.mark.parametrize("case", CASES)
def test_scoring_leaves_everything_bit_identical(case, name):
    model = CASES[case][0]().train()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        parameter.grad = torch.full_like(parameter, float(index)) if index % 2 else None
    before = snapshot(model)
    score_axes(model, name)
    assert same(before, snapshot(model))


def test_scoring_needs_no_batches_and_no_gradients():
    for name in ("lift", "first", "lowest(lift(rank=2))"):
        assert not metric(name).needs_data
    with torch.inference_mode():
        inside = score_axes(tiny_llama(), "lift(rank=2)")
    close_axes(inside, score_axes(tiny_llama(), "lift(rank=2)"), rtol=0)


def test_a_weight_that_layers_share_is_decomposed_once():
    model = tiny_llama()
    block = model.model.layers[0].mlp
    block.up_proj.weight = block.gate_proj.weight
    scores = score_axes(model, "lift(rank=2)")
    names = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    assert torch.equal(*(scores[name]["rows"] for name in names))


def chosen_rows(layer: nn.Linear, importance: str, rows: int) -> list[int]:
    tuned = attach(nn.Sequential(layer), RowSFTConfig(rows=rows, importance=importance, target_modules=["0"]))
    return tuned.base_model.model[0].row_sft_ids["default"].tolist()


def test_the_rows_with_the_largest_scores_are_chosen_and_ties_go_to_the_lower_index():
    sizes = torch.tensor([1.0, 3, 2, 0, 5, 0, 4, 0.5])

    def layer():
        made = nn.Linear(6, 8)
        made.weight = nn.Parameter(sizes.unsqueeze(1).expand(8, 6).clone())
        return made

    assert chosen_rows(layer(), "lift(rank=1)", 3) == [1, 4, 6]
    assert chosen_rows(layer(), "lowest(lift(rank=1))", 3) == [3, 5, 7]
    empty = layer()
    nn.init.zeros_(empty.weight)
    assert chosen_rows(empty, "lift", 3) == [0, 1, 2]
    assert chosen_rows(layer(), "first", 3) == [0, 1, 2]
    assert chosen_rows(layer(), "lowest(first)", 3) == [5, 6, 7]


def test_first_counts_down_along_both_axes():
    for of_layer in score_axes(tiny_bert(), "first").values():
        for scores in of_layer.values():
            assert scores.tolist() == list(range(len(scores), 0, -1))


def test_coupled_neurons_are_ranked_by_the_lift_of_their_members():
    """A hidden unit scores the mean of its rows in gate and up and its column in down, each over its layer's mean."""
    model = tiny_llama(torch.float64)
    method = RowSFT(rows=5, channel="neurons", attention="skip", importance="lift(rank=3)")
    resolved = selected(method, model, method.solve(Budget(), model, Targets()))
    expected = reference(model, 3)
    for block in range(2):
        names = [f"model.layers.{block}.mlp.{part}_proj" for part in ("gate", "up", "down")]
        parts = [expected[name]["columns" if "down" in name else "rows"] for name in names]
        units = sum(part / part.mean() for part in parts).topk(5).indices.sort().values
        for name in names:
            ids = resolved.chosen[name].columns if "down" in name else resolved.chosen[name].rows
            assert torch.equal(ids, units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_holds_squares_of_the_smaller_side(dtype):
    """And a block of the weight, a quarter of this one in 32 bit: no copy of it."""
    model = nn.Sequential(nn.Linear(8192, 512, bias=False, dtype=dtype), nn.Linear(512, 8192, bias=False, dtype=dtype))
    score(model, "lift(rank=8)")
    with AllocationPeak("cpu") as peak:
        score(model, "lift(rank=8)")
    assert 0 < peak.new_peak_bytes < 8192 * 512 * 4 / 2


def test_a_wrong_rank_and_a_weight_that_is_not_finite_are_named():
    for rank in (0, -1):
        with pytest.raises(UserError, match=f"importance=lift: rank={rank}: expected a whole number above 0"):
            score(tiny_llama(), f"lift(rank={rank})")
    with pytest.raises(UserError, match="labelwise.*lift reads no calibration samples"):
        score(tiny_bert(), "labelwise(lift, max)")
    model, name = tiny_llama(), "model.layers.1.mlp.up_proj"
    for value in (torch.inf, torch.nan):
        with torch.no_grad():
            model.get_submodule(name).weight[3, 4] = value
        with pytest.raises(UserError, match=rf"importance=lift of layer {name} is not finite in 64 of 64 rows; check"):
            score(model, "lift")
