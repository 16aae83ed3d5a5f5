"""The choice that is no choice: the rows and columns that come first."""

import torch
from torch import Tensor

from rowsft.importance.registry import register


@register("first", needs="nothing")
def first(count: int, generator: torch.Generator) -> Tensor:
    """count, count - 1, ... 1: rows and columns in the order in which the weight has them.

    So RoCoFT (Kowsher et al., arXiv 2410.10075) chooses. Draws nothing from `generator`.
    """
    return torch.arange(count, 0, -1, dtype=torch.float32)
