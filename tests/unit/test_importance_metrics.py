"""Every metric against brute force in float64, along both axes, on a Llama, a BERT and a GPT-2."""

import pytest
import torch
from scoring import (
    AXES,
    CASES,
    causal_batches,
    classification_batches,
    close_axes,
    item_losses,
    layers_of,
    mean_gradient,
    oriented,
    sample_gradients,
    score_axes,
    summed,
    weights,
)
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from rowsft.importance import layer_generator


def taylor(model, batches):
    gradient = mean_gradient(model, batches)
    return summed({name: (weight * gradient[name]).abs() for name, weight in weights(model).items()})


def taylor_row(model, batches):
    gradient = mean_gradient(model, batches)
    scores = summed({name: weight * gradient[name] for name, weight in weights(model).items()})
    return {axis: {name: score.abs() for name, score in layers.items()} for axis, layers in scores.items()}


def grad2(model, batches):
    return summed({name: gradient.square() for name, gradient in mean_gradient(model, batches).items()})


def mean_square(model, batches):
    samples = sample_gradients(model, batches)
    return {name: sum(sample[name].square() for sample in samples) / len(samples) for name in samples[0]}


def fisher(model, batches):
    second = mean_square(model, batches)
    return summed({name: weight.square() * second[name] for name, weight in weights(model).items()})


def taylor2(model, batches):
    first, second = mean_gradient(model, batches), mean_square(model, batches)
    return summed({name: (w * first[name] - 0.5 * w * w * second[name]).abs() for name, w in weights(model).items()})


def wanda(model, batches):
    """Squares of every input of every unpadded token, gathered one token at a time."""
    layers = layers_of(model)
    inputs = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(lambda _, args, __, name=name: inputs[name].append(args[0].detach()))
        for name, layer in layers.items()
    ]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    scores = {}
    for name, weight in weights(model).items():
        squares = 0
        for x, batch in zip(inputs[name], batches, strict=True):
            tokens = x.reshape(*batch["attention_mask"].shape, -1)
            for row, keep in zip(tokens, batch["attention_mask"], strict=True):
                squares = squares + sum(token**2 for token, kept in zip(row, keep, strict=True) if kept)
        scores[name] = weight.abs() * squares.sqrt()
    return summed(scores)


def l1(model, batches):
    return summed({name: weight.abs() for name, weight in weights(model).items()})


def l2(model, batches):
    return summed({name: weight.square() for name, weight in weights(model).items()})


def largest(scores):
    return max(float(score.max()) for of_layer in scores.values() for score in of_layer.values())


