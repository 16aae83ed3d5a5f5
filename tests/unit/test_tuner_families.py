"""Every channel on "all-linear" of eleven model families, against the plain model's own gradients."""

import copy

import pytest
import torch
from families import MORE_FAMILIES
from peft import get_peft_model
from rows import add_update, layer_ids, logits, others_of, out_rows, row_layers, same, shake, weights

from rowsft import RowSFTConfig


def tuned_family(name, channel, dtype):
    kind = MORE_FAMILIES[name]
    model = kind.build(dtype)
    plain = copy.deepcopy(model)
    config = RowSFTConfig(rows=5, channel=channel, importance="l2", target_modules="all-linear")
    return plain, get_peft_model(model, config), kind.batch(dtype), kind.layers


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
@pytest.mark.parametrize("channel", ["out", "in", "half"])
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_step_zero_gradients_and_merging(name, channel):
    plain, tuned, batch, count = tuned_family(name, channel, torch.float64)
    before = weights(plain)
    layers = row_layers(tuned)
    assert len(layers) == count
    assert torch.equal(logits(tuned, batch), logits(plain, batch))

    shake(tuned)
    for layer_name, layer in layers.items():
        add_update(plain.get_submodule(layer_name), layer)
    plain_loss, loss = plain(**batch).loss, tuned(**batch).loss
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)
    plain_loss.backward()
    loss.backward()
    for layer_name, layer in layers.items():
        reference = plain.get_submodule(layer_name)
        full = out_rows(reference, reference.weight.grad)
        rows, columns = layer_ids(layer)
        if rows:
            torch.testing.assert_close(layer.row_sft_delta["default"].grad, full[rows], rtol=1e-8, atol=1e-13)
        if columns:
            grad = layer.row_sft_column_delta["default"].grad
            torch.testing.assert_close(grad, full[others_of(rows, len(full))][:, columns], rtol=1e-8, atol=1e-13)

    unmerged = logits(tuned, batch)
    tuned.merge_adapter()
    assert torch.equal(logits(tuned, batch), unmerged)
    tuned.unmerge_adapter()
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize("name", ["t5", "deberta_v3"])
def test_sixteen_bit_models_start_as_they_were(name):
    """T5 keeps wo in 32 bit where the rest is in 16; DeBERTa calls its projections twice a layer."""
    plain, tuned, batch, _ = tuned_family(name, "half", torch.bfloat16)
    assert torch.equal(logits(tuned, batch), logits(plain, batch))
    tuned(**batch).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in tuned.parameters() if p.requires_grad)
