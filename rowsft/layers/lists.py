"""Where a model keeps its layers."""

from collections.abc import Iterator

from torch import nn


def outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Yield the lists of modules that stand in no other list, as a model's blocks do."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from outermost_lists(child)
