"""The benchmark's parts: contenders train what they claim and start where the model starts; ratios are ratios."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import generation
import overhead
import selection
import summary
import tables
import writing
from contenders import CONTENDERS, SecondProduct
from shapes import SHAPES, batch, build
from worker import Trial

from rowsft.importance import registry
from rowsft.layers.matrix import layer_shape
from rowsft.selection.targets import Targets, eligible_layers

CPU = torch.device("cpu")
TRAINED = ["rows", "columns", "both", "neurons", "lora", "dora", "shira", "supertuning", "dense_mask", "released"]


@pytest.mark.parametrize("value", [1.23456, {"median": 1.23456, "low": 1.2, "high": 1.3}])
def test_a_ratio_has_as_many_digits_as_its_table_asks_for(value):
    assert tables.ratio(value, ".2f").startswith("1.23") and "1.235" not in tables.ratio(value, ".2f")


def trial(method, shape="tiny_llama", **settings):
    defaults = {"device": "cpu", "dtype": "fp32", "checkpointing": False}
    return Trial({**defaults, "shape": shape, "method": method, **settings})


def plain_loss(shape):
    return build(SHAPES[shape], CPU, torch.float32)(**batch(SHAPES[shape], CPU)).loss


@pytest.mark.parametrize("shape", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize("method", ["floor", *TRAINED, "full"])
def test_every_contender_starts_at_the_plain_model_and_trains_its_budget(method, shape):
    ready = trial(method, shape)
    torch.testing.assert_close(ready.model(**ready.batch).loss, plain_loss(shape), rtol=1e-5, atol=1e-6)
    plain = build(SHAPES[shape], CPU, torch.float32)
    layers = eligible_layers(plain, Targets()).values()
    lora = SHAPES[shape].rank * sum(sum(layer_shape(layer)) for layer in layers)
    expected = {"floor": 0, "full": plain.num_parameters()}.get(method, lora)
    # One more unit of so small a model, or one more row and column, is more than 1 %.
    lowest = 0.98 if method in ("both", "neurons") else 0.99
    assert lowest * expected <= ready.trainable_parameters <= 1.01 * expected
    before = ready.model(**ready.batch).loss.item()
    ready.optimizer = ready.optimizer and torch.optim.AdamW(
        [parameter for parameter in ready.model.parameters() if parameter.requires_grad], lr=1e-2
    )
    for _ in range(3):
        ready.step()
    after = ready.model(**ready.batch).loss.item()
    assert after == before if method == "floor" else after < before


@pytest.mark.parametrize("method", ["vera", "ia3", "bitfit", "ln_tuning"])
def test_a_contender_of_a_size_of_its_own_starts_at_the_plain_model_and_learns(method):
    ready = trial(method, "tiny_bert")
    before = ready.model(**ready.batch).loss
    torch.testing.assert_close(before, plain_loss("tiny_bert"), rtol=1e-5, atol=1e-6)
    for _ in range(3):
        ready.step()
    assert ready.model(**ready.batch).loss.item() < before.item()


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("lora_plus", "AdamW"),
        ("lora_fa", "LoraFAOptimizer"),
        ("adalora", "AdamW"),
        ("lisa", "AdamW"),
        ("galore", "GaLoreAdamW"),
    ],
)
def test_a_method_with_steps_of_its_own_is_stepped_as_it_says(method, optimizer):
    ready = trial(method)
    assert type(ready.optimizer).__name__ == optimizer
    assert ready.measured()["total_peak_bytes"] > 0
    before = ready.model(**ready.batch).loss.item()
    for _ in range(9):
        ready.step()
    assert ready.model(**ready.batch).loss.item() < before


def test_bytes_and_flops_repeat_and_stand_in_the_known_order():
    measured = {method: trial(method).measured() for method in ("floor", "rows", "released", "lora", "full")}
    assert trial("rows").measured() == measured["rows"]
    assert all(m["total_peak_bytes"] > m["step_peak_bytes"] > 0 for m in measured.values())
    flops = {method: m["flops"] for method, m in measured.items()}
    tokens = SHAPES["tiny_llama"].batch * SHAPES["tiny_llama"].length
    # The second product costs what a product of its rows costs forward and, for the input's gradient, backward: at most
    # twice 2 * tokens * parameters, less where no gradient of the first block's input is asked for.
    extra = flops["released"] - flops["rows"]
    parameters = measured["rows"]["trainable_parameters"]
    assert 2 * tokens * parameters < extra <= 4 * tokens * parameters
    assert flops["rows"] < flops["lora"] < flops["full"]


def test_the_second_product_has_the_rows_of_the_full_gradient():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, dtype=torch.float64)
    dense = copy.deepcopy(base)
    ids = torch.tensor([1, 4])
    layer = SecondProduct(base.requires_grad_(False), ids).double()
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x))
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.delta.grad, dense.weight.grad[ids])


def test_the_mask_lets_its_own_entries_move_only():
    ready = trial("dense_mask")
    before = {name: layer.weight.clone() for name, layer in eligible_layers(ready.model, Targets()).items()}
    for _ in range(2):
        ready.step()
    for name, layer in eligible_layers(ready.model, Targets()).items():
        moved = layer.weight != before[name]
        assert moved.any() and not (moved & ~layer.chosen).any(), name


@pytest.mark.parametrize("method", ["rows", "lora", "dora", "released"])
def test_sixteen_bit_bases_and_checkpointing(method):
    ready = trial(method, dtype="bf16", checkpointing=True)
    assert ready.measured()["flops"] > trial(method, dtype="bf16").measured()["flops"], "forward is computed twice"


def test_rows_hold_ratios_by_round_and_errors():
    exact = {"trainable_parameters": 1, "flops": 10, "step_peak_bytes": 100, "total_peak_bytes": 1000}
    measured = {"floor": exact, "lora": {**exact, "flops": 15}}
    rounds = {"floor": [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]], "lora": [[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]], "in": []}
    floor, lora, failed = summary.rows("s", ["floor", "lora", "in"], measured, rounds, {"in": "UserError: no"})
    assert floor["step_seconds_over_floor"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    # The median of 2, 1.5 and 1, not 3 / 2 of the overall medians by chance: rounds are compared one by one.
    assert lora["step_seconds_over_floor"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert (lora["flops_over_floor"], lora["step_seconds_median"], lora["timed_steps"]) == (1.5, 3.0, 6)
    assert failed == {"method": "in", "shape": "s", "error": "UserError: no"}


def test_every_registered_metric_has_a_row(tmp_path, capsys):
    assert selection.main(["--shape", "tiny_llama", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "selection.json").read_text())
    of_one_model = [name for name in registry.names() if name != "change"]
    assert [row["metric"] for row in result["rows"]] == of_one_model
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in result["rows"])
    table = (tmp_path / "selection.md").read_text()
    assert all(f"| {row['metric']} " in table for row in result["rows"])


def test_a_metric_that_fails_is_a_row_that_says_so():
    model = build(SHAPES["tiny_llama"], CPU, torch.float32)
    row = selection.scored(model, "taylor", [], 1)
    assert row["error"].startswith("UserError: importance=taylor needs training batches")


@pytest.mark.parametrize("name", writing.CHANNELS)
def test_all_layers_are_written_and_restored(name):
    model = CONTENDERS[name].attach(build(SHAPES["tiny_bert"], CPU, torch.float32), 2).model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.ones_(parameter)
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    work = writing.Writing(model)
    work.write()
    changed = sum(int((value != frozen[key]).sum()) for key, value in model.named_parameters() if key in frozen)
    assert changed == sum(parameter.numel() for parameter in trained)
    work.restore()
    assert all(torch.equal(value, frozen[key]) for key, value in model.named_parameters() if key in frozen)


@pytest.mark.parametrize("planned", [False, True])
def test_writing_has_a_row_for_every_channel(planned, tmp_path, capsys):
    options = ["--shape", "tiny_llama", "--dtype", "bf16", "--rounds", "2", "--out", str(tmp_path)]
    assert writing.main([*options, "--planned"] if planned else options) == 0
    rows = json.loads((tmp_path / "writing.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(writing.CHANNELS)
    for row in rows:
        # 16-bit originals and W, 32-bit deltas.
        assert row["write_least_bytes"] == (2 + 4 + 2) * row["trainable_parameters"]
        assert row["restore_least_bytes"] == (2 + 2) * row["trainable_parameters"]
        assert row["write_moved_bytes"] > row["write_least_bytes"]
        assert row["restore_moved_bytes"] >= row["restore_least_bytes"]
    assert all(f"| {name} |" in (tmp_path / "writing.md").read_text() for name in writing.CHANNELS)


def test_every_method_generates_what_the_plain_model_does_until_it_is_trained():
    plain, *others = (
        generation.Generation(SHAPES["tiny_llama"], name, CPU, torch.float32, 40, 5) for name in generation.METHODS
    )
    tokens = plain.tokens()
    assert tokens.shape == (1, 45)
    assert all(torch.equal(other.tokens(), tokens) for other in others)


def test_generation_has_a_row_for_every_method(tmp_path, capsys):
    options = ["--shape", "tiny_llama", "--rounds", "2", "--new", "3", "--out", str(tmp_path)]
    assert generation.main(options) == 0
    found = json.loads((tmp_path / "generation.json").read_text())["rows"]
    assert [row["method"] for row in found] == list(generation.METHODS)
    assert all(f"| {name} |" in (tmp_path / "generation.md").read_text() for name in generation.METHODS)


def test_ratios_of_generation_are_those_of_one_round():
    rows = {row["method"]: row for row in generation.rows("s", {"rows": [1.0, 9.0, 2.0], "lora": [2.0, 3.0, 2.0]}, 2)}
    assert rows["rows"]["token_milliseconds"] == {"median": 1000, "low": 500, "high": 4500}
    assert rows["rows"]["seconds_over_lora"] == {"median": 1, "low": 0.5, "high": 3}
    assert "seconds_over_plain" not in rows["rows"]


@pytest.mark.parametrize("shape", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize("harness", overhead.HARNESSES)
def test_the_loop_by_hand_trains_as_the_harness_does(shape, harness, tmp_path):
    """The same loop, or the comparison of their times means nothing."""
    options = overhead._parser().parse_args(["--steps", "5", "--out", str(tmp_path)])
    losses = {}
    for name in ("by hand", harness):
        harness_pair = overhead.HarnessPair(shape, options)
        before = [parameter.detach().clone() for parameter in harness_pair.trained]
        if name == "by hand":
            losses[name] = list(harness_pair.by_hand())
        else:
            trainer = (harness_pair._suite if harness == "suite" else harness_pair._trainer)(tmp_path)
            trainer.train()
            curve = trainer.curve if harness == "suite" else trainer.state.log_history[:-1]
            losses[name] = [point["loss"] for point in curve]
        assert not any(torch.equal(a, b) for a, b in zip(before, harness_pair.trained, strict=True) if b.numel() > 1)
    # The Trainer shuffles the examples; the suite's order is what the hand takes.
    if harness == "suite":
        assert losses[harness] == pytest.approx(losses["by hand"], rel=1e-5)
    assert len(losses[harness]) == len(losses["by hand"]) == 5


def test_turns_time_a_step_of_each(tmp_path):
    """A clock that counts as told: a tick a look, and a hundred for the step by hand."""
    ticks = iter([0.0, 3.0, 103.0, 107.0, 207.0])
    by_hand = iter([0.5, 0.4])
    turns = overhead.Turns(by_hand, lambda: next(ticks))
    turns.on_train_begin(None, None, None)
    turns.on_step_end(None, None, None)
    turns.on_step_end(None, None, None)
    assert turns.pairs == [(3.0, 100.0), (4.0, 100.0)]
    assert next(by_hand, None) is None


def test_the_overhead_table(tmp_path, capsys):
    arguments = ["--shape", "tiny_bert", "--rounds", "2", "--steps", "3", "--out", str(tmp_path)]
    assert overhead.main(arguments) == 0
    result = json.loads((tmp_path / "overhead.json").read_text())
    (row,) = result["rows"]
    assert row["pairs"] == 4
    assert row["by_hand_step_seconds"] > 0
    for name in ("trainer", "suite"):
        ratio = row[f"{name}_over_by_hand"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert {"median", "low", "high"} == set(row[f"{name}_minus_by_hand_seconds"])
    assert result["command"] == f"python benchmarks/overhead.py {' '.join(arguments)}"
    assert "| tiny_bert | rows |" in capsys.readouterr().out
