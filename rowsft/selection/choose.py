"""Scores and sizes -> the chosen rows and columns of every layer, for each channel, scope and attention mode."""

import bisect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.selection.channel import ATTENTION
from rowsft.selection.channel import CHANNELS as TUNER_CHANNELS
from rowsft.selection.families import coupled_pools, grouped_pools, in_order, is_attention
from rowsft.selection.groups import Pool, Scores, plain_pool
from rowsft.selection.targets import Chosen, layer_shape

CHANNELS = tuple(TUNER_CHANNELS)


def pools_for(model: nn.Module, layers: dict[str, nn.Module], channel: str, attention: str) -> list[Pool]:
    """What a budget is spent on in the eligible `layers` of `model` (a model on the meta device will do), in its order.

    channel "out", "in": rows, columns of each layer. "half": two pools a layer, its rows first. "neuron": coupled units
    (`rowsft.selection.families`); heads share q, k and v there anyway, so "grouped" changes nothing. attention
    "linear": every projection on its own; "grouped": q, k and v share their units; "skip": layers of attention modules
    are left out.

    Raises UserError for an unknown channel or mode, "half" with "grouped", a model whose roles are asked for and not
    known, and when nothing is left.
    """
    for setting, value, known in (("channel", channel, CHANNELS), ("attention", attention, ATTENTION)):
        if value not in known:
            raise UserError(f"{setting}={value}: unknown; use one of {', '.join(known)}")
    if channel == "neuron":
        return coupled_pools(model, layers, with_attention=attention != "skip")
    if attention == "skip":
        plain = {name: layer for name, layer in layers.items() if not is_attention(name)}
        if not plain:
            raise UserError(
                "attention=skip leaves no layer to tune, target_modules selects attention projections only; "
                "select others too, or set attention=linear"
            )
        return _plain_pools(plain, channel)
    if attention == "linear":
        return _plain_pools(layers, channel)
    if channel == "half":
        raise UserError("attention=grouped with channel=half: expected channel out or in; or set attention=linear")
    shared = grouped_pools(model, layers, axis=channel)
    taken = {name for pool in shared for name in pool.layers}
    rest = {name: layer for name, layer in layers.items() if name not in taken}
    return in_order([*shared, *_plain_pools(rest, channel)], layers)


def choose(pools: Sequence[Pool], layers: Mapping[str, nn.Module], scores: Scores, steps: Sequence[int]) -> dict:
    """Take `steps[i]` steps in pool i, the largest scores first, ties to the lower index.

    Returns layer name -> `Chosen` for all `layers`; one that gets nothing has no ids. Raises UserError where a pool has
    fewer units.
    """
    for pool, count in zip(pools, steps, strict=True):
        if not 0 <= count <= pool.size:
            raise UserError(f"{pool.noun}={count} for {pool.name}: expected 0 to {pool.size}; lower the budget")
    orders = [pool.ranking(scores)[0][:, :count] for pool, count in zip(pools, steps, strict=True)]
    return _gather(pools, layers, orders)


def choose_globally(
    pools: Sequence[Pool],
    layers: Mapping[str, nn.Module],
    scores: Scores,
    limit: int,
    price: Callable[[Sequence[int]], int],
) -> dict[str, Chosen]:
    """Take units of all pools by one threshold on their scores, as many as `limit` allows at `price(steps)`.

    Scores are divided by their layer's mean before they are compared (`Pool.unit_scores`); ties go to the lower layer,
    then the lower index. Rows and columns are ranked apart and taken in turn, a row first. The first unit that exceeds
    the limit closes its kind (`Pool.noun`); smaller kinds go on, so that MLP units use what no whole head fits in.
    Returns what `choose` does.
    """
    steps = torch.zeros(len(pools), dtype=torch.int64, device="cpu")
    rankings = [pool.ranking(scores, compared=True) for pool in pools]
    order = _global_order(pools, [values for _, values in rankings])
    first = int(order[0])
    while len(order):

        def after(count: int, order: Tensor = order, taken: Tensor = steps) -> list[int]:
            return (taken + order[:count].bincount(minlength=len(pools))).tolist()

        fitting = bisect.bisect_right(range(len(order) + 1), limit, key=lambda count: price(after(count))) - 1
        steps = torch.tensor(after(fitting), device="cpu")
        if fitting == len(order):
            break
        closed = pools[order[fitting]].noun
        still_open = torch.tensor([pool.noun != closed for pool in pools], device="cpu")
        order = order[fitting:][still_open[order[fitting:]]]
    if not steps.any():
        raise UserError(
            f"scope=global: a limit of {limit} allows nothing, the first choice in {pools[first].name} costs "
            f"{price([int(index == first) for index in range(len(pools))])}; raise the budget, or set scope=layer"
        )
    return _gather(pools, layers, [ids[:, :count] for (ids, _), count in zip(rankings, steps.tolist(), strict=True)])


def row_price(pools: Sequence[Pool]) -> Callable[[Sequence[int]], int]:
    """The price of steps in rows and columns, or in units where they are coupled: what a total of rows counts."""
    prices = [1 if len({member.axis for member in pool.members}) > 1 else _width(pool) for pool in pools]
    return lambda steps: sum(count * price for count, price in zip(steps, prices, strict=True))


def _width(pool: Pool) -> int:
    return sum(width for _, _, width in pool.widths())


def _plain_pools(layers: Mapping[str, nn.Module], channel: str) -> list[Pool]:
    axes = ("out", "in") if channel == "half" else (channel,)
    noun = "rows and columns" if channel == "half" else None
    return [plain_pool(name, layer, axis, noun) for name, layer in layers.items() for axis in axes]


def _global_order(pools: Sequence[Pool], values: Sequence[Tensor]) -> Tensor:
    """Pool indices (steps,) in the order in which their steps are taken."""
    places, indices = [], []
    for turn, axis in enumerate(("out", "in")):
        members = [index for index, pool in enumerate(pools) if pool.axis == axis]
        if members:
            ranked = torch.cat([values[index] for index in members])
            owners = torch.cat([torch.full((len(values[index]),), index, device="cpu") for index in members])
            indices.append(owners[torch.sort(ranked, descending=True, stable=True).indices])
            places.append(2 * torch.arange(len(ranked), device="cpu") + turn)
    return torch.cat(indices)[torch.cat(places).argsort()]


def _gather(pools: Sequence[Pool], layers: Mapping[str, nn.Module], orders: Sequence[Tensor]) -> dict[str, Chosen]:
    found: dict[str, dict[str, list[Tensor]]] = {name: {"out": [], "in": []} for name in layers}
    for pool, order in zip(pools, orders, strict=True):
        for member in pool.members:
            found[member.layer][member.axis].append(member.ids[order.flatten()].flatten())
    chosen = {}
    for name, axes in found.items():
        rows, columns = (_ascending(axes[axis]) for axis in ("out", "in"))
        # Columns have nothing left to train where every row is.
        chosen[name] = Chosen(rows, columns if len(rows) < layer_shape(layers[name])[0] else columns[:0])
    return chosen


def _ascending(ids: list[Tensor]) -> Tensor:
    return torch.cat(ids).sort().values if ids else torch.empty(0, dtype=torch.int64, device="cpu")
