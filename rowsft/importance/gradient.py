"""Metrics of the mean gradient over all calibration batches, held for a bounded group of layers at a time.

A metric that is nonlinear in the mean gradient cannot be summed up batch by batch: the gradient itself must be
accumulated. To never hold the whole model's, layers are taken in groups and the batches are gone through once for
each group.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.importance.calibration import batch_weights, largest_batch_tokens, on_device
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.selection import layer_shape, rows_of


@register("taylor", needs="gradients")
def taylor(layers: dict[str, nn.Module], context: Context) -> dict[str, Tensor]:
    """Sum over j of abs(w_ij g_ij), g the gradient of the mean loss over all labelled tokens of the calibration set.

    First-order Taylor estimate of what removing single weights does to the loss (Molchanov et al., arXiv 1611.06440),
    summed over a row.
    """
    scores = {}
    for group, gradients in mean_gradients(layers, context):
        for name, layer in group.items():
            scores[name] = rows_of(layer, gradients.pop(name) * layer.weight.detach()).abs().sum(dim=1)
    return scores


def mean_gradients(
    layers: dict[str, nn.Module], context: Context
) -> Iterator[tuple[dict[str, nn.Module], dict[str, Tensor]]]:
    """Yield (group of layers, layer name -> mean gradient, laid out as the weight, in 32 bit or wider), group by group.

    Batches count by their labelled tokens (examples, for sequence labels), as the model's own loss does within a
    batch. The model is in eval mode, and is given back untouched after each group. Raises UserError for an empty
    calibration set, a loss that is not finite (naming the batch) and a weight that cannot have a gradient.
    """
    weights = batch_weights(context.model, context.calibration)
    for name, layer in layers.items():
        if not layer.weight.is_floating_point():
            raise UserError(
                f"layer {name} holds {layer.weight.dtype} weights, which have no gradient; use l1, l2 or random instead"
            )
    size = default_group_bytes(layers, context) if context.group_bytes is None else context.group_bytes
    groups = grouped(layers, size)
    passes = len(groups) * len(weights)
    ticks = iter(context.progress(range(passes), passes))
    for group in groups:
        with untouched(context.model):
            gradients = _accumulate(group, context, zip(weights, ticks, strict=False))
        yield group, gradients
    next(ticks, None)


def grouped(layers: dict[str, nn.Module], group_bytes: int) -> list[dict[str, nn.Module]]:
    """Consecutive layers whose accumulated gradients fit in `group_bytes` together; a larger one stands alone."""
    groups: list[dict[str, nn.Module]] = []
    room = 0
    for name, layer in layers.items():
        size = _accumulator_bytes(layer)
        if not groups or size > room:
            groups.append({})
            room = group_bytes
        groups[-1][name] = layer
        room -= size
    return groups


def default_group_bytes(layers: dict[str, nn.Module], context: Context) -> int:
    """Bytes of accumulated gradients at which scoring stays below a training step of the row channel at the same batch.

    That step keeps X, the input of every layer (layers of one block and width share it). A pass over a group keeps
    its own inputs only, X * group / all, next to the group's accumulators and one layer's gradient on its way: so the
    group may have (X - gradient) / (1 + X / all). Both backpropagate through the frozen rest alike.
    """
    tokens = largest_batch_tokens(context.calibration)
    inputs = {
        (name.rpartition(".")[0], layer_shape(layer)[1]): layer.weight.element_size() * layer_shape(layer)[1]
        for name, layer in layers.items()
    }
    kept = tokens * sum(inputs.values())
    everything = sum(_accumulator_bytes(layer) for layer in layers.values())
    one_gradient = max(layer.weight.numel() * layer.weight.element_size() for layer in layers.values())
    return max(0, int((kept - one_gradient) / (1 + kept / everything)))


def _accumulate(
    group: dict[str, nn.Module], context: Context, weighted: Iterable[tuple[float, int]]
) -> dict[str, Tensor]:
    """One pass over the calibration batches for one group; the model must be frozen and its `.grad`s empty."""
    # By identity: layers that share one weight share its gradient.
    sums = {layer.weight: torch.zeros_like(layer.weight, dtype=_wide(layer.weight)) for layer in group.values()}
    share = 0.0  # of the batch at hand

    def add(weight: nn.Parameter) -> None:
        # Taken up and dropped as soon as it is there: the gradients of a whole group never exist at once.
        sums[weight].add_(weight.grad, alpha=share)
        weight.grad = None

    hooks = [weight.requires_grad_(True).register_post_accumulate_grad_hook(add) for weight in sums]
    device = next(context.model.parameters()).device
    try:
        for index, (weight_of_batch, _) in enumerate(weighted):
            share = weight_of_batch
            _loss(context.model, on_device(context.calibration[index], device), index).backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[layer.weight] for name, layer in group.items()}


def _loss(model: nn.Module, batch: dict, index: int) -> Tensor:
    loss = model(**batch).loss
    if not math.isfinite(loss.item()):
        raise UserError(
            f"calibration batch {index} has loss {loss.item()}; expected a finite number; "
            "check its labels, or load the model in float32"
        )
    return loss


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _accumulator_bytes(layer: nn.Module) -> int:
    return layer.weight.numel() * _wide(layer.weight).itemsize
