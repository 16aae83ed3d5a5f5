"""Methods whose size no budget sets (VeRA, IA3, BitFit, LN-tuning), and Super-Tuning, which has a share of entries."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from method_contract import (
    CASES,
    adamw,
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
from peft import IA3Config, LNTuningConfig, SupertuningConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from plan_accuracy import compare
from planning import small_case
from safetensors.torch import load_file
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from tiny_workshop import tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, OPTConfig, OPTForCausalLM

from rowsft.baselines.ia3 import Ia3
from rowsft.baselines.supertuning import Supertuning
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError
from rowsft.export import export
from rowsft.layers.matrix import layer_shape
from rowsft.methods import fixed_size
from rowsft.methods.base import method_class, method_of
from rowsft.methods.weight_change import of_adapter
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers

VERA = {"r": 8}
#: name -> settings; the models that it admits.
METHODS = {
    "vera": (VERA, ("llama", "gpt2", "bert")),
    "ia3": ({}, ("llama", "gpt2", "bert")),
    "bitfit": ({}, ("gpt2", "bert")),
    "ln_tuning": ({}, ("llama", "gpt2", "bert")),
    "supertuning": ({}, ("llama", "bert")),
}
GRID = [(case, name) for name, (_, cases) in METHODS.items() for case in cases]
FIXED = [item for item in GRID if item[1] != "supertuning"]
THROUGH_PEFT = [item for item in GRID if item[1] != "bitfit"]
# Two layers of width 32 with an MLP of 64; gpt2 fuses queries, keys and values (96), llama's keys and values have 16.
SIZES = {
    ("llama", "vera"): 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32 + 7 * 8),
    ("gpt2", "vera"): 2 * (96 + 32 + 64 + 32 + 4 * 8),
    ("bert", "vera"): 2 * (4 * 32 + 64 + 32 + 6 * 8),
    ("llama", "ia3"): 2 * (16 + 16 + 64),
    ("gpt2", "ia3"): 2 * (96 + 64),
    ("bert", "ia3"): 2 * (32 + 32 + 64),
    ("gpt2", "bitfit"): 2 * (96 + 32 + 64 + 32 + 2 * 32) + 32,
    ("bert", "bitfit"): 32 + 2 * (4 * 32 + 64 + 32 + 2 * 32),
    ("llama", "ln_tuning"): 5 * 32,
    ("gpt2", "ln_tuning"): 5 * 2 * 32,
    ("bert", "ln_tuning"): 5 * 2 * 32,
}


def settings_of(name):
    return METHODS[name][0]


@pytest.mark.parametrize(("case", "name"), GRID)
def test_step_zero_computes_what_the_base_computes(case, name):
    check_step_zero(case, name, **settings_of(name))


@pytest.mark.parametrize(("case", "name"), FIXED)
def test_the_size_is_that_of_the_shapes_whatever_the_budget(case, name, caplog):
    # Said once a process: of two models with as many biases, of one.
    fixed_size._warn.cache_clear()
    check_counts(case, name, SIZES[case, name], **settings_of(name))
    method, resolved, wrapped, _, _ = prepared(case, name, Budget(rows=4), **settings_of(name))
    assert (resolved.asked, resolved.achieved) == (None, SIZES[case, name])
    assert f"budget.rows=4 does not apply to method={name}" in caplog.text
    assert json.loads(json.dumps(resolved.values)) == resolved.values
    if name != "bitfit":
        trained, _ = wrapped.get_nb_trainable_parameters()
        assert trained == method.trainable(wrapped)["total"]
    caplog.clear()
    prepared(case, name, Budget(), **settings_of(name))
    assert not caplog.messages, "the default budget was not asked for"


@pytest.mark.parametrize("name", METHODS)
def test_the_file_of_a_method_builds_it_and_a_budget_that_counts_for_nothing_makes_no_other_run(name):
    first = compose([f"method={name}", "budget.rows=4"])
    method = method_of(first.method)
    assert isinstance(method, method_class(name)) and method.name == name
    same = run_spec(first).run_id == run_spec(compose([f"method={name}", "budget.rows=8"])).run_id
    assert same == (name != "supertuning") == (not method.info.budgeted)
    if name == "supertuning":
        own = [compose([f"method={name}", "method.ratio=0.1", f"budget.rows={rows}"]) for rows in (4, 8)]
        assert run_spec(own[0]).run_id == run_spec(own[1]).run_id


@pytest.mark.parametrize("name", ["vera", "ia3", "bitfit", "ln_tuning"])
def test_other_methods_can_be_given_as_many_parameters(name):
    model, targets = tiny_bert(), CASES["bert"][2]
    like = Budget(like={"method": name, **settings_of(name)})
    resolved = method_class("supertuning")().solve(like, model, targets)
    assert resolved.asked == SIZES["bert", name]


@pytest.mark.parametrize(("case", "name"), GRID)
def test_training_moves_what_is_trainable_and_nothing_else(case, name):
    check_only_the_trainable_moves(case, name, **settings_of(name))


@pytest.mark.parametrize(("case", "name"), THROUGH_PEFT)
def test_a_saved_adapter_loads_through_peft(case, name, tmp_path):
    check_saves_and_loads(case, name, tmp_path, **settings_of(name))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(saved["target_modules"])


@pytest.mark.parametrize("case", METHODS["bitfit"][1])
def test_biases_are_saved_under_their_names_and_loaded(case, tmp_path):
    method, resolved, model, base, batch = prepared(case, "bitfit")
    train(model, batch)
    method.save(model, tmp_path)
    saved = load_file(tmp_path / "bitfit.safetensors")
    assert {name for name in saved if not name.startswith(("classifier", "bert.pooler"))} == set(
        resolved.values["biases"]
    )
    loaded = method.load(deepcopy(base), resolved, tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize(("case", "name"), GRID)
def test_merge_gives_the_plain_model_with_the_same_outputs(case, name):
    check_merge(case, name, **settings_of(name))


HEADS = {"bert": ["classifier", "bert.pooler.dense"]}


def by_hand(case, name):
    """PEFT with the names of layers spelled out as its documentation does; the head as the suite names it."""
    linears = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    linears |= {"gpt2": ["c_attn", "c_proj", "c_fc"], "bert": r".*encoder.*(query|key|value|dense)"}
    scaled = {"llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"])}
    scaled |= {"gpt2": (["attn.c_attn", "mlp.c_proj"], ["mlp.c_proj"])}
    of_bert = r".*\.\d+\.output\.dense"
    scaled |= {"bert": (rf".*(key|value)|{of_bert}", of_bert)}
    norms = {"llama": ["input_layernorm", "post_attention_layernorm", "norm"]}
    norms |= {"gpt2": ["ln_1", "ln_2", "ln_f"], "bert": ["LayerNorm"]}

    def wrap(model, resolved):
        common = {"modules_to_save": HEADS.get(case), "fan_in_fan_out": case == "gpt2"}
        if name == "vera":
            config = VeraConfig(target_modules=linears[case], **VERA, **common)
        elif name == "ia3":
            modules, inputs = scaled[case]
            config = IA3Config(target_modules=modules, feedforward_modules=inputs, **common)
        elif name == "ln_tuning":
            config = LNTuningConfig(target_modules=norms[case], modules_to_save=HEADS.get(case))
        else:
            share = resolved.asked / sum(2 * w for w in ([6144 + 3072] if case == "llama" else [8192]))
            config = SupertuningConfig(
                target_modules=linears[case], sparsity=1 - share, modules_to_save=HEADS.get(case)
            )
        return get_peft_model(model, config)

    return wrap


@pytest.mark.parametrize(("case", "name"), THROUGH_PEFT)
def test_losses_are_those_of_peft_used_by_hand(case, name):
    check_curve(case, name, by_hand(case, name), **settings_of(name))


@pytest.mark.parametrize("case", METHODS["bitfit"][1])
def test_losses_of_bitfit_are_those_of_a_bare_loop(case):
    def bare(model, resolved):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("bias" in name or name.startswith(("classifier", "bert.pooler")))
        return model

    check_curve(case, "bitfit", bare)


@pytest.mark.parametrize("case", ["llama", "bert"])
def test_super_tuning_spends_its_budget_on_the_largest_entries(case):
    check_counts(case, "supertuning")
    _, resolved, wrapped, base, batch = prepared(case, "supertuning")
    assert resolved.asked == 3000 and 2986 <= resolved.achieved <= 3000
    train(wrapped, batch)
    merged = method_class("supertuning")().merge(wrapped)
    for name, layer in eligible_layers(base, CASES[case][2]).items():
        changed = merged.get_submodule(name).weight != layer.weight
        assert 0 < changed.sum() <= int(layer.weight.numel() * (1 - resolved.values["sparsity"]))
        assert layer.weight[changed].abs().min() >= layer.weight[~changed].abs().median()


def test_super_tuning_by_its_own_share_and_at_its_ends():
    model, layers = tiny_llama(), eligible_layers(tiny_llama(), Targets())
    entries = sum(layer.weight.numel() for layer in layers.values())
    own = Supertuning(ratio=0.1).solve(Budget(rows=1), model, Targets())
    assert (own.source, own.asked) == ("method.ratio=0.1", round(0.1 * entries))
    assert own.achieved == sum(int(layer.weight.numel() * (1 - (1 - 0.1))) for layer in layers.values())
    whole = Supertuning(ratio=1.0)
    resolved = whole.solve(Budget(), model, Targets())
    assert resolved.achieved == entries == whole.trainable(whole.attach(tiny_llama(), resolved))["adapter"]
    clipped = Supertuning().solve(Budget(params=2 * entries, clip=True), model, Targets())
    assert clipped.achieved == entries
    # A share that leaves the smaller layers without an entry leaves them out.
    few = Supertuning()
    resolved = few.solve(Budget(params=14), model, Targets())
    assert 0 < len(resolved.values["target_modules"]) < 14
    assert few.trainable(few.attach(tiny_llama(), resolved))["adapter"] == resolved.achieved
    with pytest.raises(UserError, match=r"budget\.params=\d+ asks for"):
        Supertuning().solve(Budget(params=2 * entries), model, Targets())
    with pytest.raises(UserError, match=r"method\.ratio=0.* nothing to train"):
        Supertuning(ratio=0).solve(Budget(), model, Targets())


def test_what_super_tuning_cannot_adapt_is_refused():
    with pytest.raises(UserError, match=r"layer transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        Supertuning().solve(Budget(), tiny_gpt2(), Targets())
    model = tiny_llama()
    packed = torch.zeros(512, 1, dtype=torch.uint8)
    model.model.layers[1].self_attn.q_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj is quantised"):
        Supertuning().solve(Budget(), model, Targets())


def test_models_that_a_method_does_not_admit_are_refused_in_one_line():
    with pytest.raises(UserError, match="method=bitfit: LlamaForCausalLM has no bias .* method=ln_tuning or"):
        method_class("bitfit")().solve(Budget(), tiny_llama(), Targets())
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    other = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32))
    with pytest.raises(
        UserError, match=r"method=ia3: the roles of .* \(model type opt\) .* use another method"
    ) as error:
        Ia3().solve(Budget(), other, Targets())
    assert "channel" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"method=ia3: model.target_modules names none .* model.layers.0.mlp.down_proj"):
        Ia3().solve(Budget(), tiny_llama(), Targets(["q_proj"]))
    with pytest.raises(UserError, match="method=ln_tuning: Sequential has no normalisation"):
        method_class("ln_tuning")().solve(Budget(), nn.Sequential(nn.Linear(2, 2)), Targets())
    for wrong, said in (
        ({"r": 0}, "method.r=0"),
        ({"dropout": 1.0}, "method.dropout"),
        ({"d_initial": 0}, "d_initial=0"),
    ):
        with pytest.raises(UserError, match=said):
            method_class("vera")(**wrong)


def test_ia3_says_which_of_its_layers_are_left_out(caplog):
    resolved = Ia3().solve(Budget(), tiny_llama(), Targets(["q_proj", "v_proj"]))
    assert resolved.achieved == 2 * 16 and resolved.values["feedforward_modules"] == []
    (message,) = caplog.messages
    assert "leaves out the layers of keys and hidden units" in message
    caplog.clear()
    one = Ia3().solve(Budget(), tiny_llama(), Targets(layers_to_transform=[1]))
    assert one.achieved == 16 + 16 + 64 and not caplog.messages


def test_vera_shares_two_matrices_among_layers_of_all_shapes():
    _, _, wrapped, base, batch = prepared("llama", "vera", r=8, seed=3)
    shapes = {layer_shape(layer) for layer in eligible_layers(base, Targets()).values()}
    assert len(shapes) == 4
    layers = [module for module in wrapped.base_model.model.modules() if isinstance(module, BaseTunerLayer)]
    assert len({layer.vera_A["default"].data_ptr() for layer in layers}) == 1
    assert layers[0].vera_A["default"].shape == (8, 64) and layers[0].vera_B["default"].shape == (64, 8)
    other = prepared("llama", "vera", r=8, seed=4)[2]
    drawn = next(module for module in other.modules() if isinstance(module, BaseTunerLayer))
    assert not torch.equal(drawn.vera_A["default"], layers[0].vera_A["default"])


@pytest.mark.parametrize("name", ["vera", "ia3", "ln_tuning", "supertuning"])
def test_an_adapter_is_exported_merged_and_refused_as_lora_in_one_line(name, tmp_path):
    build, make, targets = CASES["bert"]
    build().save_pretrained(tmp_path / "base")
    tokenizer("bert").save_pretrained(tmp_path / "base")
    model, batch = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), make()
    method = method_class(name)(**settings_of(name))
    wrapped = method.attach(model, method.solve(Budget(params=3000), model, targets))
    train(wrapped, batch)
    expected = logits(wrapped, batch)
    method.save(wrapped, tmp_path / "adapter")
    out = export(str(tmp_path / "adapter"), "merged", tmp_path / "out", tmp_path / "runs")
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="only row-SFT turns into LoRA exactly; use --to merged") as error:
        export(str(tmp_path / "adapter"), "lora", tmp_path / "lora", tmp_path / "runs")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vera", "ia3", "supertuning"])
def test_the_change_of_w_is_that_of_merging(name):
    method, _, wrapped, base, batch = prepared("llama", name, **settings_of(name))
    train(wrapped, batch, optimizer=adamw(wrapped, 0.1))
    changed = of_adapter(wrapped)
    merged = method.merge(deepcopy(wrapped))
    x = torch.randn(5, 64)
    for layer_name, layer in changed.items():
        before, after = base.get_submodule(layer_name).weight, merged.get_submodule(layer_name).weight
        here = x[:, : before.shape[1]]
        expected = (here @ (after - before).T).square().sum().item()
        assert expected > 0 and layer.squared_change(here).item() == pytest.approx(expected, rel=1e-4)


def test_the_change_of_norms_is_refused_in_one_line():
    _, _, wrapped, _, _ = prepared("llama", "ln_tuning")
    with pytest.raises(UserError, match=r"input_layernorm is a LlamaRMSNorm, which is not measured; set it to null"):
        of_adapter(wrapped)


def test_norms_of_peft_are_trained_without_its_alarm(recwarn, caplog):
    prepared("bert", "ln_tuning")
    assert not [warning for warning in recwarn if "Unsupported layer" in str(warning.message)]


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "vera"), ("bert", "ia3"), ("bert", "bitfit"), ("llama", "ln_tuning"), ("llama", "supertuning")],
)
def test_the_plan_is_what_a_step_takes(family, name):
    assert abs(compare(small_case(family=family, method=name))["relative_error"]) < 0.002
