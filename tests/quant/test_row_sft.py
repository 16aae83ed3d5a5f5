"""Row-SFT on a quantised base: where it starts, what it trains, what it keeps, and how it is merged."""

import copy

import pytest
import torch
from peft import PeftModel
from quantised_bases import KINDS, dense, loaded
from rows import CHANNELS, row_layers, shake
from tiny import causal_batch, classification_batch

from rowsft.errors import UserError
from rowsft.layers.quantised import quantised_layers
from rowsft.methods.base import method_class, selected
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets


def attached(model, **settings):
    """Row-SFT with two rows (columns, units) a layer."""
    settings = {"rows": 2, "importance": "l2", **settings}
    method = method_class("row_sft")(**settings)
    head = ["bert.pooler", "classifier"] if model.config.model_type == "bert" else []
    targets = Targets(head_modules=head)
    resolved = selected(method, model, method.solve(Budget(), model, targets), [batch_of(model)])
    return method, resolved, method.attach(model, resolved)


def batch_of(model):
    return causal_batch() if model.config.model_type == "llama" else classification_batch()


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


@torch.no_grad()
def with_originals(plain, original, wrapped):
    """The dense model with the trained rows and columns of W in it."""
    for name, layer in row_layers(wrapped).items():
        own, there = plain.get_submodule(name).weight, original.get_submodule(name).weight.to(torch.float64)
        if "default" in layer.row_sft_ids:
            rows = layer.row_sft_ids["default"]
            own[rows] = there[rows]
        if "default" in layer.row_sft_column_ids:
            columns = layer.row_sft_column_ids["default"]
            own[:, columns] = there[:, columns]
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_it_starts_with_the_original_rows_and_columns_in_the_quantised_model(llama, channel, kind):
    base, original = loaded(llama, kind), loaded(llama, None)
    plain, batch = dense(base), causal_batch()
    quantised = logits(base, batch)
    _, resolved, wrapped = attached(base, channel=channel)
    assert resolved.values["quantised_start"] == "residual"
    expected = logits(with_originals(plain, original, wrapped), batch)
    torch.testing.assert_close(logits(wrapped, batch).double(), expected, rtol=1e-4, atol=1e-5)
    assert (expected - quantised).abs().max() > 10 * 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_from_zero_it_starts_with_the_quantised_model(llama, channel, kind):
    base, batch = loaded(llama, kind), causal_batch()
    expected = logits(base, batch)
    _, resolved, wrapped = attached(base, channel=channel, quantised_start="zero")
    assert resolved.values["quantised_start"] == "zero"
    assert torch.equal(logits(wrapped, batch), expected)


def test_a_plain_base_has_no_such_start(llama):
    _, resolved, wrapped = attached(loaded(llama, None))
    assert "quantised_start" not in resolved.values
    assert wrapped.peft_config["default"].base_quantization is None
    assert all(not value.any() for name, value in wrapped.named_parameters() if "row_sft_delta" in name)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_gradients_are_those_of_the_entries_of_a_dense_model(request, family, channel, recompute):
    base = loaded(request.getfixturevalue(family))
    plain, batch = dense(base), batch_of(base)
    _, _, wrapped = attached(base, channel=channel, recompute_inputs=recompute)
    shake(wrapped)
    with torch.no_grad():
        for name, layer in row_layers(wrapped).items():
            plain.get_submodule(name).weight += layer._update("default").dense(*plain.get_submodule(name).weight.shape)
            if "default" in layer.row_sft_bias:
                plain.get_submodule(name).bias[layer.row_sft_ids["default"]] += layer.row_sft_bias["default"]
    wrapped.train()(**batch).loss.backward()
    plain.requires_grad_(True).train()(**batch).loss.backward()
    for name, layer in row_layers(wrapped).items():
        update = layer._update("default")
        gradient = plain.get_submodule(name).weight.grad
        if update.delta is not None:
            expected = gradient[update.rows]
            torch.testing.assert_close(update.delta.grad.double(), expected, rtol=1e-3, atol=1e-6)
        if update.column_delta is not None:
            others = slice(None) if update.others is None else update.others
            expected = gradient[:, update.columns][others]
            torch.testing.assert_close(update.column_delta.grad.double(), expected, rtol=1e-3, atol=1e-6)
        if update.bias is not None:
            expected = plain.get_submodule(name).bias.grad[update.rows]
            torch.testing.assert_close(update.bias.grad.double(), expected, rtol=1e-3, atol=1e-6)


def test_inputs_are_rebuilt_and_gradients_are_those_of_kept_ones(llama):
    found = {}
    for recompute in (True, False):
        _, _, wrapped = attached(loaded(llama), recompute_inputs=recompute)
        wrapped.train()(**causal_batch()).loss.backward()
        sources = wrapped.base_model.input_sources()
        assert len(sources) == 14
        assert any(source.startswith("rebuilt") for source in sources.values()) == recompute
        found[recompute] = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-5, atol=1e-8)


