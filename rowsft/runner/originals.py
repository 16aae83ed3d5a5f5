"""The weights that training changes in place, as they were before: kept on disk, and put back for a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rowsft.methods.plain_method import save_trained, trained_names


class Originals:
    """The trainable parameters of `model` as they are now, in `folder`, which whoever made it removes."""

    def __init__(self, model: nn.Module, folder: Path):
        self.model, self.folder = model, folder
        # A method may freeze some of it again.
        self._names = trained_names(model)
        save_trained(model, self._before)

    @property
    def _before(self) -> Path:
        return self.folder / "before.safetensors"

    @contextmanager
    def put_back(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The model holds the originals inside the block, and the tuned values, bit for bit, after it.

        Yields a function from a weight of the model to its tuned value on the CPU, read from disk.
        """
        after = self.folder / "after.safetensors"
        save_trained(self.model, after, self._names)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        with safe_open(after, "pt") as tuned:
            trained = set(tuned.keys())

            def read(weight: Tensor) -> Tensor:
                name = names[id(weight)]
                return tuned.get_tensor(name) if name in trained else weight.detach()

            _fill(self.model, self._before)
            try:
                yield read
            finally:
                _fill(self.model, after)


def _fill(model: nn.Module, path: Path) -> None:
    with safe_open(path, "pt") as file, torch.no_grad():
        parameters = dict(model.named_parameters())
        for name in file.keys():  # noqa: SIM118  # not a mapping
            parameters[name].copy_(file.get_tensor(name))
