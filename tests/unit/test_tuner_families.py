"""Every channel on "all-linear" of eleven model families, against the plain model's own gradients."""

import copy

import pytest
import torch
from dense import dense_gradients, dense_model, values
from families import MORE_FAMILIES
from peft import get_peft_model
from rows import logits, row_layers, same, shake, weights

from rowsft import RowSFTConfig


def tuned_family(name, channel, dtype):
    kind = MORE_FAMILIES[name]
    model = kind.build(dtype)
    plain = copy.deepcopy(model)
    config = RowSFTConfig(rows=5, channel=channel, importance="l2", target_modules="all-linear")
    return plain, get_peft_model(model, config), kind.batch(dtype), kind.layers


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
@pytest.mark.parametrize("channel", ["rows", "columns", "both"])
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_step_zero_gradients_and_merging(name, channel):
    plain, tuned, batch, count = tuned_family(name, channel, torch.float64)
    before = weights(plain)
    assert len(row_layers(tuned)) == count
    assert torch.equal(logits(tuned, batch), logits(plain, batch))

    shake(tuned)
    dense = dense_model(plain, tuned)
    dense_loss, loss = dense(**batch).loss, tuned(**batch).loss
    torch.testing.assert_close(loss, dense_loss, rtol=1e-12, atol=0)
    dense_loss.backward()
    loss.backward()
    expected = dense_gradients(dense, tuned)
    for key, parameter in values(tuned).items():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-8, atol=1e-13)

    unmerged = logits(tuned, batch)
    tuned.merge_adapter()
    assert torch.equal(logits(tuned, batch), unmerged)
    tuned.unmerge_adapter()
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize("name", ["t5", "deberta_v3"])
def test_sixteen_bit_models_start_as_they_were(name):
    """T5 keeps wo in 32 bit where the rest is in 16; DeBERTa calls its projections twice a layer."""
    plain, tuned, batch, _ = tuned_family(name, "both", torch.bfloat16)
    assert torch.equal(logits(tuned, batch), logits(plain, batch))
    tuned(**batch).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in tuned.parameters() if p.requires_grad)
