"""Every method on tiny models: what it trains, where it starts, what it saves, what it merges to."""

import json

import pytest
import torch
from method_contract import (
    CASES,
    check_merge,
    check_only_the_trainable_moves,
    check_saves_and_loads,
    check_step_zero,
    logits,
    prepared,
    train,
)
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny import causal_batch, tiny_bert, tiny_llama
from transformers import MambaConfig, MambaForCausalLM

from rowsft.baselines.lora import Lora
from rowsft.config.compose import compose
from rowsft.errors import UserError
from rowsft.methods.base import ResolvedMethod, method_class, method_of
from rowsft.methods.plain_method import head_parameters
from rowsft.methods.row_sft import RowSFT
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers

METHODS = ["row_sft", "lora", "dora", "full", "none"]
GRID = [(case, method) for case in CASES for method in METHODS] + [("bert", "head")]


@pytest.mark.parametrize(("case", "name"), GRID)
def test_step_zero_computes_what_the_base_computes(case, name):
    check_step_zero(case, name)


@pytest.mark.parametrize(("case", "name"), GRID)
def test_trains_exactly_what_is_resolved(case, name):
    method, resolved, wrapped, base, _ = prepared(case, name)
    head = head_parameters(base, CASES[case][2].head_modules) if name != "none" else 0
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert method.trainable(wrapped) == {"adapter": resolved.achieved, "head": head, "total": trained}
    assert trained == resolved.achieved + head
    assert json.loads(json.dumps(resolved.values)) == resolved.values
    if name in ("row_sft", "lora", "dora"):
        assert 2900 < resolved.achieved <= resolved.asked == 3000
    if name == "full":
        assert trained == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize(("case", "name"), [item for item in GRID if item[1] != "none"])
