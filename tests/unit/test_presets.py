"""Methods of other papers as settings of row-SFT: each trains exactly what its source says, under a name of its own."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from method_contract import CASES, adamw, train
from omegaconf import DictConfig, OmegaConf
from report_factory import config as recorded
from report_factory import outcomes
from scoring import mean_gradient
from tiny import causal_batch, tiny_gpt2, tiny_llama
from torch import nn

from rowsft import report
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.importance import layer_generator
from rowsft.layers.matrix import as_matrix, layer_shape
from rowsft.method_info import info_of, to_record
from rowsft.methods.base import method_of, selected
from rowsft.methods.row_sft import RowSFT
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.store import Store

PRESETS = ["paca", "rocoft", "rocoft_columns", "s2ft", "grft"]
BUDGET = Budget(params=3000)


@cache
def composed(*overrides: str) -> DictConfig:
    return compose(list(overrides))


def preset(name: str, **settings) -> RowSFT:
    return method_of(OmegaConf.merge(composed(f"method={name}").method, settings))


def chosen(method: RowSFT, model: nn.Module, budget: Budget = BUDGET, batches=()):
    """(resolved, layer name -> (rows, columns) as lists)."""
    resolved = selected(method, model, method.solve(budget, model, Targets()), batches)
    assert resolved.chosen is not None
    return resolved, {name: (ids.rows.tolist(), ids.columns.tolist()) for name, ids in resolved.chosen.items()}


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_paca_trains_columns_drawn_for_each_layer(build):
    model = build()
    _, ids = chosen(preset("paca", seed=7), model, Budget(rows=5))
    for name, layer in eligible_layers(model, Targets()).items():
        drawn = torch.rand(layer_shape(layer)[1], generator=layer_generator(7, f"{name} columns"))
        assert ids[name] == ([], drawn.topk(5).indices.sort().values.tolist())
    assert len({tuple(columns) for _, columns in ids.values()}) > len(ids) // 2


def test_every_column_is_as_likely():
    model, name = tiny_llama(num_hidden_layers=1), "model.layers.0.self_attn.q_proj"
    targets, counts, paca = Targets(target_modules=["q_proj"]), torch.zeros(32), preset("paca")
    for seed in range(300):
        method = replace(paca, seed=seed)
        resolved = method.select(model, method.solve(Budget(rows=8), model, targets), [])
        counts[resolved.chosen[name].columns] += 1
    # Of 300 draws a quarter each; five standard deviations of a binomial count.
    assert (counts - 75).abs().max() < 5 * (300 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_rocoft_trains_the_first_rows_or_the_first_columns_of_every_layer(build):
    model = build()
    for name, place in (("rocoft", 0), ("rocoft_columns", 1)):
        _, ids = chosen(preset(name), model, Budget(rows=3))
        assert ids.keys() == eligible_layers(model, Targets()).keys()
        assert all(of_layer[place] == [0, 1, 2] and of_layer[1 - place] == [] for of_layer in ids.values())


def test_s2ft_trains_whole_heads_and_hidden_units_drawn_at_random():
    model, block = tiny_llama(), "model.layers.{}.{}"
    drawn = set()
    for seed in range(8):
        _, ids = chosen(preset("s2ft", seed=seed), model, Budget(ratio=0.5))
        for layer in range(2):
            gate, up, down = (ids[block.format(layer, f"mlp.{part}_proj")] for part in ("gate", "up", "down"))
            assert gate == up == (down[1], []) and down[0] == [] and len(gate[0]) == 32
            q, k, v, o = (ids[block.format(layer, f"self_attn.{part}_proj")] for part in "qkvo")
            [head] = {row // 8 for row in k[0]}
            # Four query heads of 8 rows, two for each key-value head.
            assert k == v == (list(range(8 * head, 8 * head + 8)), [])
            assert q == (list(range(16 * head, 16 * head + 16)), []) and o == ([], q[0])
            drawn.add((head, tuple(gate[0])))
    assert len(drawn) == 16 and {head for head, _ in drawn} == {0, 1}


@pytest.mark.parametrize(("channel", "dim"), [("rows", 1), ("columns", 0)])
def test_grft_trains_what_has_the_largest_sum_of_squared_gradients(channel, dim):
    model, batch = tiny_llama(torch.float64), causal_batch()
    _, ids = chosen(preset("grft", channel=channel), model, Budget(rows=4), [batch])
    for name, gradient in mean_gradient(model, [batch]).items():
        largest = gradient.square().sum(dim).topk(4).indices.sort().values.tolist()
        assert ids[name] == ((largest, []) if channel == "rows" else ([], largest))


@pytest.mark.parametrize("name", PRESETS)
def test_the_curve_is_that_of_the_whole_model_with_every_other_gradient_zero(name):
    """Dense weights and AdamW's own update, which shares no code with the tuner; one budget for all of them."""
    build, make, _ = CASES["llama"]
    model, batch = build(), make()
    dense, method = deepcopy(model), preset(name)
    resolved = selected(method, model, method.solve(BUDGET, model, Targets()), [batch])
    assert 0.8 * BUDGET.params < resolved.achieved <= BUDGET.params
    dense.requires_grad_(False)
    trained = 0
    for layer_name, ids in resolved.chosen.items():
        layer = dense.get_submodule(layer_name)
        mask = torch.zeros_like(layer.weight)
        as_matrix(layer, mask)[ids.rows] = 1
        as_matrix(layer, mask)[:, ids.columns] = 1
        layer.weight.requires_grad_(True).register_hook(lambda gradient, mask=mask: gradient * mask)
        trained += int(mask.sum())
    assert trained == resolved.achieved
    tuned = method.attach(model, resolved)
    losses, expected = train(tuned, batch, 6), train(dense, batch, 6, adamw(dense))
    assert expected[-1] < expected[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_row_sft_with_its_settings_and_a_name_of_its_own(name):
    of_preset, plain = composed(f"method={name}"), composed("method=row_sft")
    changed = {key for key, value in of_preset.method.items() if value != plain.method[key]}
    assert of_preset.method.keys() == plain.method.keys()
    assert {"name"} < changed <= {"name", "channel", "importance"}
    assert run_spec(of_preset).run_id != run_spec(plain).run_id
    info = info_of(method_of(of_preset.method))
    assert (info.name, info.title, info.budgeted, info.sizes) == (name, name, True, ("rows", "ratio"))


def with_batches(config: DictConfig, count: int) -> DictConfig:
    return OmegaConf.merge(config, {"trainer": {"calibration_batches": count}})


@pytest.mark.parametrize("name", PRESETS)
def test_only_a_choice_that_reads_data_depends_on_them(name):
    ids = {run_spec(with_batches(composed(f"method={name}"), n)).run_id for n in (5, 6)}
    assert len(ids) == (2 if name == "grft" else 1)


@pytest.mark.parametrize("importance", ["lift", "lift(rank=64)", "lowest(lift(rank=64))", "lowest(first)"])
def test_what_lift_and_first_do_not_read_is_in_no_id(importance):
    config = with_batches(composed("method=row_sft"), 5)
    config.method.importance = importance
    ids = {run_spec(with_batches(config, n)).run_id for n in (5, 6)}
    assert len(ids) == 1


def test_presets_stand_in_a_table_under_their_names(tmp_path):
    store = Store(tmp_path)
    for name in ("row_sft", "paca", "rocoft"):
        settings = composed(f"method={name}")
        info = to_record(info_of(method_of(settings.method)))
        group = {key: value for key, value in settings.method.items() if key != "seed"}
        with store.open(recorded(method=group, task="sentiment", rate=1e-3, budget={"rows": 4})) as run:
            attempt = run.begin(method_info=info)
            attempt.update(primary_metric="accuracy", metrics={"test": {"accuracy": 0.6}})
            attempt.write_predictions(outcomes(60))
            attempt.finish("done")
    [section] = report.sections(tmp_path, "demo")
    assert [(line.title, line.differs_in) for line in section.lines] == [("row-SFT", ""), ("paca", ""), ("rocoft", "")]
