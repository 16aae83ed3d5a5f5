"""The control metric that knows nothing about the model."""

import torch
from torch import Tensor

from rowsft.importance.registry import register


@register("random", needs="nothing")
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), one per row, drawn on the CPU so that every device chooses the same rows."""
    return torch.rand(weight.shape[0], generator=generator)
