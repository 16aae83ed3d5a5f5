"""Metrics of a user's own: one module each, named module.metric, with parameters; run by a sweep's fresh processes."""

import os
from pathlib import Path

import pytest
import torch
from scoring import causal_batches, close_axes, mean_gradient, score_axes, summed, weights
from tiny import tiny_llama
from tiny_workshop import build_workshop

from rowsft.errors import UserError
from rowsft.importance import metric
from rowsft.importance.calibration import Calibration
from rowsft.store import Store
from rowsft.tuner import RowSFTConfig
from rowsft.tuner.attach import attach, score

HERE = Path(__file__).parent


@pytest.mark.parametrize("power", [1, 2])
def test_it_scores_what_its_formula_says(power):
    model, batches = tiny_llama(torch.float64), causal_batches()
    elements = {name: gradient.abs() ** power for name, gradient in mean_gradient(model, batches).items()}
    found = score_axes(model, f"gradient_size.gradient_size(power={power})", batches)
    close_axes(found, summed(elements), rtol=1e-5)
    close_axes(
        score_axes(model, "row_spread.row_spread(power=2)"), summed({n: w.square() for n, w in weights(model).items()})
    )


def test_it_composes_and_its_defaults_are_not_in_its_name():
    assert metric("gradient_size.gradient_size(power=1)").name == "gradient_size.gradient_size"
    assert metric("lowest( row_spread.row_spread(power = 6) )").name == "lowest(row_spread.row_spread(power=6))"
    highest = score(tiny_llama(), "row_spread.row_spread")
    lowest = score(tiny_llama(), "lowest(row_spread.row_spread)")
    assert all(torch.equal(highest[name], -lowest[name]) for name in highest)


def test_its_scores_are_not_kept():
    """Its code may change under the same name."""

    class NoCache:
        def get(self, key):
            raise AssertionError(key)

        put = get

    batches = Calibration(causal_batches(), NoCache(), {})
    assert score(tiny_llama(), "gradient_size.gradient_size", batches)
    with pytest.raises(AssertionError, match="'metric': 'grad2'"):
        score(tiny_llama(), "grad2", batches)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("nowhere.metric", "module nowhere cannot be imported .*expected module.metric"),
        ("gradient_size.other", "importance=gradient_size.other: unknown metric"),
        ("lowest(row_spread.row_spread", "unknown metric"),
        ("row_spread.row_spread(size=3)", r"unknown parameter size; .*its parameters: power=4"),
        ("row_spread.row_spread(power=much)", "power=much: expected a whole number"),
        ("zo_taylor(64)", r"unknown parameter 64; .*its parameters: draws=256"),
        ("l2(power=3)", "its parameters: none"),
    ],
)
def test_mistakes_are_said_in_one_line(importance, message):
    with pytest.raises(UserError, match=message) as caught:
        metric(importance)
    assert "\n" not in str(caught.value)


def test_an_adapter_names_it():
    config = RowSFTConfig(rows=2, importance="row_spread.row_spread(power=2)", target_modules=["q_proj"])
    own = attach(tiny_llama(), config).peft_config["default"]
    usual = attach(tiny_llama(), RowSFTConfig(rows=2, importance="l2", target_modules=["q_proj"])).peft_config[
        "default"
    ]
    assert {name: ids.tolist() for name, ids in own.row_ids.items()} == {
        name: ids.tolist() for name, ids in usual.row_ids.items()
    }
    assert own.to_dict()["importance"] == "row_spread.row_spread(power=2)"


def test_a_sweep_over_its_parameter(tmp_path):
    workshop = build_workshop(tmp_path)
    metrics = "gradient_size.gradient_size,gradient_size.gradient_size(power=2)"
    overrides = [*workshop.overrides("llama"), "method=row_sft", f"method.importance={metrics}", "experiment_name=own"]
    done = workshop.rowsft("sweep", *overrides, ROWSFT_CONFIG_DIR=os.fspath(HERE / "conf"))
    assert done.returncode == 0, done.stderr
    records = Store(tmp_path / "runs").runs("own")
    assert {record.config["method"]["importance"] for record in records} == set(metrics.split(","))
    assert all(record.state == "done" for record in records)


WRONG = """
from rowsft.importance import register


@register("summed", needs="weights")
def summed(weight):
    return weight.sum()


@register("nothing", needs="weights")
def nothing(weight):
    pass


@register("few", needs="activations")
def few(layers, context, axes):
    return {}


@register("none", needs="losses")
def none(layers, context, axes):
    return None
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summed", r"wrong_metrics.summed: expected a tensor of the block's shape \(32, 32\), got shape \(\)"),
        ("nothing", "wrong_metrics.nothing: expected a tensor .* got NoneType"),
        ("few", "importance=wrong_metrics.few: gave no rows of layer model.layers.0.self_attn.q_proj"),
        ("none", "importance=wrong_metrics.none: gave no rows of layer model.layers.0.self_attn.q_proj"),
    ],
)
def test_a_metric_that_gives_something_else_is_one_line_that_names_it(tmp_path, monkeypatch, name, message):
    (tmp_path / "wrong_metrics.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        score(tiny_llama(), f"wrong_metrics.{name}", causal_batches())


def test_what_a_metric_needs_is_one_of_the_words_that_there_are(tmp_path, monkeypatch):
    (tmp_path / "misspelt_needs.py").write_text(WRONG.replace('needs="losses"', 'needs="loses"'))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="misspelt_needs cannot be imported .*needs=loses: expected nothing, weights, "):
        metric("misspelt_needs.none")
