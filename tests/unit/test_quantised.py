"""A 4-bit base: its weights are read as what they are, before and after evaluation. bitsandbytes is no dependency."""

import copy

import pytest
import torch
from peft import get_peft_model
from rows import train
from tiny import causal_batch, tiny_llama
from torch import nn

from rowsft import RowSFTConfig, attach, score
from rowsft.errors import UserError
from rowsft.methods.base import method_class
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets

TARGETS = ["q_proj", "down_proj"]
#: bitsandbytes repacks blocks of 64 inputs and 32 outputs.
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def replaced(model, make):
    """`model` with make(layer) in the place of every projection."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name.endswith("_proj"):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make(layer))
    return model


@torch.no_grad()
def evaluate(model, batch):
    return model.eval()(**batch).logits


class Repacked(nn.Linear):
    """Stands for a 4-bit layer on a processor with AVX512-BF16: evaluation leaves its weight in another layout."""

    support_avx512bf16_for_cpu = True

    def forward(self, x):
        y = super().forward(x)
        if self.support_avx512bf16_for_cpu and not self.training:
            self.weight.data = self.weight.data.flip(0)
        return y


def repacked(layer):
    made = Repacked(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.load_state_dict(layer.state_dict())
    return made


def test_scoring_keeps_the_layout_of_the_weights():
    model, batch = replaced(tiny_llama(), repacked), causal_batch()
    before = score(tiny_llama(), "l2", target_modules=TARGETS)
    score(model, "wanda", calibration=[batch], target_modules=TARGETS)
    evaluate(model, batch)
    after = score(model, "l2", target_modules=TARGETS)
    assert all(torch.equal(after[name], scores) for name, scores in before.items())


def test_wrapping_keeps_the_layout_of_every_layer_of_the_model():
    model, batch = replaced(tiny_llama(), repacked), causal_batch()
    expected = evaluate(tiny_llama(), batch)
    tuned = get_peft_model(model, RowSFTConfig(rows=2, target_modules=["q_proj"], importance="random"))
    for _ in range(2):
        assert torch.equal(evaluate(tuned, batch), expected)


class Encoded(nn.Linear):
    """Stands for a quantised layer of an unknown kind: the weight is bytes of another shape."""

    def forward(self, x):
        return nn.functional.linear(x, self.plain, self.bias)


def encoded(layer):
    made = Encoded(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.plain = layer.weight.detach()
    made.weight = nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    return made


def test_a_metric_that_reads_no_weights_needs_none():
    tuned = get_peft_model(
        replaced(tiny_llama(), encoded), RowSFTConfig(rows=2, importance="random", target_modules=TARGETS)
    )
    assert tuned(**causal_batch()).loss.requires_grad
    with pytest.raises(UserError, match="holds torch.uint8 weights of shape .* cannot be unpacked for scoring"):
        get_peft_model(replaced(tiny_llama(), encoded), RowSFTConfig(rows=2, target_modules=TARGETS))


def test_full_fine_tuning_needs_real_numbers():
    with pytest.raises(UserError, match=r"method=full: model\..*weight holds torch.uint8 values \(quantised\)"):
        method_class("full")().solve(Budget(), replaced(tiny_llama(), encoded), Targets())


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes", reason="4-bit layers are those of bitsandbytes, which is not installed")


def four_bit(bnb, dtype, double=False, compute=torch.bfloat16, seed=0):
    """A tiny model whose projections have 4-bit weights."""

    def make(layer):
        made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=compute)
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=double
        )
        return made.to("cpu")

    return replaced(tiny_llama(dtype, seed, **WIDE), make)


def unpacked(bnb, model):
    """The model in 32 bit, with plain layers that hold what the 4-bit ones stand for."""

    def make(layer):
        made = nn.Linear(layer.in_features, layer.out_features, bias=False)
        made.weight.data = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        return made

    return replaced(copy.deepcopy(model).float(), make)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("importance", ["l1", "l2", "lift(rank=4)", "wanda"])
def test_scores_are_the_same_after_an_evaluation(bnb, importance, double):
    batch, settings = causal_batch(), {"target_modules": TARGETS, "calibration": [causal_batch()]}
    plain = score(unpacked(bnb, four_bit(bnb, torch.bfloat16, double)), importance, **settings)
    used = four_bit(bnb, torch.bfloat16, double)
    # The user's own, before anything of this package has seen the model: its scales are rounded to 8 bits by it.
    evaluate(used, batch)
    for model, tolerance in ((four_bit(bnb, torch.bfloat16, double), 0.02), (used, 0.03)):
        for _ in range(2):
            scores = score(model, importance, **settings)
            for name, expected in plain.items():
                torch.testing.assert_close(scores[name], expected, rtol=tolerance, atol=0)
            evaluate(model, batch)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_taylor_row_reads_four_bit_weights(bnb, dtype, compute):
    model = four_bit(bnb, dtype, compute=compute)
    expected = score(unpacked(bnb, model), "taylor_row", [causal_batch()], TARGETS)
    scores = score(model, "taylor_row", [causal_batch()], TARGETS)
    for name, of_layer in expected.items():
        exact = dtype is compute is torch.float32
        torch.testing.assert_close(
            scores[name], of_layer, rtol=1e-3 if exact else 0.2, atol=(1e-5 if exact else 0.1) * of_layer.max().item()
        )


@pytest.mark.parametrize("importance", ["random", "l1", "l2", "lift(rank=4)"])
def test_peft_alone_chooses_and_training_goes_on_after_an_evaluation(bnb, importance):
    model, batch = four_bit(bnb, torch.bfloat16), causal_batch()
    before = list(model.parameters())
    settings = {"rows": 2, "importance": importance, "target_modules": TARGETS}
    tuned = get_peft_model(model, RowSFTConfig(**settings))
    ids = dict(attach(four_bit(bnb, torch.bfloat16), RowSFTConfig(**settings)).named_buffers())
    assert all(torch.equal(buffer, ids[name]) for name, buffer in tuned.named_buffers() if "row_sft_ids" in name)
    # Scoring has put no other parameters in their places.
    held = {id(parameter) for parameter in tuned.parameters()}
    assert all(id(parameter) in held for parameter in before)
    for _ in range(2):
        evaluate(tuned, batch)
        train(tuned.train(), batch, steps=1)
        for name, parameter in tuned.named_parameters():
            assert not name.endswith("row_sft_delta.default") or parameter.abs().max() > 0, name


def test_merging_a_four_bit_base_is_refused(bnb):
    tuned = get_peft_model(four_bit(bnb, torch.bfloat16), RowSFTConfig(rows=2, target_modules=TARGETS))
    with pytest.raises(UserError, match="cannot merge into layer .*Params4bit"):
        tuned.merge_and_unload()
