"""PiSSA and OLoRA: what is taken out of the base weight, and that saving, loading, merging and measuring know of it."""

import copy
import gc
import json
from pathlib import Path

import pytest
import torch
from method_contract import (
    BUDGET,
    CASES,
    check_counts,
    check_curve,
    check_merge,
    check_only_the_trainable_moves,
    check_saves_and_loads,
    check_step_zero,
    logits,
    prepared,
    train,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from refusals import refusal
from safetensors.torch import load_file
from tiny import causal_batch, tiny_gpt2, tiny_llama

from rowsft.baselines.olora import Olora
from rowsft.baselines.pissa import Pissa
from rowsft.layers.matrix import as_matrix
from rowsft.methods.base import ResolvedMethod
from rowsft.methods.residual import start_of
from rowsft.methods.weight_change import untouched, watched
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers

GRID = [("llama", "pissa"), ("bert", "pissa"), ("gpt2", "pissa"), ("llama", "olora"), ("bert", "olora")]
ADAPTER = "adapter_model.safetensors"


@pytest.mark.parametrize(("case", "name"), GRID)
def test_step_zero_computes_what_the_base_computes(case, name):
    check_step_zero(case, name)


@pytest.mark.parametrize(("case", "name"), GRID)
def test_counts_are_those_of_lora_and_of_peft(case, name):
    build, _, targets = CASES[case]
    layers = eligible_layers(build(), targets).values()
    check_counts(case, name)
    check_counts(case, name, 3 * sum(sum(as_matrix(layer, layer.weight).shape) for layer in layers), r=3)
    _, resolved, wrapped, _, _ = prepared(case, name)
    assert 2900 < resolved.achieved <= resolved.asked == BUDGET.params
    if not targets.head_modules:
        assert wrapped.get_nb_trainable_parameters()[0] == resolved.achieved


@pytest.mark.parametrize(("case", "name"), GRID)
def test_training_moves_what_is_trainable_and_nothing_else(case, name):
    check_only_the_trainable_moves(case, name)


@pytest.mark.parametrize(("case", "name"), GRID)
def test_a_saved_adapter_loads_through_peft_on_the_untouched_base(case, name, tmp_path):
    check_saves_and_loads(case, name, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["init_lora_weights"]) == ("LORA", True)


@pytest.mark.parametrize(("case", "name"), GRID)
def test_merge_gives_the_plain_model_with_the_same_outputs(case, name):
    check_merge(case, name)


@pytest.mark.parametrize(("name", "start", "scaling"), [("pissa", "pissa_niter_16", 1), ("olora", "olora", 0.5)])
def test_the_loss_curve_is_that_of_peft_used_by_hand(name, start, scaling):
    def by_hand(model, resolved):
        targets = set(resolved.values["target_modules"])
        return get_peft_model(
            model, LoraConfig(r=4, lora_alpha=4 * scaling, init_lora_weights=start, target_modules=targets)
        )

    check_curve("llama", name, by_hand, r=4)


def test_an_exact_start_is_the_best_approximation_of_each_weight_and_a_fast_one_comes_near():
    build, _, targets = CASES["llama"]
    weights = {name: layer.weight.detach() for name, layer in eligible_layers(build(), targets).items()}
    # Weights drawn at random have no gap in their spectrum, which is the hardest case for the fast one.
    for niter, off in ((None, 1e-5), (16, 3e-2)):
        torch.manual_seed(0)
        wrapped = prepared("llama", "pissa", r=4, niter=niter)[2]
        for name, weight in weights.items():
            left = wrapped.get_base_model().get_submodule(name).base_layer.weight
            best = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()
            assert torch.linalg.norm(left) == pytest.approx(best.item(), rel=off), (niter, name)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_saved_is_what_peft_converts_to(name, tmp_path):
    """PEFT's own conversion, from the adapter as it was before training; it knows neither heads nor these ranks."""
    method, _, wrapped, base, batch = prepared("llama", name, r=4)
    wrapped.save_pretrained(tmp_path / f"{name}_init")
    train(wrapped, batch)
    method.save(wrapped, tmp_path / "ours")
    wrapped.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / f"{name}_init")
    )
    ours, theirs = (load_file(tmp_path / side / ADAPTER) for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs"))
    for config in (ours, theirs):
        config["target_modules"].sort()
    assert ours == theirs


@pytest.mark.parametrize(("case", "name"), GRID)
def test_what_is_loaded_is_what_was_trained_bit_for_bit(case, name, tmp_path):
    """The residual, the factors and the head: so that a step of it costs, and does, what a step of the run did."""
    method, resolved, wrapped, base, batch = prepared(case, name)
    train(wrapped, batch)
    method.save(wrapped, tmp_path / "first")
    loaded = method.load(base, ResolvedMethod(json.loads(json.dumps(resolved.values))), tmp_path / "first")
    assert method.trainable(loaded) == method.trainable(wrapped)
    expected = dict(wrapped.named_parameters())
    for parameter_name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[parameter_name]), parameter_name
        assert parameter.requires_grad == expected[parameter_name].requires_grad
    method.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / ADAPTER).read_bytes() == (tmp_path / "first" / ADAPTER).read_bytes()


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_16_bit_base_starts_and_is_saved_to_its_own_rounding(name, tmp_path):
    method = {"pissa": Pissa, "olora": Olora}[name](r=4)
    model, batch = tiny_llama(torch.bfloat16), causal_batch()
    base = copy.deepcopy(model)
    resolved = method.solve(Budget(), model, Targets())
    wrapped = method.attach(model, resolved)
    assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}
    torch.testing.assert_close(logits(wrapped, batch), logits(base, batch), rtol=0.05, atol=0.02)
    train(wrapped, batch)
    method.save(wrapped, tmp_path)
    expected = logits(wrapped, batch)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path), batch), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("case", "name"), [("llama", "pissa"), ("gpt2", "pissa"), ("llama", "olora")])
