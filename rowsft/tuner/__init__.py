"""Row-SFT as a PEFT tuner: train a few rows of every linear layer, exactly as wide as they are.

May import importance, selection and layers. Must not know runs, records, configuration files or tasks.
"""

from rowsft.compat.peft import register

from .config import RowSFTConfig
from .layer import RowSFTLayer
from .linear import Linear
from .model import RowSFTModel

__all__ = ["Linear", "RowSFTConfig", "RowSFTLayer", "RowSFTModel"]

register("ROW_SFT", RowSFTModel.prefix, RowSFTConfig, RowSFTModel)
