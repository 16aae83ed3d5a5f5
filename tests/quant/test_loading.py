"""A base packed in 4 or 8 bits on loading: which layers, what they compute, and that evaluation leaves them alone."""

import pytest
import torch
from quantised_bases import KINDS, dense, loaded, settings, stood_for
from tiny import causal_batch, classification_batch, tiny_gpt2
from torch import nn

from rowsft import score
from rowsft.errors import UserError
from rowsft.layers import packing, quantised
from rowsft.models.loading import load
from rowsft.models.originals import originals_of
from rowsft.models.quantising import quantise
from rowsft.tasks.heads import CAUSAL_LM


def batch_of(model):
    return causal_batch() if model.config.model_type == "llama" else classification_batch()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_every_layer_outside_of_the_head_is_packed_and_nothing_else(request, family, kind):
    model = loaded(request.getfixturevalue(family), kind)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    packed = quantised.quantised_layers(model)
    left = set(linears) - set(packed)
    assert left == ({"lm_head"} if family == "llama" else {"classifier", "bert.pooler.dense"})
    assert len(packed) == (14 if family == "llama" else 12)
    others = [p for name, p in model.named_parameters() if name.removesuffix(".weight") not in packed]
    assert all(type(parameter) is nn.Parameter and parameter.dtype is torch.float32 for parameter in others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_it_computes_what_its_codes_and_scales_say(request, family, kind):
    model = loaded(request.getfixturevalue(family), kind)
    batch = batch_of(model)
    plain = dense(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits.double(), plain(**batch).logits, rtol=1e-4, atol=1e-5)
    for name, layer in quantised.quantised_layers(model).items():
        torch.testing.assert_close(
            quantised.dequantised(layer).double(), plain.get_submodule(name).weight, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_checkpoint(llama, kind):
    """Within half a step of each block's own scale (nf4: of its widest gap), or of each row's."""
    model, original = loaded(llama, kind), loaded(llama, None)
    for name, layer in quantised.quantised_layers(model).items():
        weight = original.get_submodule(name).weight.detach()
        error = (stood_for(layer) - weight).abs()
        if kind == "int8":
            assert (error <= 0.51 * weight.abs().amax(1, keepdim=True) / 127).all()
        else:
            most = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
            assert (error.reshape(-1, 64) <= (0.16 if kind == "nf4" else 0.18) * most).all()


def test_a_run_that_is_not_quantised_is_what_it_was(llama):
    model = loaded(llama, None)
    assert originals_of(model) is None
    assert not quantised.quantised_layers(model)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_gradients_and_values_are_the_same_after_an_evaluation(llama, kind, monkeypatch):
    """As on a processor with AVX512-BF16, which bitsandbytes asks for when it makes a layer."""
    import bitsandbytes as bnb

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    model, batch = loaded(llama, kind), causal_batch()

    def seen():
        model.train()
        x = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        model(inputs_embeds=x, labels=batch["labels"]).loss.backward()
        values = {name: quantised.dequantised(each) for name, each in quantised.quantised_layers(model).items()}
        return {**score(model, "l2", target_modules=["q_proj", "down_proj"]), "gradient": x.grad, **values}

    before = seen()
    with torch.no_grad():
        model.eval()(**batch)
    after = seen()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_fault_is_seen_where_layers_are_left_alone(llama, monkeypatch):
    import bitsandbytes as bnb

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    layer = packing.packed(nn.Linear(64, 128), "nf4").eval()
    before = stood_for(layer)
    try:
        with torch.no_grad():
            layer(torch.zeros(2, 64))
    except RuntimeError:
        # The kernel itself is missing on this processor; the repacking comes before it.
        pass
    assert layer.weight.quant_state.packing_format_for_cpu
    quantised.keep_layout(layer)
    torch.testing.assert_close(stood_for(layer), before, rtol=0.01, atol=0)


def test_double_quantisation_takes_fewer_bytes(llama):
    def held(kind):
        layers = quantised.quantised_layers(loaded(llama, kind)).values()
        return sum(each.weight.quant_state.absmax.nbytes for each in layers)

    assert held("nf4_double") * 4 == held("nf4")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_multiplies_in_the_dtype_of_the_model(llama, dtype):
    model = loaded(llama, "nf4", dtype=dtype)
    layer = model.model.layers[0].self_attn.q_proj
    kind = getattr(torch, dtype)
    assert layer.compute_dtype is kind
    assert quantised.dequantised(layer).dtype is kind
    assert layer(torch.ones(1, 64, dtype=kind)).dtype is kind


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_originals_are_read_again_layer_by_layer(request, family, kind):
    folder = request.getfixturevalue(family)
    model, original = loaded(folder, kind), loaded(folder, None)
    originals = originals_of(model)
    # Where tensors are found by name the whole model is not made again.
    originals._plain = None
    layers = quantised.quantised_layers(model)
    read = dict(originals.read(model, layers))
    assert read.keys() == layers.keys()
    assert all(torch.equal(weight, original.get_submodule(name).weight) for name, weight in read.items())


def test_originals_of_random_weights_are_drawn_again(llama):
    model, original = loaded(llama, "nf4", pretrained=False), loaded(llama, None, pretrained=False)
    layers = quantised.quantised_layers(model)
    read = dict(originals_of(model).read(model, layers))
    assert all(torch.equal(weight, original.get_submodule(name).weight) for name, weight in read.items())


def test_a_checkpoint_that_has_changed_is_not_believed(tmp_path):
    from quantised_bases import save_llama
    from tiny import tiny_llama

    model = loaded(save_llama(tmp_path))
    tiny_llama(seed=1, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="layers.0.self_attn.q_proj are not those that the quantised base was made"):
        dict(originals_of(model).read(model, quantised.quantised_layers(model)))


def test_what_cannot_be_quantised_is_one_line(llama, monkeypatch):
    with pytest.raises(UserError, match="GPT2LMHeadModel has no nn.Linear layer outside of its head .*Conv1D"):
        quantise(tiny_gpt2(), "nf4", [], "tiny")
    model = loaded(llama)
    with pytest.raises(UserError, match="the weights of tiny are quantised already"):
        quantise(model, "nf4", [], "tiny")
    monkeypatch.setattr("rowsft.models.quantising.find_spec", lambda name: None)
    with pytest.raises(UserError, match="model.quantize=nf4 needs bitsandbytes, which is not installed; pip install"):
        load(settings(llama, "nf4"), CAUSAL_LM)
