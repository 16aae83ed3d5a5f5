"""The tensors in a checkpoint's safetensors files, read by name, one at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from rowsft.store.whole_checkpoint import weight_files


@dataclass(frozen=True)
class StoredTensors:
    """files: name of a tensor -> the file that holds it. prefix: transformers' `base_model_prefix` of the model."""

    prefix: str
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, prefix: str) -> "StoredTensors":
        """Find the tensors of a folder, in one file or in shards; none where it holds no such checkpoint."""
        names = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                names.update(dict.fromkeys(file.keys(), path))
        return cls(prefix, names)

    def names(self, layer: str) -> Iterator[str]:
        """Yield what the files may call a layer's weight: they may be of the model without its head, or of one with."""
        full, prefix = f"{layer}.weight", f"{self.prefix}."
        for candidate in (full, full.removeprefix(prefix), prefix + full):
            if candidate in self.files:
                yield candidate

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        with safe_open(self.files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor, as it is stored, on the CPU."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)
