"""CSD_rel of every method against a brute force in float64: token by token, from the merged weights."""

import copy

import pytest
import torch
from peft import HiraConfig, LoraConfig, MissConfig, OFTConfig, ShiraConfig, get_peft_model
from refusals import refusal
from tiny import causal_batch, tiny_gpt2, tiny_llama

from rowsft import RowSFTConfig
from rowsft.layers.matrix import as_matrix
from rowsft.methods.weight_change import of_adapter, of_weights, total, watched

TARGETS = ["q_proj", "v_proj", "down_proj"]
ROWS = {"importance": "l2", "init_weights": False}
CONFIGS = {
    "rows": lambda: RowSFTConfig(rows=3, **ROWS),
    "columns": lambda: RowSFTConfig(rows=3, channel="columns", **ROWS),
    "both": lambda: RowSFTConfig(rows=3, channel="both", **ROWS),
    "lora": lambda: LoraConfig(r=2, lora_alpha=3, init_lora_weights=False),
    "dora": lambda: LoraConfig(r=2, use_dora=True, init_lora_weights=False),
    "shira": lambda: ShiraConfig(r=2, init_weights=False),
    "rslora": lambda: LoraConfig(r=2, lora_alpha=3, use_rslora=True, init_lora_weights=False),
    "hira": lambda: HiraConfig(r=2, init_weights=False),
    "miss": lambda: MissConfig(r=2, init_weights=False),
    "oft": lambda: OFTConfig(r=0, oft_block_size=4, init_weights=False),
}


def adapted(kind, build=tiny_llama, targets=TARGETS, dtype=torch.float64):
    config = CONFIGS[kind]()
    config.target_modules = set(targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(build(dtype), config, autocast_adapter_dtype=dtype != torch.float64)
        for name, value in model.named_parameters():
            # DoRA starts from the norms that W has, which would leave its magnitudes untried.
            if value.requires_grad and "magnitude" in name:
                value.data += 0.3 * torch.randn_like(value)
    return model.eval()


def brute_force(plain, tuned, names, batch, counted):
    """{layer: (sum of ‖ΔW h‖², sum of ‖W0 h‖²)}, one token and one layer at a time."""
    inputs = {}
    handles = [
        plain.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in names
    ]
    with torch.no_grad():
        plain(**batch)
    for handle in handles:
        handle.remove()
    found = {}
    for name in names:
        layer = plain.get_submodule(name)
        original = as_matrix(layer, layer.weight.detach())
        change = as_matrix(layer, tuned.get_submodule(name).weight.detach()) - original
        pairs = [(change @ h, original @ h) for h in inputs[name][counted]]
        found[name] = tuple(sum(float(y @ y) for y in side) for side in zip(*pairs, strict=True))
    return found


def tokens():
    batch = causal_batch(3, 9)
    del batch["labels"]
    counted = batch["attention_mask"].bool()
    # Context is read, and does not count.
    counted[0, :4] = False
    return batch, counted


def measured(model, layers, batch, counted):
    with torch.no_grad(), watched(layers, lambda: counted) as sums:
        model(**batch)
    return sums


@pytest.mark.parametrize("kind", CONFIGS)
def test_csd_is_that_of_the_merged_weights(kind):
    model, (batch, counted) = adapted(kind), tokens()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    layers = of_adapter(model)
    with model.disable_adapter():
        sums = measured(model, layers, batch, counted)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    tuned = copy.deepcopy(model).merge_and_unload()
    expected = brute_force(tiny_llama(torch.float64), tuned, list(layers), batch, counted)
    assert len(expected) == 6 and set(sums) == set(expected)
    for name, pair in expected.items():
        assert min(pair) > 0 and sums[name] == pytest.approx(pair, rel=1e-9), name
        assert sums[name].csd_rel == pytest.approx(pair[0] / pair[1], rel=1e-9)
    changed, original = (sum(side) for side in zip(*expected.values(), strict=True))
    assert total(sums).csd_rel == pytest.approx(changed / original, rel=1e-9)


@pytest.mark.parametrize("kind", ["rows", "columns", "both"])
def test_rows_are_multiplied_alone_and_come_to_the_dense_product(kind):
    model = adapted(kind)
    for name, layer in of_adapter(model).items():
        x = torch.randn(7, layer.layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        tuner_layer = model.get_base_model().get_submodule(name)
        dense = tuner_layer.get_delta_weight("default")
        assert layer.squared_change(x).item() == pytest.approx((x @ dense.T).square().sum().item(), rel=1e-12)
    if kind == "rows":
        sizes = []
        real = torch.nn.functional.linear
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.nn.functional, "linear", lambda *args: sizes.append(tuple(args[1].shape)) or real(*args)
            )
            layer.squared_change(x)
        assert sizes == [(3, layer.layer.in_features)]


def test_a_conv1d_with_a_bias_and_16_bit_weights():
    targets = ["c_attn", "c_fc"]
    model, (batch, counted) = adapted("rows", tiny_gpt2, targets), tokens()
    layers = of_adapter(model)
    with model.disable_adapter():
        sums = measured(model, layers, batch, counted)
    tuned = copy.deepcopy(model).merge_and_unload()
    expected = brute_force(tiny_gpt2(torch.float64), tuned, list(layers), batch, counted)
    for name, pair in expected.items():
        assert sums[name] == pytest.approx(pair, rel=1e-9), name
    # A change far below a 16-bit weight's last digit is seen none the less.
    half = adapted("lora", dtype=torch.bfloat16)
    with torch.no_grad():
        for name, value in half.named_parameters():
            if "lora_B" in name:
                value.mul_(1e-4)
    exact = copy.deepcopy(half).double()
    found = []
    for each in (half, exact):
        layers = of_adapter(each)
        with each.disable_adapter(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=each is half):
            found.append(total(measured(each, layers, batch, counted)).csd_rel)
    assert found[0] == pytest.approx(found[1], rel=0.02) and 0 < found[1] < 1e-6


def test_weights_that_were_trained_in_place():
    plain, (batch, counted) = tiny_llama(torch.float64), tokens()
    tuned = tiny_llama(torch.float64, seed=5)
    names = [name for name, _ in plain.named_modules() if name.endswith(("o_proj", "up_proj"))]
    after = {id(plain.get_submodule(name).weight): tuned.get_submodule(name).weight for name in names}
    layers = of_weights({name: plain.get_submodule(name) for name in names}, lambda weight: after[id(weight)])
    sums = measured(plain, layers, batch, counted)
    expected = brute_force(plain, tuned, names, batch, counted)
    for name, pair in expected.items():
        assert sums[name] == pytest.approx(pair, rel=1e-9), name
    same = of_weights({name: plain.get_submodule(name) for name in names}, torch.Tensor.detach)
    assert total(measured(plain, same, batch, counted)).csd_rel == 0


def test_inputs_that_are_not_one_a_token_are_refused():
    model, (batch, _) = adapted("lora"), tokens()
    layers = of_adapter(model)
    text = refusal(lambda: measured(model, layers, batch, torch.ones(3, 8, dtype=torch.bool)))
    assert "not one a token" in text and "q_proj" in text
    assert not any(each.layer._forward_hooks for each in layers.values()), "hooks come off"