def test_forgetting_is_measured_from_the_untouched_model(case, name):
    """Loss before, and CSD_rel against the merged weights of the run minus those of the base."""
    build, make, targets = CASES[case]
    _, _, wrapped, base, batch = prepared(case, name)
    train(wrapped, batch)
    tuned, state = logits(wrapped, batch), {key: value.clone() for key, value in wrapped.state_dict().items()}
    counted = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    with untouched(wrapped, targets, None) as layers, watched(layers, lambda: counted) as sums:
        before = logits(wrapped, batch)
    torch.testing.assert_close(before, logits(base, batch), rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(wrapped, batch), tuned)
    assert all(torch.equal(value, state[key]) for key, value in wrapped.state_dict().items())
    inputs = {}
    for layer_name, layer in eligible_layers(base, targets).items():
        layer.register_forward_pre_hook(lambda _, args, n=layer_name: inputs.update({n: args[0]}))
    logits(base, batch)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    for layer_name, layer in eligible_layers(base, targets).items():
        original = as_matrix(layer, layer.weight.detach()).double()
        change = as_matrix(layer, merged.get_submodule(layer_name).weight.detach()).double() - original
        h = inputs[layer_name].flatten(0, 1).double()
        expected = ((h @ change.T).square().sum() / (h @ original.T).square().sum()).item()
        assert sums[layer_name].csd_rel == pytest.approx(expected, rel=1e-3), layer_name
    assert set(sums) == set(eligible_layers(build(), targets))


def test_the_start_is_kept_as_long_as_the_model_and_is_none_of_its_tensors():
    wrapped = prepared("llama", "pissa")[2]
    folder = Path(start_of(wrapped)._path).parent
    assert folder.is_dir() and not [name for name in wrapped.state_dict() if "start" in name]
    assert start_of(copy.deepcopy(wrapped)) is start_of(wrapped)
    del wrapped
    gc.collect()
    assert not folder.exists()


def test_without_weights_there_is_a_start_without_data():
    with torch.device("meta"):
        model = tiny_llama()
        method = Pissa(r=4)
        wrapped = method.attach(model, method.solve(Budget(), model, Targets()))
    with start_of(wrapped).put_back(wrapped) as changed:
        assert {each.change().device.type for each in changed.values()} == {"meta"}
    assert sum(isinstance(layer, LoraLayer) for layer in wrapped.modules()) == len(changed) == 14


@pytest.mark.parametrize(
    ("method", "build", "message"),
    [
        (Olora(), tiny_gpt2, "layer transformer.h.0.attn.c_attn is a Conv1D, and PEFT's OLoRA knows nn.Linear only"),
        (Pissa(r=33), tiny_llama, "r=33 exceeds layer model.layers.0.self_attn.q_proj (32 ranks)"),
        (Olora(r=17), tiny_llama, "r=17 exceeds layer model.layers.0.self_attn.k_proj (16 ranks)"),
        (Pissa(), lambda: tiny_llama(torch.float64), "holds torch.float64 values"),
    ],
)
def test_what_cannot_be_taken_out_is_refused_in_one_line(method, build, message):
    assert message in refusal(method.solve, Budget(), build(), Targets())


def test_a_wrong_number_of_iterations_is_refused():
    assert refusal(Pissa, niter=-1).startswith("method.niter=-1: expected a whole number, 0 or more, or null")
