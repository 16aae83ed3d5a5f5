"""The errors of one layer: its weight against every quantised base with its adapter."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rowsft.errors import UserError
from rowsft.quantisation.low_rank import Factors
from rowsft.quantisation.quantisers import Quantiser
from rowsft.quantisation.starts import Start, loftq, pissa
from rowsft.quantisation_error.result import PLAIN, LayerErrors, Part, StartError
from rowsft.selection.ids import Chosen

#: The alternating starts by name.
ALTERNATING = {"LoftQ": loftq, "PiSSA": pissa}


@dataclass(frozen=True)
class Arithmetic:
    """How it is computed. steps: of the alternating starts. dtype: of the adapter. svd_iterations: see `principal`."""

    quantiser: Quantiser
    steps: int = 5
    dtype: torch.dtype = torch.float32
    svd_iterations: int | None = None


@dataclass(frozen=True)
class Sizes:
    """What the budget gives a layer: trained parameters of its rows and columns (biases included), and a rank."""

    row_parameters: int
    rank: int


def layer_errors(
    name: str, weight: Tensor, choices: Mapping[str, Chosen], sizes: Sizes, arithmetic: Arithmetic
) -> LayerErrors:
    """Return the errors of all starts for `weight` (d_out, d_in), float32.

    choices: name of a start that keeps rows and columns exact -> those; the first is the method's own, whose entries
    every start's error is told on. A start that keeps them holds the difference to the quantised weight in the
    adapter's dtype: exactly, but for that rounding. Raises UserError for weights that are not finite.
    """
    if not torch.isfinite(weight).all():
        raise UserError(f"layer {name}: its weight is not finite; check the checkpoint")
    own = next(iter(choices.values()))
    shape, quantiser = (weight.shape[0], weight.shape[1]), arithmetic.quantiser
    of_whole, of_chosen = squared(weight), squared_on(weight, own)

    def told(start: str, error: Tensor, parameters: int, kept: Chosen | None = None) -> StartError:
        return StartError(
            start,
            weight.numel(),
            parameters,
            quantiser.bits(shape) + parameters * torch.finfo(arithmetic.dtype).bits,
            Part(squared(error), of_whole),
            Part(squared_on(error, own), of_chosen),
            None if kept is None else Part(squared_on(error, kept), squared_on(weight, kept)),
        )

    residual = weight - quantiser(weight)
    starts = [told(PLAIN, residual, 0)]
    for start, kept in choices.items():
        starts.append(told(start, residual - _kept(residual, kept, arithmetic.dtype), sizes.row_parameters, kept))
    steps: dict[str, list[float]] = {}
    for start, alternate in ALTERNATING.items():
        steps[start] = []
        last = arithmetic.steps
        for step, found in enumerate(alternate(weight, quantiser, sizes.rank, last, arithmetic.svd_iterations), 1):
            error = _left_over(weight, found, arithmetic.dtype)
            steps[start].append(squared(error))
            if step in (1, last):
                starts.append(told(step_name(start, step), error, sizes.rank * sum(shape)))
    return LayerErrors(
        name,
        shape,
        len(own.rows),
        len(own.columns),
        sizes.rank,
        starts,
        steps,
        squared(residual) * (1 - len(own.rows) / shape[0]) * (1 - len(own.columns) / shape[1]),
    )


def step_name(start: str, step: int) -> str:
    """Return the name of an alternating start after a number of steps."""
    return f"{start}, {step} step{'s' if step > 1 else ''}"


def squared(matrix: Tensor) -> float:
    """Return the sum of the squares, taken in 64 bit."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64).square())


def squared_on(matrix: Tensor, chosen: Chosen) -> float:
    """Return the sum of the squares in the chosen rows and columns; entries where both cross count once."""
    of_columns = matrix[:, chosen.columns]
    of_columns[chosen.rows] = 0
    return math.fsum([squared(matrix[chosen.rows]), squared(of_columns)])


def _kept(residual: Tensor, chosen: Chosen, dtype: torch.dtype) -> Tensor:
    """What an adapter of these rows and columns starts from: their part of the residual, in its dtype."""
    held = torch.zeros_like(residual)
    held[chosen.rows] = residual[chosen.rows].to(dtype).float()
    held[:, chosen.columns] = residual[:, chosen.columns].to(dtype).float()
    return held


def _left_over(weight: Tensor, start: Start, dtype: torch.dtype) -> Tensor:
    held = Factors(*(factor.to(dtype).float() for factor in start.factors))
    return weight - start.base - held.product
