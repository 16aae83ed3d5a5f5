"""Unit groups: the rows, columns or coupled units among which scores choose, and what each of them costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.selection.channel import AXES, Axis

#: Full layer name -> axis -> one score per row (d_out,) or column (d_in,), from the metric to the choice.
Scores = Mapping[str, Mapping[Axis, Tensor]]
# Counts of steps, rows and parameters: whole, or shares of them before they are rounded.
_Count = TypeVar("_Count", int, float)


@dataclass(frozen=True)
class Member:
    """A layer's share in a group: unit u stands for its rows or columns (`axis`) ids[u], ids (units, width)."""

    layer: str
    axis: Axis
    ids: Tensor


@dataclass(frozen=True)
class UnitGroup:
    """Units that are chosen among one another; the same unit is taken from every member.

    name: of the layer or of the module that the units belong to. noun: what errors call the units; groups of one noun
    are of one kind. parts: the units fall into that many equal runs, such as heads, and a step takes one unit of each.
    """

    name: str
    noun: str
    members: tuple[Member, ...]
    parts: int = 1

    @property
    def axis(self) -> Axis:
        """The axis along which the group is ranked: its first member's."""
        return self.members[0].axis

    @property
    def size(self) -> int:
        """How many steps there are to take."""
        return len(self.members[0].ids) // self.parts

    @property
    def layers(self) -> list[str]:
        """Names of the member layers, each once."""
        return list(dict.fromkeys(member.layer for member in self.members))

    def widths(self) -> Iterator[tuple[str, Axis, int]]:
        """Yield (layer, axis, rows or columns that one step takes there), a layer as often as it is a member."""
        for member in self.members:
            yield member.layer, member.axis, self.parts * member.ids.shape[1]

    @property
    def width(self) -> int:
        """Rows and columns that one step takes in all members."""
        return sum(width for _, _, width in self.widths())

    def unit_scores(self, scores: Scores, compared: bool) -> Tensor:
        """Return the scores of the units, (units,) in 64 bit.

        For each member the mean over its rows (columns) of a unit, divided by the member's mean; then the mean over
        members. A group of plain rows or columns is left undivided unless it is `compared` with other groups.
        """
        parts = [scores[member.layer][member.axis].double()[member.ids].mean(1) for member in self.members]
        if len(parts) == 1 and not compared:
            return parts[0]
        return torch.stack([_relative(part) for part in parts]).mean(0)

    def ranking(self, scores: Scores, compared: bool = False) -> tuple[Tensor, Tensor]:
        """Return (unit ids (parts, size) in the order of taking, score of each step (size,)).

        Within a part the largest score goes first, ties to the lower index. A step scores the mean of its units.
        """
        ranked = self.unit_scores(scores, compared).view(self.parts, self.size)
        values, order = torch.sort(ranked, dim=1, descending=True, stable=True)
        first = torch.arange(self.parts, device="cpu").unsqueeze(1) * self.size
        return first + order, values.mean(0)


def _relative(scores: Tensor) -> Tensor:
    """Scores over their mean, 0 where the mean is 0.

    The mean's size is what divides: lowest(metric) has a negative mean, and keeps the order it turned.
    """
    mean = scores.mean().abs()
    return scores / mean if mean > 0 else torch.zeros_like(scores)


def plain_group(name: str, layer: LinearLayer, axis: Axis, noun: str | None = None) -> UnitGroup:
    """Return the rows or columns (`axis`) of one layer, each a unit of its own."""
    ids = torch.arange(layer_shape(layer)[AXES.index(axis)], device="cpu").unsqueeze(1)
    return UnitGroup(name, noun or axis, (Member(name, axis, ids),))


def layer_counts(unit_groups: Sequence[UnitGroup], steps: Sequence[_Count]) -> dict[str, tuple[_Count, _Count]]:
    """Return layer name -> (rows, columns) that so many steps of each group take, without layers that get none."""
    counts: dict[str, tuple[_Count, _Count]] = {}
    for group, count in zip(unit_groups, steps, strict=True):
        for layer, axis, width in group.widths() if count else ():
            rows, columns = counts.get(layer, (0, 0))
            more = count * width
            counts[layer] = (rows + more, columns) if axis == "rows" else (rows, columns + more)
    return counts


def parameters(
    layers: Mapping[str, LinearLayer], counts: Mapping[str, tuple[_Count, _Count]], train_bias: bool
) -> _Count:
    """Return the trainable parameters of so many (rows, columns) of each layer.

    A row costs d_in, and one more where the layer's bias is trained along; a column costs what the rows leave of it:
    entries where both cross are trained once.
    """
    total: _Count = 0
    for name, (rows, columns) in counts.items():
        d_out, d_in = layer_shape(layers[name])
        total += rows * (d_in + has_trained_bias(layers[name], train_bias)) + columns * (d_out - rows)
    return total


def has_trained_bias(layer: LinearLayer, train_bias: bool) -> bool:
    """Whether the layer's chosen rows bring bias entries along."""
    return train_bias and layer.bias is not None
