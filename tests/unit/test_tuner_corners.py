"""Corners in which a layer was once silently wrong, or broke: collections, copies, traces, hooks, double gradients."""

import copy

import pytest
import torch
from peft import get_peft_model
from rows import shake
from torch import nn

from rowsft import RowSFTConfig
from rowsft.tuner import contents as contents_module
from rowsft.tuner.patch import Patch

ROWS = {"0": [3, 1], "2": [0, 4]}


def model(**settings):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 7)).double()
    tuned = get_peft_model(plain, RowSFTConfig(target_modules=["0", "2"], row_ids=ROWS, **settings))
    shake(tuned, scale=0.5)
    return tuned


def batch():
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(tuned):
    return [parameter for parameter in tuned.parameters() if parameter.requires_grad]


def merged(tuned):
    return copy.deepcopy(tuned).merge_and_unload()


def base_weights(tuned):
    return [layer.base_layer.weight.clone() for layer in (tuned.base_model.model[0], tuned.base_model.model[2])]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_gradient_is_that_of_a_forward_which_hooks_change(when, waits):
    tuned, x = model(), batch()
    layer = tuned.base_model.model[0]
    out = tuned(x) if waits else None
    if when == "after" and not waits:
        tuned(x).sum().backward()
    layer.base_layer.register_forward_hook(lambda module, args, output: 3 * output)
    y = tuned(x)
    weights = [layer.base_layer.weight, layer.base_layer.bias]
    delta, bias = layer.row_sft_delta["default"], layer.row_sft_bias["default"]
    del out
    hidden = (3 * nn.functional.linear(x, *weights)).index_add(1, layer.row_sft_ids["default"], x @ delta.t() + bias)
    expected = merged(tuned)[2](nn.functional.silu(hidden))
    torch.testing.assert_close(y, expected)
    own = torch.autograd.grad(y.square().sum(), delta)[0]
    torch.testing.assert_close(own, torch.autograd.grad(expected.square().sum(), delta)[0])


def test_no_rows_for_an_empty_first_batch():
    tuned = model()
    assert tuned(batch()[:0]).shape == (0, 7)
    tuned(batch()).sum().backward()


def test_second_derivatives_are_refused():
    tuned, x = model(), batch().requires_grad_()
    (gradient,) = torch.autograd.grad(tuned(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(gradient.square().sum(), trained(tuned))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.functional.hvp(lambda z: tuned(z).square().sum(), batch(), batch())


def test_torch_func_with_disabled_adapters_and_merged():
    tuned, x = model(), batch()
    plain = merged(tuned)

    def gradient(each):
        return torch.func.grad(lambda z: each(z).square().sum())(x)

    torch.testing.assert_close(gradient(tuned), gradient(plain))
    with tuned.disable_adapter():
        base = gradient(tuned)
    tuned.merge_adapter()
    torch.testing.assert_close(gradient(tuned), gradient(plain))
    tuned.unmerge_adapter()
    torch.testing.assert_close(base, gradient(tuned.unload()))


def test_a_trace_holds_the_adapted_model():
    tuned, x = model().eval(), batch()
    # Another test's failed graph may wait still, in a traceback.
    claimed = set(contents_module._claimed)
    with torch.no_grad():
        traced = torch.jit.trace(tuned.base_model.model, x)
        torch.testing.assert_close(traced(x), merged(tuned)(x))
    assert set(contents_module._claimed) <= claimed


def test_a_shallow_copy_leaves_a_waiting_graph_alone():
    tuned, x = model(), batch()
    expected = torch.autograd.grad(tuned(x).square().sum(), trained(tuned))
    loss = tuned(x).square().sum()
    copy.copy(tuned.base_model.model[0])
    for own, reference in zip(torch.autograd.grad(loss, trained(tuned)), expected, strict=True):
        torch.testing.assert_close(own, reference)


def test_a_weight_moved_into_shared_memory_while_a_graph_waits():
    tuned, x = model(), batch()
    before, expected = base_weights(tuned), merged(tuned)(x)
    waiting = tuned(x)
    for parameter in tuned.parameters():
        parameter.share_memory_()
    torch.testing.assert_close(tuned(x), expected)
    del waiting
    torch.testing.assert_close(tuned(x), expected)
    assert all(map(torch.equal, base_weights(tuned), before))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_graph_that_is_collected_while_another_forward_claims(recorded, monkeypatch):
    tuned, x = model(), batch()
    expected = merged(tuned)(x)
    before, waiting = base_weights(tuned), [tuned(x)]
    fits = Patch.fits

    def collected(patch, updates):
        waiting.clear()
        return fits(patch, updates)

    monkeypatch.setattr(Patch, "fits", collected)
    with torch.set_grad_enabled(recorded):
        torch.testing.assert_close(tuned(x), expected)
    assert all(map(torch.equal, base_weights(tuned), before))


def test_a_second_adapter_looks_at_the_inputs_again():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = nn.functional.silu(self.first(x))
            with torch.no_grad():
                hidden.add_(1)
            return self.second(hidden.clone())

    def sources(tuned):
        tuned(torch.randn(2, 4)).sum().backward()
        return tuned.base_model.input_sources()["second"]

    config = RowSFTConfig(target_modules=["first", "second"], rows=2, importance="l2")
    tuned = get_peft_model(Changing(), config)
    assert sources(tuned).startswith("kept")
    tuned.add_adapter("other", config)
    tuned.set_adapter("other")
    assert sources(tuned).startswith("kept")
