"""The control metric that knows nothing about the model."""

import torch
from torch import Tensor

from rowsft.importance.registry import register


@register("random", needs="nothing")
def random(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), one per row or column, drawn on the CPU so that every device chooses the same ones."""
    return torch.rand(count, generator=generator)
