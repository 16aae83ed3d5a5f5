"""Row-SFT as a PEFT tuner: train a few rows of every linear layer, exactly as wide as they are.

May import importance, selection and layers. Must not know runs, records, configuration files or tasks.
"""

from rowsft.tuner.register import register

from .config import RowSFTConfig
from .layer import RowSFTLayer
from .linear import Linear
from .model import RowSFTModel

__all__ = ["Linear", "RowSFTConfig", "RowSFTLayer", "RowSFTModel"]

register(RowSFTConfig, RowSFTModel)
