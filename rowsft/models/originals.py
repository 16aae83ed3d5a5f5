"""The weights that a quantised base was made from, read again from its checkpoint, one layer at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from rowsft.errors import UserError
from rowsft.layers.packing import packed
from rowsft.layers.quantised import dequantised, stored

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


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
        with ExitStack() as stack:
            files = _open(self._files(), stack)
            for name, layer in layers.items():
                weight = None if whole is not None else self._from_files(files, model, name, layer, dtype)
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

    def _files(self) -> Sequence[Path]:
        if self._place is None:
            return []
        options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        if self._revision is not None:
            options["revision"] = self._revision
        if (index := cached_file(self._place, _INDEX, **options)) is not None:
            return sorted(Path(index).parent.glob("*.safetensors"))
        file = cached_file(self._place, _FILE, **options)
        return [] if file is None else [Path(file)]

    def _from_files(
        self, files: dict[str, Any], model: Any, name: str, layer: nn.Linear, dtype: torch.dtype
    ) -> Tensor | None:
        prefix = f"{model.base_model_prefix}."
        # A checkpoint of the bare model has no prefix, and one of a model with a head has one.
        for key in (f"{name}.weight", f"{name}.weight".removeprefix(prefix), f"{prefix}{name}.weight"):
            if key in files:
                weight = files[key].get_tensor(key).to(dtype)
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


def _open(paths: Sequence[Path], stack: ExitStack) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in paths:
        file = stack.enter_context(safe_open(path, "pt"))
        files |= dict.fromkeys(file.keys(), file)
    return files


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
