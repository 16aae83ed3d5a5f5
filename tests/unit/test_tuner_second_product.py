"""Where rows cannot be written: dropout, tied, foreign or trainable weights get a second product of k rows."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from rows import CHANNELS, FAMILIES, adapt, family, logits, random_ids, random_rows, same, shake, weights
from tiny import causal_batch, tiny_llama
from torch import nn

from rowsft import RowSFTConfig
from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


def forbid_writing(model):
    """Make every weight a piece of a larger storage, as a flat sharded parameter's pieces are."""
    for module in model.modules():
        if isinstance(module, RowSFTLayer):
            weight = module.get_base_layer().weight
            weight.data = torch.cat([weight.data.flatten(), weight.data.flatten()[:1]])[:-1].view_as(weight)


@channels
@families
def test_second_product_equals_written_values(name, channel):
    model, batch, targets = family(name, torch.float64)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    written = tuned(**batch)
    expected = torch.autograd.grad(written.loss, parameters)
    forbid_writing(tuned)
    before = weights(tuned)
    product = tuned(**batch)
    torch.testing.assert_close(product.logits, written.logits, rtol=1e-11, atol=1e-13)
    for grad, reference in zip(torch.autograd.grad(product.loss, parameters), expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-9, atol=1e-14)
    assert same(weights(tuned), before)


def test_dropout_acts_on_the_update_only_and_only_in_training():
    linear = nn.Linear(6, 5, dtype=torch.float64)
    plain = copy.deepcopy(linear)
    config = RowSFTConfig(target_modules=["0"], row_ids={"0": [3, 1]}, dropout=0.4)
    tuned = get_peft_model(nn.Sequential(linear), config)
    shake(tuned, scale=1.0)
    layer = tuned.base_model.model[0]
    x = torch.randn(7, 6, dtype=torch.float64)
    delta, bias = layer.row_sft_delta["default"].detach(), layer.row_sft_bias["default"].detach()

    tuned.train()
    torch.manual_seed(3)
    y = tuned(x)
    torch.manual_seed(3)
    kept = nn.functional.dropout(x, 0.4)
    expected = plain(x).detach()
    expected[:, [3, 1]] += kept @ delta.t() + bias
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(layer.row_sft_delta["default"].grad, upstream[:, [3, 1]].t() @ kept)
    torch.testing.assert_close(layer.row_sft_bias["default"].grad, upstream[:, [3, 1]].sum(0))
    assert torch.equal(layer.get_base_layer().weight, plain.weight)

    tuned.eval()
    whole = plain(x).detach()
    whole[:, [3, 1]] += x @ delta.t() + bias
    waiting = tuned(x)
    torch.testing.assert_close(waiting, whole)
    assert not torch.equal(layer.get_base_layer().weight, plain.weight)
    tuned.train()
    mean = torch.stack([tuned(x).detach() for _ in range(4000)]).mean(0)
    del waiting
    torch.testing.assert_close(mean, whole, rtol=0, atol=0.2)
    assert torch.equal(layer.get_base_layer().weight, plain.weight)


def test_dropout_on_rows_and_columns_together():
    linear = nn.Linear(6, 5, dtype=torch.float64)
    plain = copy.deepcopy(linear)
    config = RowSFTConfig(
        target_modules=["0"], channel="both", row_ids={"0": [3, 1]}, column_ids={"0": [5, 0, 2]}, dropout=0.4
    )
    tuned = get_peft_model(nn.Sequential(linear), config).train()
    shake(tuned, scale=1.0)
    layer = tuned.base_model.model[0]
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.manual_seed(3)
    y = tuned(x)
    torch.manual_seed(3)
    kept = nn.functional.dropout(x, 0.4)
    delta, columns = layer.row_sft_delta["default"].detach(), layer.row_sft_column_delta["default"].detach()
    expected = plain(x).detach()
    expected[:, [3, 1]] += kept @ delta.t() + layer.row_sft_bias["default"].detach()
    expected[:, [0, 2, 4]] += kept[:, [5, 0, 2]] @ columns.t()
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(layer.row_sft_delta["default"].grad, upstream[:, [3, 1]].t() @ kept)
    expected = upstream[:, [0, 2, 4]].t() @ kept[:, [5, 0, 2]]
    torch.testing.assert_close(layer.row_sft_column_delta["default"].grad, expected)
    assert torch.equal(layer.get_base_layer().weight, plain.weight)


def test_dropout_does_not_disturb_the_random_stream_when_off():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets).train()
    torch.manual_seed(0)
    tuned(**batch)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


