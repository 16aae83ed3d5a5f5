"""Scores and sizes -> the chosen rows and columns of every layer, for each channel, scope and attention mode."""

import bisect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.selection.channel import ATTENTION, AXES, CHANNELS, Axis
from rowsft.selection.families import coupled_groups, in_order, is_attention, shared_groups
from rowsft.selection.groups import Scores, UnitGroup, plain_group
from rowsft.selection.ids import Chosen


def unit_groups_for(
    model: nn.Module, layers: Mapping[str, LinearLayer], channel: str, attention: str
) -> list[UnitGroup]:
    """Return what a budget is spent on in the eligible `layers` of `model` (on any device), in the model's order.

    channel "rows", "columns": those of each layer. "both": two groups a layer, rows first. "neurons": coupled units
    (`rowsft.selection.families`); heads share q, k and v there anyway, so "grouped" changes nothing. attention
    "linear": every projection on its own; "grouped": q, k and v share their units; "skip": layers of attention modules
    are left out.

    Raises UserError for an unknown channel or mode, "both" with "grouped", a model whose roles are asked for and not
    known, and when nothing is left.
    """
    for setting, value, known in (("channel", channel, CHANNELS), ("attention", attention, ATTENTION)):
        if value not in known:
            raise UserError(f"{setting}={value}: unknown; use one of {', '.join(known)}")
    if channel == "neurons":
        return coupled_groups(model, layers, with_attention=attention != "skip")
    if attention == "skip":
        plain = {name: layer for name, layer in layers.items() if not is_attention(name)}
        if not plain:
            raise UserError(
                "attention=skip leaves no layer to tune, target_modules selects attention projections only; "
                "select others too, or set attention=linear"
            )
        return _plain_groups(plain, channel)
    if attention == "linear":
        return _plain_groups(layers, channel)
    if channel == "both":
        raise UserError(
            "attention=grouped with channel=both: expected channel rows or columns; or set attention=linear"
        )
    [axis] = _axes(channel)
    shared = shared_groups(model, layers, axis)
    taken = {name for group in shared for name in group.layers}
    rest = {name: layer for name, layer in layers.items() if name not in taken}
    return in_order([*shared, *_plain_groups(rest, channel)], layers)


def choose(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], scores: Scores, steps: Sequence[int]
) -> dict[str, Chosen]:
    """Take `steps[i]` steps in group i, the largest scores first, ties to the lower index.

    Returns layer name -> `Chosen` for all `layers`; one that gets nothing has no ids. Raises UserError where a group
    has fewer units.
    """
    for group, count in zip(unit_groups, steps, strict=True):
        if not 0 <= count <= group.size:
            raise UserError(f"{group.noun}={count} for {group.name}: expected 0 to {group.size}; lower the budget")
    orders = [group.ranking(scores)[0][:, :count] for group, count in zip(unit_groups, steps, strict=True)]
    return _gather(unit_groups, layers, orders)


def choose_globally(
    unit_groups: Sequence[UnitGroup],
    layers: Mapping[str, LinearLayer],
    scores: Scores,
    limit: int,
    price: Callable[[Sequence[int]], int],
) -> dict[str, Chosen]:
    """Take units of all groups by one threshold on their scores, as many as `limit` allows at `price(steps)`.

    Scores are divided by their layer's mean before they are compared (`UnitGroup.unit_scores`); ties go to the lower
    layer, then the lower index. Rows and columns are ranked apart and taken in turn, a row first. The first unit that
    exceeds the limit closes its kind (`UnitGroup.noun`); smaller kinds go on, so that MLP units use what no whole head
    fits in. Returns what `choose` does.
    """
    steps = torch.zeros(len(unit_groups), dtype=torch.int64, device="cpu")
    rankings = [group.ranking(scores, compared=True) for group in unit_groups]
    order = _global_order(unit_groups, [values for _, values in rankings])
    first = int(order[0])
    while len(order):

        def after(count: int, order: Tensor = order, taken: Tensor = steps) -> list[int]:
            return (taken + order[:count].bincount(minlength=len(unit_groups))).tolist()

        fitting = bisect.bisect_right(range(len(order) + 1), limit, key=lambda count: price(after(count))) - 1
        steps = torch.tensor(after(fitting), device="cpu")
        if fitting == len(order):
            break
        closed = unit_groups[int(order[fitting])].noun
        still_open = torch.tensor([group.noun != closed for group in unit_groups], device="cpu")
        order = order[fitting:][still_open[order[fitting:]]]
    if not steps.any():
        raise UserError(
            f"scope=global: a limit of {limit} allows nothing, the first choice in {unit_groups[first].name} costs "
            f"{price([int(index == first) for index in range(len(unit_groups))])}; raise the budget, or set scope=layer"
        )
    return _gather(
        unit_groups, layers, [ids[:, :count] for (ids, _), count in zip(rankings, steps.tolist(), strict=True)]
    )


def row_price(unit_groups: Sequence[UnitGroup]) -> Callable[[Sequence[int]], int]:
    """Return the price of steps in rows and columns, or in units where they are coupled."""
    prices = [1 if len({member.axis for member in group.members}) > 1 else group.width for group in unit_groups]
    return lambda steps: sum(count * price for count, price in zip(steps, prices, strict=True))


def _axes(channel: str) -> list[Axis]:
    """The axes along which a channel of plain rows and columns chooses."""
    return [axis for axis in AXES if channel in (axis, "both")]


def _plain_groups(layers: Mapping[str, LinearLayer], channel: str) -> list[UnitGroup]:
    noun = "rows and columns" if channel == "both" else None
    return [plain_group(name, layer, axis, noun) for name, layer in layers.items() for axis in _axes(channel)]


def _global_order(unit_groups: Sequence[UnitGroup], values: Sequence[Tensor]) -> Tensor:
    """Indices of groups (steps,) in the order in which their steps are taken."""
    places, indices = [], []
    for turn, axis in enumerate(AXES):
        members = [index for index, group in enumerate(unit_groups) if group.axis == axis]
        if members:
            ranked = torch.cat([values[index] for index in members])
            owners = torch.cat([torch.full((len(values[index]),), index, device="cpu") for index in members])
            indices.append(owners[torch.sort(ranked, descending=True, stable=True).indices])
            places.append(2 * torch.arange(len(ranked), device="cpu") + turn)
    return torch.cat(indices)[torch.cat(places).argsort()]


def _gather(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], orders: Sequence[Tensor]
) -> dict[str, Chosen]:
    parts: dict[str, dict[Axis, list[Tensor]]] = {name: {"rows": [], "columns": []} for name in layers}
    for group, order in zip(unit_groups, orders, strict=True):
        for member in group.members:
            parts[member.layer][member.axis].append(member.ids[order.flatten()].flatten())
    chosen = {}
    for name, of_layer in parts.items():
        rows, columns = (_ascending(of_layer[axis]) for axis in AXES)
        # Columns have nothing left to train where every row is.
        chosen[name] = Chosen(rows, columns if len(rows) < layer_shape(layers[name])[0] else columns[:0])
    return chosen


def _ascending(ids: list[Tensor]) -> Tensor:
    return torch.cat(ids).sort().values if ids else torch.empty(0, dtype=torch.int64, device="cpu")
