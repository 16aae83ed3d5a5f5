"""What was measured: squared errors of every start in every layer, which add up to those of the model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

#: The start that is plain quantisation: QLoRA's, whose adapter begins at zero.
PLAIN = "plain"


@dataclass(frozen=True)
class Part:
    """Some entries of weights: the squared error of what stands for them, summed, and their own squares, summed."""

    error_squared: float
    weight_squared: float

    def __add__(self, other: "Part") -> "Part":
        return Part(self.error_squared + other.error_squared, self.weight_squared + other.weight_squared)

    @property
    def absolute(self) -> float:
        """The Frobenius norm of the error."""
        return math.sqrt(self.error_squared)

    @property
    def relative(self) -> float | None:
        """The same over the norm of the weights; None where there are none, or all are 0."""
        return self.absolute / math.sqrt(self.weight_squared) if self.weight_squared else None

    def as_dict(self, name: str) -> dict[str, float | None]:
        """Return both norms under names that begin with `name`."""
        return {f"{name}error": self.absolute, f"{name}relative_error": self.relative}


@dataclass(frozen=True)
class StartError:
    """One start in one layer, or in all of them.

    weights: entries of W. parameters: what the adapter holds, trained biases included. bits: codes, scales and the
    adapter. whole: every entry. chosen: those that the method's own metric chooses, the same for every start. own:
    those that this start keeps exact; None for starts of low rank.
    """

    start: str
    weights: int
    parameters: int
    bits: int
    whole: Part
    chosen: Part
    own: Part | None

    def __add__(self, other: "StartError") -> "StartError":
        own = None if self.own is None or other.own is None else self.own + other.own
        return StartError(
            self.start,
            self.weights + other.weights,
            self.parameters + other.parameters,
            self.bits + other.bits,
            self.whole + other.whole,
            self.chosen + other.chosen,
            own,
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each entry of W."""
        return self.bits / self.weights

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a program reads them."""
        return {
            "start": self.start,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            **self.whole.as_dict(""),
            **self.chosen.as_dict("chosen_"),
            **(self.own or Part(0, 0)).as_dict("own_"),
        }


@dataclass(frozen=True)
class LayerErrors:
    """A layer's starts. rows, columns, rank: what the budget gives it.

    steps: name of an alternating start -> its squared error after each step. uniform: the squared error expected of
    plain quantisation where the metric's number of rows and columns is kept exact, drawn uniformly.
    """

    layer: str
    shape: tuple[int, int]
    rows: int
    columns: int
    rank: int
    starts: list[StartError]
    steps: dict[str, list[float]]
    uniform: float

    @property
    def plain(self) -> StartError:
        """Plain quantisation."""
        return self.starts[0]

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return a flat row for each start."""
        about = {"layer": self.layer, "d_out": self.shape[0], "d_in": self.shape[1]}
        sizes = {"rows": self.rows, "columns": self.columns, "rank": self.rank}
        return [{**about, **sizes, **start.as_dict()} for start in self.starts]


@dataclass(frozen=True)
class Measured:
    """The whole of it. facts: what it was measured on and how, for readers. seconds: of computing."""

    facts: dict[str, Any]
    layers: list[LayerErrors]
    notes: list[str]
    seconds: float

    @property
    def model(self) -> list[StartError]:
        """Every start, over all layers."""
        return [
            reduce(StartError.__add__, starts) for starts in zip(*(each.starts for each in self.layers), strict=True)
        ]

    @property
    def steps(self) -> dict[str, list[float]]:
        """The relative error over all layers after each step of the alternating starts."""
        norm = math.sqrt(self.model[0].whole.weight_squared)
        return {
            name: [
                math.sqrt(_sum(layer.steps[name][step] for layer in self.layers)) / norm
                for step in range(len(self.layers[0].steps[name]))
            ]
            for name in self.layers[0].steps
        }

    @property
    def uniform(self) -> float:
        """The relative error expected of rows and columns drawn uniformly: sqrt(1 - k/d_out) in a layer of k rows."""
        return math.sqrt(_sum(each.uniform for each in self.layers) / self.model[0].whole.weight_squared)

    def sorted(self, worst_first: bool) -> list[LayerErrors]:
        """Return the layers in the model's order, or the one with the largest relative error of `plain` first."""
        return sorted(self.layers, key=lambda each: -(each.plain.whole.relative or 0)) if worst_first else self.layers

    def as_dict(self, worst_first: bool = False) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        return {
            **self.facts,
            "model": [start.as_dict() for start in self.model],
            "relative_error_by_step": self.steps,
            "uniform_rows_expected_relative_error": self.uniform,
            "layers": [row for each in self.sorted(worst_first) for row in each.as_dicts()],
            "notes": self.notes,
            "seconds": self.seconds,
        }


def _sum(values: Iterable[float]) -> float:
    return math.fsum(values)
