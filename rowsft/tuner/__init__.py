"""Row-SFT as a PEFT tuner: train a few rows of every linear layer, exactly as wide as they are."""

from rowsft.tuner.register import register

from .config import RowSFTConfig
from .layer import RowSFTLayer
from .linear import Linear
from .model import RowSFTModel

__all__ = ["Linear", "RowSFTConfig", "RowSFTLayer", "RowSFTModel"]

register(RowSFTConfig, RowSFTModel)
