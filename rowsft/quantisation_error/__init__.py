"""How far a quantised base with what an adapter starts from is from the model's weights, layer by layer.

May import methods, models, tasks, config, report (how tables are laid out), importance, selection, quantisation,
store (files) and output. Must not train, and must not hold more than one layer's weight at a time, except where a
checkpoint can only be read as a whole.
"""

from rowsft.quantisation_error.measuring import Options, measure
from rowsft.quantisation_error.result import Measured

__all__ = ["Measured", "Options", "measure"]