REFERENCES = {f.__name__: f for f in (l1, l2, taylor, taylor_row, grad2, fisher, taylor2, wanda)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", REFERENCES)
def test_metric_is_what_brute_force_gives(metric, case):
    build, make = CASES[case]
    model = build(torch.float64)
    expected = REFERENCES[metric](model, make())
    # Transformers takes losses in float32, which shows where a row's terms cancel out.
    atol = 1e-6 * largest(taylor(model, make())) if metric == "taylor_row" else 0
    close_axes(score_axes(model, metric, make()), expected, atol=atol)


@pytest.mark.parametrize("metric", ["taylor", "taylor_row", "grad2", "fisher", "taylor2", "wanda"])
def test_float32_is_close_to_float64(metric):
    model, batches = tiny_gpt2(), causal_batches()
    expected = REFERENCES[metric](tiny_gpt2().double(), batches)
    close_axes(score_axes(model, metric, batches), expected, rtol=1e-3, atol=1e-5 * largest(expected))


@pytest.mark.parametrize("metric", ["taylor", "taylor_row", "fisher", "wanda", "random", "l1"])
def test_one_axis_gives_what_both_do(metric):
    both = score_axes(tiny_gpt2(), metric, causal_batches())
    for axis in AXES:
        alone = score_axes(tiny_gpt2(), metric, causal_batches(), axes=(axis,))
        assert alone.keys() == both.keys()
        assert all(of_layer.keys() == {axis} for of_layer in alone.values())
        assert all(torch.equal(alone[name][axis], both[name][axis]) for name in both)
    for name, layer in layers_of(tiny_gpt2()).items():
        assert (len(both[name]["rows"]), len(both[name]["columns"])) == (layer.nf, layer.nx)


def test_random_draws_rows_and_columns_apart():
    scores = score_axes(tiny_llama(), "random", seed=3)
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(scores[name]["rows"], torch.rand(32, generator=layer_generator(3, name)))
    assert not torch.equal(scores[name]["rows"], scores[name]["columns"])
    assert not torch.equal(scores[name]["columns"], scores["model.layers.1.self_attn.q_proj"]["columns"])


def test_samples_without_a_labelled_token_are_skipped():
    model, batches = tiny_llama(torch.float64), causal_batches()
    batches[1]["labels"][0] = -100
    for metric in (fisher, taylor2):
        close_axes(score_axes(model, metric.__name__, batches), metric(model, batches))


def test_per_sample_runs_keep_what_has_no_sample_dimension():
    model, batches = tiny_llama(torch.float64), causal_batches()
    expected = score_axes(model, "fisher", batches)
    for batch in batches:
        length = batch["input_ids"].shape[1]
        batch.update(logits_to_keep=0, use_cache=False, position_ids=torch.arange(length).unsqueeze(0))
    close_axes(score_axes(model, "fisher", batches), expected)


def test_taylor_row_adds_up_the_calls_of_a_layer_and_the_layers_of_a_weight():
    model, batches = tiny_llama(torch.float64), [{**batch, "use_cache": False} for batch in causal_batches()]
    model.model.layers[1] = model.model.layers[0]
    first, second = model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj
    second.weight = first.weight
    layers = {name: layer for name, layer in layers_of(model).items() if "self_attn" in name}
    assert all(".0." in name for name in layers)
    for metric in ("taylor_row", "taylor", "fisher", "taylor2"):
        found = score_axes(model, metric, batches, group_bytes=0)
        expected = REFERENCES[metric](model, batches)
        close_axes(found, expected, atol=1e-6 * largest(expected))
        assert torch.equal(*(found[f"model.layers.0.mlp.{part}_proj"]["rows"] for part in ("gate", "up")))


def test_taylor_row_of_bfloat16_is_close_to_the_weight_gradient():
    model, batches = tiny_bert(torch.bfloat16), classification_batches()
    found = score_axes(model, "taylor_row", batches)
    expected = taylor_row(tiny_bert(torch.bfloat16).double(), batches)
    for axis in AXES:
        left, right = (torch.cat([scores[name][axis] for name in found]).double() for scores in (found, expected))
        assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.99


def test_wanda_needs_no_labels():
    model, batches = tiny_gpt2(torch.float64), causal_batches()
    bare = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    close_axes(score_axes(model, "wanda", bare), score_axes(model, "wanda", batches))


def test_wanda_counts_every_token_where_there_is_no_mask():
    model, batches = tiny_llama(torch.float64), causal_batches()
    full = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
    bare = [{"input_ids": batch["input_ids"]} for batch in batches]
    close_axes(score_axes(model, "wanda", bare), wanda(model, full))


@pytest.mark.parametrize("given", [True, False])
def test_wanda_of_an_encoder_decoder_leaves_out_the_padding_of_both_sides(given):
    """Equal lengths on both sides, so that shapes alone cannot tell the masks apart."""
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).double().eval()
    ids, targets = torch.randint(1, 50, (2, 6)), torch.randint(1, 50, (2, 6))
    mask, decoder_mask = torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)
    mask[1, 2:] = 0
    decoder_mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": targets.masked_fill(decoder_mask == 0, -100)}
    if given:
        batch["decoder_attention_mask"] = decoder_mask
    found = score_axes(model, "wanda", [batch])
    seen = {}
    names = {
        "encoder.block.0.layer.0.SelfAttention.q": mask,
        "decoder.block.0.layer.0.SelfAttention.q": decoder_mask,
        "decoder.block.0.layer.1.EncDecAttention.q": decoder_mask,
        "decoder.block.0.layer.1.EncDecAttention.k": mask,
        "decoder.block.0.layer.1.EncDecAttention.v": mask,
        "decoder.block.0.layer.2.DenseReluDense.wo": decoder_mask,
    }
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
    model(**batch)
    for name, kept in names.items():
        norm = (seen[name] ** 2 * kept.unsqueeze(-1)).sum((0, 1)).sqrt()
        expected = (model.get_submodule(name).weight.abs() * norm).sum(1)
        torch.testing.assert_close(found[name]["rows"], expected.float(), rtol=1e-6, atol=0)


def test_wanda_of_a_layer_that_sees_flat_tokens():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x, attention_mask):
            return self.layer(x.flatten(0, 1))

    model, x = Flat(), torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    found = score_axes(model, "wanda", [{"x": x, "attention_mask": mask}])["layer"]["columns"]
    norm = (x**2 * mask.unsqueeze(-1)).sum((0, 1)).sqrt()
    torch.testing.assert_close(found, (model.layer.weight.abs().sum(0) * norm).detach().float())


def test_brute_force_losses_are_the_models_own():
    for build, make in CASES.values():
        model, batch = build(torch.float64), make()[0]
        own = model(**batch).loss.double()
        torch.testing.assert_close(torch.cat(item_losses(model, batch)).mean(), own, rtol=1e-6, atol=0)
    layer = layers_of(tiny_gpt2())["transformer.h.0.mlp.c_fc"]
    assert oriented(layer, layer.weight).shape == (64, 32)
