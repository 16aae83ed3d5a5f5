"""The weights that a quantised base was made from, read again from its checkpoint, one layer at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from rowsft.errors import UserError
from rowsft.layers.packing import packed
from rowsft.layers.quantised import dequantised, stored
from rowsft.models.stored import StoredTensors
from rowsft.store.whole_checkpoint import FILE, INDEX


class OriginalWeights:
    """Where the weights of a quantised model can be had from.

    place, revision: what `from_pretrained` was given; None for weights that no file holds. kind: what they were packed
    in. plain: makes the unquantised model anew, in the memory of the host: for checkpoints whose tensors have other
    names or another form than the model's. What is read is believed only where it packs to the very codes that the
    model holds.
    """

    def __init__(self, kind: str, place: str | None, revision: str | None, plain: Callable[[], nn.Module]):
        self.kind, self._place, self._revision, self._plain = kind, place, revision, plain

    def read(self, model: Any, layers: dict[str, nn.Linear]) -> Iterator[tuple[str, Tensor]]:
        """Yield each of a model's quantised layers, by its full name, with its original weight (d_out, d_in).

        model: its names, and the dtype in which it was packed, are those of the checkpoint. Weights are on the CPU.
        Raises UserError where the checkpoint has changed since.
        """
        dtype = model.dtype
        whole: nn.Module | None = None
        tensors = self._tensors(model.base_model_prefix)
        for name, layer in layers.items():
            weight = None if whole is not None else self._from_files(tensors, name, layer, dtype)
            if weight is None:
                whole = self._plain() if whole is None else whole
                weight = whole.get_parameter(f"{name}.weight").detach()
                if not self._fits(layer, weight):
                    raise UserError(
                        f"the weights of layer {name} are not those that the quantised base was made from; the "
                        "checkpoint has changed since it was loaded: run again"
                    )
            yield name, weight

    def residuals(self, model: Any, layers: dict[str, nn.Linear]) -> Iterator[tuple[str, Tensor]]:
        """Yield W - Q (d_out, d_in) of the same layers, in 32 bit or wider, on the CPU. Raises UserError as `read`."""
        for name, weight in self.read(model, layers):
            stands_for = dequantised(layers[name])
            assert stands_for is not None, "packed by `quantise`"
            kind = torch.promote_types(weight.dtype, torch.float32)
            yield name, weight.to(kind) - stands_for.to("cpu", kind)

    def _tensors(self, prefix: str) -> StoredTensors:
        if self._place is None:
            return StoredTensors(prefix)
        options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        if self._revision is not None:
            options["revision"] = self._revision
        found = cached_file(self._place, INDEX, **options) or cached_file(self._place, FILE, **options)
        return StoredTensors(prefix) if found is None else StoredTensors.of(Path(found).parent, prefix)

    def _from_files(self, tensors: StoredTensors, name: str, layer: nn.Linear, dtype: torch.dtype) -> Tensor | None:
        for key in tensors.names(name):
            weight = tensors.read(key).to(dtype)
            if self._fits(layer, weight):
                return weight
        return None

    def _fits(self, layer: nn.Linear, weight: Tensor) -> bool:
        """Whether that is what the layer's weight was packed from."""
        if weight.shape != (layer.out_features, layer.in_features):
            return False
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        again, own = packed(plain, self.kind).weight, layer.weight
        return all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(_codes(again), _codes(own), strict=True))


def _codes(weight: Any) -> list[Tensor]:
    """The codes and the scales of a packed weight."""
    state = getattr(weight, "quant_state", None)
    return [weight.data, state.absmax] if state is not None else stored(weight)


def remember(model: Any, originals: OriginalWeights) -> None:
    """Let a quantised model say where its originals are."""
    model.original_weights = originals


def originals_of(model: Any) -> OriginalWeights | None:
    """Where the originals of a model that `load` has quantised are; None for any other."""
    return getattr(model, "original_weights", None)
