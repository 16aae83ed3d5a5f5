"""zo_taylor: Taylor scores from forward passes alone, with the gradient estimated from random perturbations (SPSA)."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rowsft.compat.torch import parameters_of
from rowsft.errors import UserError
from rowsft.importance.calibration import Rehearsal, batch_weights, loss_of
from rowsft.importance.reduction import blocks, one_per_weight, sums_of_blocks, wide
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.importance.widening import widened
from rowsft.layers.matrix import LinearLayer
from rowsft.layers.quantised import is_packed
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores

EPSILON = 1e-3


@register("zo_taylor", needs="losses")
def zo_taylor(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis], *, draws: int = 256) -> Scores:
    """abs(w_ij ĝ_ij), ĝ the mean over `draws` perturbations of (L(θ+εz) - L(θ-εz)) / 2ε * z, z ~ N(0, 1), ε = 1e-3.

    SPSA (Spall 1992), as Malladi et al. (arXiv 2305.17333) use it. θ are the weights of `layers`. Only one number a
    draw is kept: z comes again from its seed, layer by layer. The perturbed weight is a 32-bit copy that lives during
    its layer's forward, so a 16-bit base is perturbed exactly and never written.

    Each draw reads one calibration batch, all in turn, rather than every batch: with E[z zᵀ] = 1 the mean is unbiased
    either way once batches are weighed, and its variance is governed by the number of draws, not by the batches behind
    a draw, so many cheap draws beat few dear ones. With fewer draws than batches only that many batches are read.
    """
    _check_perturbable(layers)
    if draws < 1:
        raise UserError(f"importance=zo_taylor(draws={draws}): draws must be at least 1")
    if isinstance(context.calibration, Rehearsal):
        draws = min(draws, 2)
    owners = one_per_weight(layers)
    shares = draw_weights(batch_weights(context.model, context.calibration), draws)
    slopes = directional_slopes(owners, context, draws)
    factors = [slope * share for slope, share in zip(slopes, shares, strict=True)]
    scores = {layer.weight: _score(name, layer, context, axes, factors) for name, layer in owners.items()}
    return {name: scores[layer.weight] for name, layer in layers.items()}


def _check_perturbable(layers: Mapping[str, LinearLayer]) -> None:
    for name, layer in layers.items():
        if is_packed(layer.weight):
            raise UserError(
                f"importance=zo_taylor: layer {name} holds a quantised weight ({type(layer.weight).__name__}), which "
                "cannot be perturbed; use taylor, taylor_row, wanda, l1, l2 or random instead"
            )


def directional_slopes(layers: Mapping[str, LinearLayer], context: Context, draws: int) -> list[float]:
    """Return (L(θ+εz) - L(θ-εz)) / 2ε for every draw, L the loss of that draw's batch (draw number modulo batches)."""
    names = {layer.weight: name for name, layer in layers.items()}
    users = {
        module: names[weight]
        for module in context.model.modules()
        if (weight := parameters_of(module).get("weight")) in names
    }
    at = (0, EPSILON)  # the draw and the step of the forward pass at hand

    def perturbed(module: nn.Module) -> Tensor | None:
        parameter = parameters_of(module).get("weight")
        if parameter is None or module not in users:
            return None
        weight = parameter.detach()
        shifted = torch.empty_like(weight, dtype=wide(weight.dtype))
        draw, step = at
        for rows in blocks(weight):
            perturbation(shifted[rows], context.seed, draw, users[module], rows.start)
            shifted[rows].mul_(step).add_(weight[rows])
        return shifted

    slopes = []
    with untouched(context.model), torch.no_grad(), widened(context.model, perturbed):
        for draw in context.progress(range(draws), draws):
            index = draw % len(context.calibration)
            losses = []
            for step in (EPSILON, -EPSILON):
                at = (draw, step)
                losses.append(loss_of(context.model, context.calibration[index], index).item())
            slopes.append((losses[0] - losses[1]) / (2 * EPSILON))
    return slopes


def perturbation(into: Tensor, seed: int, draw: int, layer_name: str, first_row: int) -> None:
    """Fill one block of a layer's z, which starts at stored row `first_row`, from a generator of its own.

    On the tensor's device: CPU and GPU draw different numbers.
    """
    if into.is_meta:
        # A plan draws nothing.
        return
    digest = hashlib.sha256(f"{seed}:{draw}:{layer_name}:{first_row}".encode()).digest()
    into.normal_(generator=torch.Generator(into.device).manual_seed(int.from_bytes(digest[:8], "big")))


def draw_weights(batch_shares: Sequence[float], draws: int) -> list[float]:
    """Return what each draw counts, adding up to 1: its batch's share of those read, split among its draws."""
    readers = Counter(draw % len(batch_shares) for draw in range(draws))
    read = sum(batch_shares[batch] for batch in readers)
    return [batch_shares[d % len(batch_shares)] / read / readers[d % len(batch_shares)] for d in range(draws)]


def _score(
    name: str, layer: LinearLayer, context: Context, axes: Sequence[Axis], factors: Sequence[float]
) -> dict[Axis, Tensor]:
    weight = layer.weight.detach()

    def products(rows: slice) -> Tensor:
        z = torch.empty_like(weight[rows], dtype=wide(weight.dtype))
        gradient = torch.zeros_like(z)
        for draw, factor in enumerate(factors):
            perturbation(z, context.seed, draw, name, rows.start)
            gradient.add_(z, alpha=factor)
        return gradient.mul_(weight[rows]).abs_()

    return sums_of_blocks(layer, axes, weight, products)