def test_fewer_bytes_wait_for_backward_where_inputs_are_rebuilt(llama):
    def waiting(recompute):
        _, _, wrapped = attached(loaded(llama), recompute_inputs=recompute, rows=1)
        # Under hooks on saved tensors inputs would be kept: what the graph holds is counted node by node.
        loss, kept = wrapped.train()(**causal_batch()).loss, {}
        pending, seen = [loss.grad_fn], set()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for name in dir(node):
                if name.startswith("_saved") or name == "saved_tensors":
                    try:
                        values = getattr(node, name)
                    except (RuntimeError, AttributeError):
                        continue
                    for value in values if isinstance(values, tuple) else (values,):
                        if isinstance(value, torch.Tensor):
                            storage = value.untyped_storage()
                            kept[storage.data_ptr()] = storage.nbytes()
            pending += [each for each, _ in node.next_functions]
        return sum(kept.values())

    assert waiting(True) < waiting(False)


def test_checkpointing_gives_the_same_gradients(llama):
    found = []
    for checkpointing in (True, False):
        _, _, wrapped = attached(loaded(llama))
        if checkpointing:
            wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            wrapped.enable_input_require_grads()
        wrapped.train()(**causal_batch()).loss.backward()
        found.append([p.grad for p in wrapped.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) == 14
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_dropout_drops_the_whole_product_of_the_update(llama):
    base, batch = loaded(llama), causal_batch()
    _, _, wrapped = attached(base, dropout=0.5)
    _, _, without = attached(loaded(llama))
    assert torch.equal(logits(wrapped, batch), logits(without, batch))
    wrapped.train()
    assert not torch.equal(wrapped(**batch).logits, wrapped(**batch).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channel", ["rows", "both"])
def test_training_moves_what_is_trained_alone_and_the_adapter_loads_again(llama, tmp_path, channel, kind):
    method, resolved, wrapped = attached(loaded(llama, kind), channel=channel)
    batch = causal_batch()
    state = dense(wrapped.get_base_model()).state_dict()
    before = {name: tensor for name, tensor in state.items() if "row_sft" not in name}
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = wrapped.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        logits(wrapped, batch)
    assert losses[2] < losses[1] < losses[0]
    after = dense(wrapped.get_base_model()).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    method.save(wrapped, tmp_path)
    expected = logits(wrapped, batch)
    by_peft = PeftModel.from_pretrained(loaded(llama, kind), tmp_path)
    for again in (by_peft, method.load(loaded(llama, kind), resolved, tmp_path)):
        torch.testing.assert_close(logits(again, batch), expected, rtol=1e-5, atol=1e-6)
        assert again.peft_config["default"].base_quantization == kind


@pytest.mark.parametrize("metric", ["l1", "wanda", "taylor_row", "taylor", "grad2", "fisher", "taylor2"])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_score_what_the_codes_stand_for(llama, metric, kind):
    from rowsft import score

    model = loaded(llama, kind)
    plain = dense(model, torch.float32)
    names = quantised_layers(model)
    for axis in ("rows", "columns"):
        found = score(model, metric, [causal_batch()], ["q_proj", "down_proj"], channel=axis)
        expected = score(plain, metric, [causal_batch()], ["q_proj", "down_proj"], channel=axis)
        assert found.keys() == expected.keys() <= names.keys()
        for name, scores in expected.items():
            torch.testing.assert_close(found[name], scores, rtol=1e-2, atol=1e-4 * scores.max().item())


def test_zo_taylor_is_refused_in_one_line(llama):
    with pytest.raises(UserError, match="importance=zo_taylor: layer .*q_proj holds a quantised weight"):
        attached(loaded(llama), importance="zo_taylor(draws=2)")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_merged_into_what_the_codes_stand_for_it_is_the_adapted_model(llama, channel, kind):
    method, _, wrapped = attached(loaded(llama, kind), channel=channel)
    shake(wrapped)
    batch = causal_batch()
    expected, names = logits(wrapped, batch), {n for n, _ in loaded(llama, None).named_parameters()}
    layers = row_layers(wrapped).items()
    entries = {name: layer._update("default").dense(layer.out_features, layer.in_features) for name, layer in layers}
    plain = dense(copy.deepcopy(wrapped).unload())
    merged = method.merge(wrapped)
    assert {name for name, _ in merged.named_parameters()} == names
    assert not quantised_layers(merged)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)
    for name, entry in entries.items():
        exact = plain.get_submodule(name).weight + entry
        torch.testing.assert_close(merged.get_submodule(name).weight.double(), exact, rtol=1e-6, atol=1e-7)