def tied_llama():
    model = tiny_llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    batch = causal_batch()
    tuned = get_peft_model(
        model, RowSFTConfig(target_modules=["lm_head", "q_proj"], rows=2, row_ids={
            "lm_head": [5, 9],
            "model.layers.0.self_attn.q_proj": [1, 2],
            "model.layers.1.self_attn.q_proj": [3, 4],
        })
    )  # fmt: skip
    shake(tuned)
    return model, tuned, batch


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_a_tied_weight_is_never_written():
    before = weights(tiny_llama(tie_word_embeddings=True))
    model, tuned, batch = tied_llama()
    hidden = model.model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
    y = tuned(**batch)
    expected = hidden @ before["lm_head.weight"].t()
    delta = model.lm_head.row_sft_delta["default"]
    expected[..., [5, 9]] += hidden @ delta.t()
    torch.testing.assert_close(y.logits, expected)
    assert torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    y.loss.backward()
    assert delta.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:Input and output embeddings")
def test_merging_a_tied_weight_leaves_the_embedding_alone():
    before = weights(tiny_llama(tie_word_embeddings=True))
    model, tuned, batch = tied_llama()
    expected = logits(tuned, batch)
    tuned.merge_adapter()
    torch.testing.assert_close(logits(tuned, batch), expected)
    assert torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    tuned.unmerge_adapter()
    assert model.lm_head.get_base_layer().weight is model.model.embed_tokens.weight
    assert torch.equal(logits(tuned, batch), expected)
    plain = tuned.merge_and_unload()
    torch.testing.assert_close(logits(plain, batch), expected)
    assert torch.equal(plain.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    assert not plain.config.tie_word_embeddings


def test_one_module_under_two_names_is_not_written():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": shared, "second": shared})
    before = shared.weight.detach().clone()
    tuned = get_peft_model(model, RowSFTConfig(target_modules=["first"], row_ids={"first": [0]}))
    shake(tuned)
    x = torch.randn(2, 4)
    y = model["first"](x)
    assert torch.equal(model["second"](x), nn.functional.linear(x, before, shared.bias))
    assert not torch.equal(y, model["second"](x))


def test_a_trainable_base_weight_is_not_written():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    expected = logits(tuned, batch)
    layer = model.model.layers[0].self_attn.q_proj
    layer.get_base_layer().weight.requires_grad_(True)
    torch.testing.assert_close(logits(tuned, batch), expected)
    assert torch.equal(layer.get_base_layer().weight, family("llama")[0].model.layers[0].self_attn.q_proj.weight)


class FourBitWeight(nn.Parameter):
    """Stands for the weight types of quantisation libraries: a parameter class of their own."""


class QuantisedLinear(nn.Linear):
    """A linear layer that keeps its weight in integers with one scale, as quantised bases do."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.scale = linear.weight.detach().abs().max() / 7
        self.weight = FourBitWeight((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@channels
def test_quantised_base(dtype, channel):
    model, batch, targets = family("llama", dtype)
    ids = random_rows(model, targets)
    for name in ids:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantisedLinear(model.get_submodule(name)))
    base = logits(model, batch)
    before = weights(model)
    tuned = adapt(model, targets, channel=channel)
    assert torch.equal(logits(tuned, batch), base)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    tuned(**batch).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in tuned.parameters() if p.requires_grad)
    shake(tuned, scale=0.5)
    assert not torch.equal(logits(tuned, batch), base)
    with pytest.raises(UserError, match="cannot merge into layer model.layers.0.self_attn.q_proj"):
        tuned.merge_and_unload()
    assert same(weights(tuned.unload()), before)


def test_offloaded_base_weights():
    batch = causal_batch()
    expected = adapt(tiny_llama(), ["q_proj"])
    shake(expected)
    tuned = adapt(tiny_llama(), ["q_proj"])
    shake(tuned)
    for layer in tuned.modules():
        if isinstance(layer, RowSFTLayer):
            cpu_offload(layer.get_base_layer(), torch.device("cpu"))
    torch.testing.assert_close(logits(tuned, batch), logits(expected, batch))
    whole = tiny_llama()
    cpu_offload(whole, torch.device("cpu"))
    with pytest.raises(UserError, match="adapter 'default' in layer model.layers.0.self_attn.q_proj are offloaded"):
        adapt(whole, ["q_proj"])(**batch)


@channels
def test_forward_and_backward_on_the_meta_device(channel):
    model, batch, targets = family("llama")
    config = RowSFTConfig(target_modules=targets, channel=channel, **random_ids(model, targets, channel))
    tuned = get_peft_model(model.to("meta"), config)
    loss = tuned(**{key: batch[key].to("meta") for key in ("input_ids", "labels")}).loss
    loss.backward()
    assert all(p.grad.shape == p.shape for p in tuned.parameters() if p.requires_grad)