def test_training_moves_what_is_trainable_and_nothing_else(case, name):
    check_only_the_trainable_moves(case, name)


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_layers_are_adapted_by_every_method(case, name):
    build, _, targets = CASES[case]
    _, _, wrapped, _, _ = prepared(case, name)
    layers = [n for n, module in wrapped.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert layers == list(eligible_layers(build(), targets))


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora", "full", "head"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_head_starts_as_it_was_whatever_the_random_stream(name, seed):
    torch.manual_seed(seed)
    _, _, wrapped, base, _ = prepared("bert", name)
    heads = {n: p for n, p in wrapped.named_parameters() if p.requires_grad and ("classifier" in n or "pooler" in n)}
    expected = {n: p for n, p in base.named_parameters() if "classifier" in n or "pooler" in n}
    assert len(heads) == len(expected) == 4
    for name, parameter in heads.items():
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        assert torch.equal(parameter, expected[plain])


@pytest.mark.parametrize(("case", "name"), GRID)
def test_merge_gives_the_plain_model_with_the_same_outputs(case, name):
    check_merge(case, name)


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_a_saved_adapter_loads_through_peft(case, name, tmp_path):
    check_saves_and_loads(case, name, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora", "shira"])
def test_names_are_saved_in_an_order_of_their_own(name, tmp_path):
    """Not in that of a set, which changes with PYTHONHASHSEED and with it the recorded sha256."""
    method, resolved, wrapped, _, _ = prepared("bert", name, Budget(like={"method": "lora", "r": 2}))
    method.save(wrapped, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(resolved.values["target_modules"]) and len(saved["target_modules"]) > 6


def test_full_saves_the_checkpoint(tmp_path):
    method, _, model, _, batch = prepared("bert", "full")
    train(model, batch)
    method.save(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert (tmp_path / "model.safetensors").is_file()


def test_head_saves_its_tensors_alone(tmp_path):
    method, _, model, _, batch = prepared("bert", "head")
    train(model, batch)
    method.save(model, tmp_path / "head")
    saved = load_file(tmp_path / "head" / "head.safetensors")
    assert sorted(saved) == sorted(
        f"{module}.{p}" for module in ("bert.pooler.dense", "classifier") for p in ("weight", "bias")
    )
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in saved.items())


def test_none_saves_nothing(tmp_path):
    method, _, model, _, _ = prepared("bert", "none")
    method.save(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_head_needs_a_head():
    with pytest.raises(UserError, match="method=head: this task has no head"):
        method_class("head")().solve(Budget(), tiny_llama(), Targets())


def test_a_head_name_that_peft_would_match_twice_is_refused():
    model = tiny_bert()
    model.bert.add_module("pre_classifier", torch.nn.Linear(32, 32))
    method = Lora(r=2)
    with pytest.raises(UserError, match="would train further modules"):
        method.attach(model, method.solve(Budget(), model, Targets(head_modules=["classifier"])))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_ranks_and_scaling_reach_every_layer(name):
    _, resolved, wrapped, _, _ = prepared("llama", name, scaling=1.5)
    layers = {n: m for n, m in wrapped.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    ranks = {n: m.r["default"] for n, m in layers.items()}
    assert len(set(ranks.values())) == 2
    assert ranks == {n: resolved.values["rank_pattern"].get(n, resolved.values["r"]) for n in layers}
    assert all(layer.scaling["default"] == 1.5 for layer in layers.values())
    assert all(layer.use_dora["default"] is (name == "dora") for layer in layers.values())


def test_rank_patterns_hit_one_layer_each_among_many():
    """Names of layers 1, 11 and 21 end alike; an unanchored pattern would match several."""
    model = tiny_llama(num_hidden_layers=12)
    method = Lora()
    resolved = method.solve(Budget(params=13 * 1000 + 61), model, Targets(["q_proj", "k_proj"]))
    wrapped = method.attach(model, resolved)
    assert len(resolved.values["rank_pattern"]) > 0
    assert method.trainable(wrapped)["adapter"] == resolved.achieved


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora"])
def test_a_budget_for_a_few_layers_leaves_the_others_alone(name):
    method, resolved, wrapped, base, batch = prepared("llama", name, budget=Budget(params=150))
    assert 0 < len(resolved.values["target_modules"]) < 14
    assert method.trainable(wrapped)["adapter"] == resolved.achieved <= 150
    torch.testing.assert_close(logits(wrapped, batch), logits(base, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("importance", ["random", "l1", "l2", "taylor", "lowest(l2)"])
def test_selection_repeats_and_fits_the_resolved_sizes(importance):
    model, batch = tiny_llama(), causal_batch()
    method = RowSFT(importance=importance, seed=7)
    assert method.needs_calibration is (importance == "taylor")
    resolved = method.solve(Budget(rows=4), model, Targets())
    first, second = (method.select(model, resolved, [batch]).chosen for _ in range(2))
    assert all(torch.equal(first[name].rows, second[name].rows) for name in first)
    sizes = {name: (len(choice.rows), len(choice.columns)) for name, choice in first.items()}
    assert sizes == dict.fromkeys(eligible_layers(model, Targets()), (4, 0))


def test_an_own_size_wins_over_the_budget():
    resolved = Lora(r=3).solve(Budget(rows=5), tiny_llama(), Targets())
    assert (resolved.values["r"], resolved.source) == (3, "method.r=3")
    assert RowSFT(ratio=0.5).solve(Budget(), tiny_llama(), Targets()).source == "method.ratio=0.5"


def test_lora_dropout_and_bad_settings():
    _, _, wrapped, _, _ = prepared("llama", "lora", dropout=0.25)
    assert {m.p for m in wrapped.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    for settings, message in (({"dropout": 1.0}, "method.dropout=1.0"), ({"scaling": 0}, "method.scaling=0")):
        with pytest.raises(UserError, match=message):
            Lora(**settings)
    with pytest.raises(UserError, match="importance=l7: unknown metric"):
        RowSFT(importance="l7")


@pytest.mark.parametrize("name", ["row_sft", "lora", "dora", "full", "head", "none"])
def test_every_method_file_builds_its_method(name):
    method = method_of(compose([f"method={name}", "seed=11"]).method)
    assert isinstance(method, method_class(name))
    assert method.name == name
    if name == "row_sft":
        assert method.seed == 11


def test_layers_that_peft_refuses_are_named_in_one_line():
    settings = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**settings))
    method = method_class("lora")()
    resolved = method.solve(Budget(rows=8), model, Targets())
    with pytest.raises(UserError, match=r"method=lora: PEFT cannot adapt these layers \(.*'out_proj'.*exclude_modules"):
        method.attach(model, resolved)


class Unknown(Lora):
    """LoRA on a layer of a kind that PEFT does not know."""

    def peft_config(self, model, resolved):
        return LoraConfig(r=2)


def test_a_kind_of_layer_that_peft_does_not_know_is_bad_input_and_a_wrong_call_is_a_fault():
    model, method = tiny_llama(), Unknown()
    values = {"target_modules": ["model.layers.0.mlp.act_fn"], "head_modules": []}
    with pytest.raises(UserError, match="method=lora: PEFT cannot adapt these layers .Target module SiLU"):
        method.attach(model, ResolvedMethod(values))
    wrong = Lora()
    values = {"target_modules": ["model.layers.0.mlp.up_proj"], "r": -1, "rank_pattern": {}, "head_modules": []}
    with pytest.raises(ValueError, match="positive integer") as error:
        wrong.attach(model, ResolvedMethod(values))
    assert not isinstance(error.value, UserError)
