"""Where row-SFT starts on a quantised base: at the original values of the chosen rows and columns, or at zero change.

The paper's second version (Li and Bhaskara, arXiv 2502.11439v2) starts the chosen rows from the quantisation residual:
delta = (W - Q)[rows], so that rows that are trained are exact from the first step on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .layer import RowSFTLayer

#: The settings: W - Q, or nothing.
STARTS = ("residual", "zero")


@torch.no_grad()
def add_residuals(
    model: nn.Module, residuals: Iterable[tuple[str, torch.Tensor]], adapter: str = "default", sign: int = 1
) -> None:
    """Add `sign` times the chosen entries of W - Q to an adapter's values, layer by layer.

    residuals: full layer name -> W - Q (d_out, d_in), of layers that the adapter trains. Crossing entries belong to the
    rows, as in the update itself.
    """
    layers = adapted_layers(model)
    for name, residual in residuals:
        layers[name].add_entries(residual, adapter, sign)


def adapted_layers(model: nn.Module) -> dict[str, RowSFTLayer]:
    """Return a model's row-SFT layers by their full name in the base model."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, RowSFTLayer)}
