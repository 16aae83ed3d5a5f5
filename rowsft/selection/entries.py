"""Single entries of a matrix, chosen by their sizes: the largest of the whole, or as many of every row."""

import hashlib

import torch
from torch import Tensor

from rowsft.errors import UserError

#: Among what the entries are compared.
PER = ("matrix", "row")
# Rows that are sorted at a time.
_ROWS = 512


def chosen_entries(sizes: Tensor, count: int, per: str, layer: str) -> Tensor:
    """Return the flat ids (count,), ascending, on the CPU, of the `count` largest of `sizes` (rows, columns).

    per "matrix": the largest of all. "row": as many of every row, and one more in those rows whose next is the largest
    where `count` does not go into the rows. Ties go to the lower id. Without data (a plan) ids have none either. Raises
    UserError, naming the `layer`, for sizes that are not finite.
    """
    if not sizes.is_meta and not torch.isfinite(sizes).all():
        raise UserError(
            f"layer {layer} has entries that are not finite; check the model's weights or load it in float32"
        )
    if per == "matrix":
        return _on_cpu(_largest(sizes.flatten(), count))
    rows, columns = sizes.shape
    each, more = divmod(count, rows)
    taken, following, values = [], [], []
    for first in range(0, rows, _ROWS):
        block = sizes[first : first + _ROWS]
        ranked = block.sort(dim=1, descending=True, stable=True)
        ids = ranked.indices + columns * torch.arange(first, first + len(block), device=block.device).unsqueeze(1)
        taken.append(ids[:, :each].flatten())
        if more:
            following.append(ids[:, each])
            values.append(ranked.values[:, each])
    if more:
        taken.append(torch.cat(following)[_largest(torch.cat(values), more)])
    return _on_cpu(torch.cat(taken).sort().values)


def _on_cpu(ids: Tensor) -> Tensor:
    return ids if ids.is_meta else ids.cpu()


def _largest(sizes: Tensor, count: int) -> Tensor:
    """Ids (count,), ascending, of the largest of `sizes` (n,), ties to the lower one: topk says nothing of ties."""
    least = sizes.topk(count).values[-1]
    above, level = sizes > least, sizes == least
    if sizes.is_meta:
        return torch.empty(count, dtype=torch.int64, device="meta")
    certain = above.nonzero().flatten()
    return torch.cat([certain, level.nonzero().flatten()[: count - len(certain)]]).sort().values


def fingerprint(ids: Tensor) -> Tensor:
    """Return four integers that tell ids from others, on the device of `ids`; zeros for ids without data."""
    if ids.is_meta:
        return torch.zeros(4, dtype=torch.int64, device="meta")
    digest = hashlib.sha256(ids.detach().cpu().contiguous().numpy().tobytes()).digest()
    return torch.tensor(
        [int.from_bytes(digest[at : at + 8], "big", signed=True) for at in range(0, 32, 8)],
        dtype=torch.int64,
        device=ids.device,
    )
