"""What a training step keeps, allocates and computes above backprop through the frozen model: exact bytes and FLOPs."""

import pytest
import torch
from peaks import frozen, warm_peak
from rows import adapt, family, row_layers
from tiny import causal_batch
from torch.utils.flop_counter import FlopCounterMode


def saved_bytes(model, batch, leave_out) -> dict[tuple, int]:
    """(address, shape) -> bytes of the tensors that autograd keeps, those at the addresses `leave_out` apart."""
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in leave_out:
            # Kept alive so that no address is given out twice.
            seen[tensor.data_ptr(), tuple(tensor.shape)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch).loss.backward()
    return {key: tensor.nbytes for key, tensor in seen.items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_columns_keep_tokens_times_columns_floats_and_nothing_else(name):
    model, batch, targets = frozen(name)
    base = {tensor.data_ptr() for tensor in model.parameters()}
    before = saved_bytes(model, batch, base)
    tuned = adapt(model, targets, channel="columns")
    after = saved_bytes(tuned, batch, base)
    layers = row_layers(tuned)
    tokens = batch["input_ids"].numel()
    columns = sum(len(layer.row_sft_column_ids["default"]) for layer in layers.values())
    assert sum(after.values()) - sum(before.values()) == 4 * tokens * columns
    assert len(after) - len(before) == len(layers)


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_rows_keep_inputs_and_ids_and_no_tensor_of_weight_shape(channel):
    model, batch, targets = frozen("llama")
    inputs, hooks = {}, []
    for name in row_layers(adapt(family("llama")[0], targets)):
        layer = model.get_submodule(name)
        hooks.append(layer.register_forward_hook(lambda m, args, out, n=name: inputs.update({n: args[0]})))
    base = {tensor.data_ptr() for tensor in model.parameters()}
    before = saved_bytes(model, batch, base)
    for hook in hooks:
        hook.remove()
    tuned = adapt(model, targets, channel=channel)
    layers = row_layers(tuned)
    assert inputs.keys() == layers.keys()
    after = saved_bytes(tuned, batch, base)
    assert not {(layer.out_features, layer.in_features) for layer in layers.values()} & {shape for _, shape in after}
    extra = sum(after.values()) - sum(before.values())
    most = sum({x.data_ptr(): x.nbytes for x in inputs.values()}.values())
    for layer in layers.values():
        ids = [layer.row_sft_ids["default"], layer.row_sft_column_ids["default"]] if channel == "both" else []
        others = layer.out_features - len(layer.row_sft_ids["default"]) if channel == "both" else 0
        most += sum(each.nbytes for each in ids or [layer.row_sft_ids["default"]]) + 8 * others
    assert 0 < extra <= most


def test_inputs_are_saved_only_for_a_trained_delta():
    """With the deltas frozen and the biases trained, the attention output, an input of one layer only, is not kept."""
    model, batch, targets = family("bert")
    tuned = adapt(model, targets)
    layer = row_layers(tuned)["bert.encoder.layer.0.attention.output.dense"]
    inputs = []
    layer.register_forward_hook(lambda module, args, output: inputs.append(args[0].data_ptr()))

    def saved():
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append((t.data_ptr(), t)) or t, lambda t: t):
            tuned(**batch)
        return [address for address, _ in seen].count(inputs[-1])

    trained = saved()
    layer.row_sft_delta["default"].requires_grad_(False)
    assert saved() == trained - 1


def test_peak_of_a_step_of_columns_is_the_floor_and_what_is_kept():
    """No copy of X, dY or a weight at any moment: kept columns and gradients are all that the peak may grow by."""
    batch = causal_batch(4, 48)
    model, _, targets = frozen("llama")
    floor = warm_peak(model, batch)
    tuned = adapt(model, targets, channel="columns")
    kept = (
        4
        * batch["input_ids"].numel()
        * sum(len(layer.row_sft_column_ids["default"]) for layer in row_layers(tuned).values())
    )
    gradients = sum(p.nbytes for p in tuned.parameters() if p.requires_grad)
    assert warm_peak(tuned, batch) <= floor + kept + gradients


@pytest.mark.parametrize("channel", ["rows", "columns"])
def test_flops_are_the_floor_and_the_product_of_the_update(channel):
    batch = causal_batch()
    model, _, targets = frozen("llama")

    def flops(each):
        with FlopCounterMode(display=False) as counter:
            each(**batch).loss.backward()
        return counter.get_total_flops()

    floor = flops(model)
    tuned = adapt(model, targets, channel=channel)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert flops(tuned) - floor == 2 * batch["input_ids"].numel() * trained
