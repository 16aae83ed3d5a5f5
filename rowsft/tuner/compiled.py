"""The adapted layer's forward under torch.compile, as one operator that the compiler does not look into.

Writing the updates into the base weight depends on Python state (which adapters the weight holds, and whether they have
changed since), which a graph cannot carry. The operator `rowsft::written_linear` runs the layer's ordinary forward when
the graph runs, so compiled and uncompiled calls may alternate, and the graph has no break. The operator writes only
entries of a weight that nothing else in the graph reads; it is not declared as a mutation, because the compiler would
then copy the weight. It is kept out of CUDA graphs, whose replay would run no Python.

One thing uncompiled calls allow and compiled ones do not: running other adapters, or none, between a compiled forward
and its backward. That changes the weight which the backward needs, and autograd's version check refuses the backward.
"""

from __future__ import annotations

from weakref import WeakSet, WeakValueDictionary

import torch

_layers: WeakSet = WeakSet()
_layer_at: WeakValueDictionary = WeakValueDictionary()


def register_layer(layer) -> None:
    """Make `layer` known to the operator, which finds it by its base weight."""
    _layers.add(layer)


def forget_layer(layer) -> None:
    """Take back `register_layer`: the base weight may get another layer while this one still lives somewhere."""
    _layers.discard(layer)
    _layer_at.clear()


def as_autocast(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype that autocast would multiply it in: inside the operator, autocast is no longer on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _layer_of(weight: torch.Tensor):
    address = weight.data_ptr()
    layer = _layer_at.get(address)
    if layer is None or layer.get_base_layer().weight.data_ptr() != address:
        _layer_at.clear()
        _layer_at.update({each.get_base_layer().weight.data_ptr(): each for each in _layers})
        layer = _layer_at[address]
    return layer


@torch.library.custom_op("rowsft::written_linear", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def written_linear(x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """x (..., d_in), and a base weight, stored as (d_in, d_out) where `transposed` -> (..., d_out).

    The output is the base layer's with the layer's active updates written into its weight.
    """
    return _layer_of(weight).operator_output(x)


@written_linear.register_fake
def _(x, weight, transposed):
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 0])


def _keep_weight(ctx, inputs, output):
    _, weight, ctx.transposed = inputs
    ctx.save_for_backward(weight)


def _input_gradient(ctx, grad_y):
    (weight,) = ctx.saved_tensors
    matrix = weight.t() if ctx.transposed else weight
    return grad_y @ matrix.to(grad_y.dtype), None, None


written_linear.register_autograd(_input_gradient, setup_context=_keep_weight)
