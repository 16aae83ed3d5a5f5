"""The adapted layer's forward under torch.compile, as two operators that the compiler does not look into.

Writing the updates into the base weight depends on Python state, which a graph cannot carry. The operator
`rowsft::written_linear` runs the layer's ordinary forward when the graph runs, and its backward the product with the
weight; each writes the updates and restores the originals around its own product. So compiled and uncompiled calls may
alternate, other adapters may run in between, and the graph has no break. The operators leave the weight as they found
it, so nothing is declared as a mutation. They are kept out of CUDA graphs, whose replay would run no Python.
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
        layer = _layer_at.get(address)
    if layer is None:
        raise RuntimeError(
            "rowsft::written_linear has found no row-SFT layer of this process with the weight that it was given: a "
            "compiled program of it runs only beside its model; export the model with torch.export, or merge it first"
        )
    return layer


@torch.library.custom_op("rowsft::written_linear", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def written_linear(
    x: torch.Tensor, weight: torch.Tensor, values: list[torch.Tensor], transposed: bool, adapters: str
) -> torch.Tensor:
    """x (..., d_in), and a base weight, stored as (d_in, d_out) where `transposed` -> (..., d_out).

    The output is the base layer's with the updates of the named adapters, one a line, in its weight. values: what those
    adapters train, so that the graph knows what the operator reads.
    """
    return _layer_of(weight).operator_output(x, adapters.splitlines())


@written_linear.register_fake
def _(x, weight, values, transposed, adapters):
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 0])


@torch.library.custom_op("rowsft::written_linear_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def written_linear_backward(
    grad_y: torch.Tensor, weight: torch.Tensor, values: list[torch.Tensor], transposed: bool, adapters: str
) -> torch.Tensor:
    """The gradient (..., d_in) of `written_linear`'s input from that of its output, (..., d_out)."""
    return _layer_of(weight).operator_input_gradient(grad_y, adapters.splitlines())


@written_linear_backward.register_fake
def _(grad_y, weight, values, transposed, adapters):
    return grad_y.new_empty(*grad_y.shape[:-1], weight.shape[0 if transposed else 1])


def _keep(ctx, inputs, output):
    _, weight, values, ctx.transposed, ctx.adapters = inputs
    # Saved, so that autograd refuses the backward when an optimizer has changed them since.
    ctx.save_for_backward(weight, *values)


def _input_gradient(ctx, grad_y):
    weight, *values = ctx.saved_tensors
    gradient = None
    if ctx.needs_input_grad[0]:
        gradient = written_linear_backward(grad_y, weight, values, ctx.transposed, ctx.adapters)
    return gradient, None, [None] * len(values), None, None


written_linear.register_autograd(_input_gradient, setup_context=_keep)
